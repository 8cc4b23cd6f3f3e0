// All tables, a line for each, with reward and effective share over time.

import { tableAddress } from "./addresses.js";
import { listTables } from "./api.js";
import { Sparkline } from "./chart.js";
import { cells, h, rove, sync, text } from "./dom.js";
import { ago, bytes, mean, number, percent } from "./format.js";
import { StepHistory } from "./history.js";

const AT_ONCE = 4; // histories read in one round
const WITH_HISTORY = 24; // tables of which one is read
const STEPS = 200;
const MANY = 50; // tables: reading each takes the service a moment
const ROUNDS_OF_MANY = 5;
const HEADINGS = ["Table", "Policy", "Fresh", "Replay", "Leased", "Waited for", "Payload", "Last insert", "Reward", "Effective", "Refilled"];

export class Overview {
  title = "tables";

  constructor() {
    this.histories = new Map();
    this.round = 0;
    this.body = h("tbody");
    this.empty = h(
      "p",
      { class: "empty", hidden: true },
      "There is no table yet: the first group of a generator, or create_table, makes one. ",
      h("code", {}, "groupreplay demo"),
      " shows how it looks.",
    );
    this.count = h("p", { class: "muted" });
    this.element = h(
      "div",
      {},
      h("h1", {}, "Tables"),
      this.count,
      h(
        "div",
        { class: "wide" },
        h(
          "table",
          { class: "list" },
          h("caption", { class: "hidden" }, "All tables. Arrow keys move, Enter opens."),
          h("thead", {}, h("tr", {}, ...HEADINGS.map((name, index) => h("th", { scope: "col", class: index ? "end" : "" }, name)))),
          this.body,
        ),
      ),
      this.empty,
    );
    this.settle = rove(this.body, "a.row");
  }

  async refresh(signal) {
    const tables = await this.#tables(signal);
    const runs = new Set(tables.map((it) => it.run)).size;
    text(this.count, tables.length ? `${tables.length} in ${runs} ${runs === 1 ? "run" : "runs"}` : "");
    this.empty.hidden = tables.length > 0;
    sync(this.body, tables, (table) => `${table.run}/${table.table}`, (table) => this.#make(table), (row, table) => this.#update(row, table));
    this.settle();
    await this.#readHistories(tables.slice(0, WITH_HISTORY), signal);
  }

  /** All tables; a service with many is asked less often. */
  async #tables(signal) {
    if (this.tables?.length > MANY && this.age < ROUNDS_OF_MANY) this.age += 1;
    else [this.tables, this.age] = [await listTables(signal), 1];
    return this.tables;
  }

  #make(table) {
    const name = `${table.run}/${table.table}`;
    const link = h("a", { class: "row", href: tableAddress(table) }, name);
    const row = h("tr", {}, h("th", { scope: "row" }, link), ...HEADINGS.slice(1).map(() => h("td", { class: "end" })));
    row.history = new StepHistory(table, STEPS);
    row.reward = new Sparkline("fresh", "reward");
    row.share = new Sparkline("good", "effective share");
    row.rewardNow = h("span", { class: "beside" });
    row.shareNow = h("span", { class: "beside" });
    row.children[8].append(row.reward.element, row.rewardNow);
    row.children[9].append(row.share.element, row.shareNow);
    return row;
  }

  #update(row, table) {
    const link = row.children[0].firstChild;
    cells(row, [
      link,
      number(table.policy_version),
      table.fresh ? `${number(table.fresh)} (${number(table.fresh_effective)} eff.)` : "0",
      number(table.replay),
      number(table.leased),
      number(table.missing),
      bytes(table.payload_bytes),
      ago(table.last_insert_ms),
    ]);
  }

  /** Read a few histories in each round: all of them at once would cost the service more the more tables there are. */
  async #readHistories(tables, signal) {
    const rows = [...this.body.children].slice(0, tables.length);
    if (!rows.length) return;
    const unknown = rows.filter((row) => !row.history.latest);
    const chosen = unknown.length ? unknown.slice(0, AT_ONCE) : rows.slice(this.round % rows.length).slice(0, AT_ONCE);
    this.round = (this.round % rows.length) + AT_ONCE;
    await Promise.all(chosen.map((row) => this.#readHistory(row, signal)));
  }

  async #readHistory(row, signal) {
    const steps = await row.history.refresh(signal);
    if (!steps.length) return;
    const shares = steps.map((step) => (step.fresh ? step.fresh_effective / step.fresh : null));
    const rewards = steps.map((step) => step.reward_mean ?? step.replay_reward_mean);
    row.reward.update(rewards);
    row.share.update(shares);
    const lately = steps.slice(-10);
    text(row.rewardNow, number(rewards.findLast((value) => value !== null) ?? null));
    text(row.shareNow, percent(mean(shares.slice(-10).filter((value) => value !== null))));
    const slots = lately.reduce((sum, step) => sum + step.batch_size, 0);
    text(row.children[10], percent(lately.reduce((sum, step) => sum + step.refilled, 0) / slots));
  }
}
