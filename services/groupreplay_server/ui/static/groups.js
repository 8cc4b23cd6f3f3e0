// The groups of a table: filters, a line for each group, more on request.

import { groupAddress, groupsAddress } from "./addresses.js";
import { listGroups } from "./api.js";
import { attribute, cells, h, rove, sync, text } from "./dom.js";
import { ago, clock, mean, number } from "./format.js";
import { tabs } from "./table.js";

const PAGE = 100;
const MOST_EMPTY_PAGES = 8; // asked for in one go, where a filter leaves little
const FILTERS = ["state", "task", "effective", "from", "to", "prompt"];
const HEADINGS = ["Group", "State", "Task", "Rewards", "Mean", "Version", "Stale", "Used", "Priority", "KL", "ESS", "Tokens", "Inserted"];

export class GroupsView {
  constructor(at, query) {
    this.at = at;
    this.title = `groups of ${at.run}/${at.table}`;
    this.groups = [];
    this.cursor = "";
    this.loaded = false;
    this.pages = 0;
    this.filters = Object.fromEntries(FILTERS.map((name) => [name, query.get(name) ?? ""]));
    this.#make();
  }

  #make() {
    const option = (name, label) => h("option", { value: name }, label);
    const choice = (...options) => h("select", {}, ...options.map(([name, label]) => option(name, label)));
    this.inputs = {
      state: choice(["", "all"], ["fresh", "fresh"], ["leased", "leased"], ["replay", "replay"]),
      effective: choice(["", "all"], ["true", "effective"], ["false", "ineffective"]),
      task: h("input", { type: "text", placeholder: "any", maxlength: 128, spellcheck: "false" }),
      from: h("input", { type: "number", min: 0, placeholder: "oldest", inputmode: "numeric" }),
      to: h("input", { type: "number", min: 0, placeholder: "newest", inputmode: "numeric" }),
      prompt: h("input", { type: "text", placeholder: "any", maxlength: 256, spellcheck: "false" }),
    };
    const labels = { state: "State", effective: "Reward variance", task: "Task", from: "Version from", to: "Version to", prompt: "Prompt id" };
    for (const name of FILTERS) this.inputs[name].value = this.filters[name];
    this.form = h(
      "form",
      { class: "filters", role: "search", "aria-label": "Filter groups", submit: (event) => event.preventDefault(), change: () => this.#filter() },
      ...Object.entries(labels).map(([name, label]) => h("label", {}, label, this.inputs[name])),
      h("button", { type: "button", click: () => this.#clear() }, "Clear"),
    );
    this.said = h("span", { role: "status" });
    this.asOf = h("span");
    this.body = h("tbody");
    this.more = h("button", { type: "button", hidden: true, click: () => this.#loadMore() }, "Show more");
    this.list = h(
      "table",
      { class: "list groups" },
      h("caption", { class: "hidden" }, "Groups, newest first. Arrow keys move, Enter opens."),
      h("thead", {}, h("tr", {}, ...HEADINGS.map((name, index) => h("th", { scope: "col", class: index > 3 ? "end" : "" }, name)))),
      this.body,
    );
    this.settle = rove(this.body, "a.row");
    this.element = h("div", {}, h("div", { class: "title" }, h("h1", {}, `${this.at.run}/${this.at.table}`), tabs(this.at, "groups")), this.form, h("p", { class: "muted" }, this.said, this.asOf), h("div", { class: "wide" }, this.list), this.more);
  }

  /** The part of the address that says what is filtered. */
  get query() {
    const set = Object.entries(this.filters).filter(([, value]) => value !== "");
    return set.length ? `?${new URLSearchParams(set)}` : "";
  }

  get address() {
    return groupsAddress(this.at, this.query);
  }

  #clear() {
    for (const input of Object.values(this.inputs)) input.value = "";
    this.#filter();
    this.inputs.state.focus();
  }

  #filter() {
    for (const name of FILTERS) this.filters[name] = this.inputs[name].value.trim();
    this.loaded = false;
    history.replaceState(null, "", this.address);
    this.asked?.();
  }

  #wanted(cursor) {
    const { state, task, effective, from, to, prompt } = this.filters;
    return { states: state, task, effective, policy_version_from: from, policy_version_to: to, prompt_id: prompt, limit: PAGE, cursor };
  }

  /** The first page, again while nobody is in the list and no more of it was asked for. */
  async refresh(signal) {
    const inUse = this.body.contains(document.activeElement) || this.body.matches(":hover") || this.pages > 1;
    if (this.loaded && inUse) return;
    const found = await this.#read("", signal);
    this.loaded = true;
    this.pages = 1;
    this.#show(found.groups, found.cursor);
  }

  async #loadMore() {
    this.more.disabled = true;
    try {
      const found = await this.#read(this.cursor);
      this.pages += 1;
      const known = new Set(this.groups.map((group) => group.header.group_id));
      const fresh = found.groups.filter((group) => !known.has(group.header.group_id));
      this.#show([...this.groups, ...fresh], found.cursor);
    } catch (error) {
      text(this.said, error.message);
    } finally {
      this.more.disabled = false;
    }
  }

  /** Read on until there is something to show: a page looks at a bounded number of groups. */
  async #read(cursor, signal) {
    const groups = [];
    for (let page = 0; page < MOST_EMPTY_PAGES; page += 1) {
      const found = await listGroups(this.at, this.#wanted(cursor), signal);
      groups.push(...found.groups);
      cursor = found.next_cursor;
      if (!cursor || groups.length >= PAGE / 2) break;
    }
    return { groups, cursor };
  }

  #show(groups, cursor) {
    this.groups = groups;
    this.cursor = cursor;
    this.more.hidden = !cursor;
    const filtered = this.query ? " that match" : "";
    const found = `${groups.length}${cursor ? " of more" : ""}${filtered}.`;
    text(this.said, groups.length ? found : cursor ? "None so far; there is more to look through." : `There are no groups${filtered}.`);
    text(this.asOf, ` As of ${clock(Date.now())}.`);
    sync(this.body, groups, (group) => group.header.group_id, (group) => this.#makeRow(group), (row, group) => this.#update(row, group));
    this.settle();
  }

  #makeRow({ header }) {
    const link = h("a", { class: "row", href: groupAddress(this.at, header.group_id) }, header.group_id);
    return h(
      "tr",
      {},
      h("th", { scope: "row" }, link),
      ...HEADINGS.slice(1).map((_, index) => h("td", { class: index > 2 ? "end" : index === 1 ? "untrusted" : "" })),
    );
  }

  #update(row, group) {
    const { header } = group;
    const tokens = header.response_lengths.reduce((sum, length) => sum + length, 0);
    const versions = [...new Set([header.policy_version_min, header.policy_version_max])].join("–");
    cells(row, [
      row.children[0].firstChild,
      { text: group.state, look: `state ${group.state}` },
      header.task || "–",
      row.strip ??= rewardStrip(header.rewards),
      number(mean(header.rewards)),
      versions,
      String(group.staleness),
      String(group.times_sampled),
      number(group.priority),
      number(group.kl),
      number(group.ess),
      number(tokens),
      ago(group.inserted_at_ms),
    ]);
    attribute(row, "class", group.effective ? null : "dim");
  }
}

/** A box for each response, coloured by its reward among those of the group. */
function rewardStrip(rewards) {
  const [low, high] = [Math.min(...rewards), Math.max(...rewards)];
  const label = low === high ? `all ${number(low)}` : `${number(low)} to ${number(high)}`;
  const shown = rewards.slice(0, 32);
  return h(
    "span",
    { class: "strip" },
    h("span", { "aria-hidden": "true" }, ...shown.map((reward) => h("i", { class: rewardLook(reward, low, high), title: number(reward) }))),
    h("span", { class: "beside" }, `${rewards.length}: ${label}`),
  );
}

/** The class of a reward: a fifth of the way from the lowest to the highest of its group. */
export function rewardLook(reward, low, high) {
  if (high <= low) return "reward even";
  return `reward r${Math.min(4, Math.floor((5 * (reward - low)) / (high - low)))}`;
}
