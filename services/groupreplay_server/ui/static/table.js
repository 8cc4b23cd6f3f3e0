// One table while a run trains: what its batches are made of, how its buffer is, and who is waited for.

import { groupsAddress, tableAddress } from "./addresses.js";
import { diagnose, getPolicy } from "./api.js";
import { Distribution, FillChart, LineChart } from "./chart.js";
import { attribute, cells, h, sync, text } from "./dom.js";
import { ago, bytes, clock, now, number, percent, plural, span } from "./format.js";
import { StepHistory } from "./history.js";

const STEPS = 1000;
const LISTED_STEPS = 12;
const DEFAULT_BATCH = 64;
const STUCK_AFTER_MS = 30000; // without an insert; between two batches a table is short of groups for a moment
const SIGN = { problem: "!", warning: "▲", info: "i" };
const PRODUCER_HEADINGS = ["Producer", "Pulse", "Inserted", "Effective", "Refused", "Last insert", "It says"];
const LEASE_HEADINGS = ["Lease", "Holder", "Groups", "Fresh", "Ends"];
const STEP_HEADINGS = ["Step", "At", "Policy", "Reward", "Effective", "Fresh", "Refilled", "Short", "Staleness", "KL", "ESS"];

export class TableView {
  constructor(at) {
    this.at = at;
    this.title = `${at.run}/${at.table}`;
    this.history = new StepHistory(at, STEPS);
    this.chosenBatch = null;
    this.before = null;
    this.#makeCharts();
    this.tiles = h("dl", { class: "tiles" });
    this.ready = h("span", { class: "badge" });
    this.headline = h("p", { class: "headline" });
    this.announced = h("p", { class: "hidden", role: "status" }); // says what changes, not what grows older
    this.findings = h("ul", { class: "findings" });
    this.batch = h("input", { type: "number", min: 1, max: 65536, inputmode: "numeric", change: () => this.#chooseBatch() });
    this.producers = listOf("Producers", PRODUCER_HEADINGS, "No producer was heard of yet.", [2, 3, 4, 5]);
    this.leases = listOf("Leases", LEASE_HEADINGS, "Nobody holds a batch.", [2, 3, 4]);
    this.steps = listOf("Last steps", STEP_HEADINGS, "No step was committed yet.", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    this.element = h(
      "div",
      {},
      h("div", { class: "title" }, h("h1", {}, this.title), tabs(this.at, "overview")),
      this.headline,
      this.announced,
      this.tiles,
      h("div", { class: "charts" }, ...Object.values(this.charts).map((chart) => chart.element)),
      h(
        "div",
        { class: "columns" },
        h(
          "section",
          { class: "panel", "aria-labelledby": "diagnosis" },
          h("h2", { id: "diagnosis" }, "Is the next batch ready? ", this.ready),
          h("label", { class: "inline" }, "for a batch of ", this.batch, " groups"),
          this.findings,
        ),
        h("div", { class: "stack" }, this.producers.element, this.leases.element),
      ),
      this.steps.element,
    );
  }

  #makeCharts() {
    const fresh = { name: "fresh", look: "fresh" };
    const replay = { name: "replay", look: "replay" };
    this.charts = {
      reward: new LineChart({
        title: "Reward",
        note: "mean of a step's groups",
        series: [{ name: "fresh", look: "fresh", smooth: true }, { name: "replay", look: "replay", smooth: true }],
      }),
      share: new LineChart({
        title: "Effective share",
        note: "of fresh groups",
        domain: [0, 1],
        series: [{ name: "with reward variance", look: "good", smooth: true, format: percent }],
      }),
      fill: new FillChart({
        title: "What fills a batch",
        note: "groups",
        series: [fresh, { name: "refilled", look: "replay" }, { name: "short", look: "short" }],
      }),
      age: new LineChart({
        title: "Staleness of batches",
        note: "policy versions",
        domain: [0],
        series: [{ name: "mean", look: "replay" }, { name: "largest", look: "short" }],
      }),
      staleness: new Distribution({
        title: "Staleness in the buffer",
        note: "groups by policy versions behind",
        unit: { whole: true, name: " behind" },
        series: [replay, fresh],
      }),
      priority: new Distribution({
        title: "Priority in the buffer",
        note: "groups by priority",
        unit: { whole: false, name: "" },
        series: [replay, fresh],
      }),
    };
  }

  #chooseBatch() {
    const wanted = Number(this.batch.value);
    this.chosenBatch = Number.isInteger(wanted) && wanted >= 1 && wanted <= 65536 ? wanted : null;
    this.asked?.();
  }

  async refresh(signal) {
    const [steps, policy] = await Promise.all([this.history.refresh(signal), getPolicy(this.at.run, signal)]);
    const batchSize = this.chosenBatch ?? steps.at(-1)?.batch_size ?? DEFAULT_BATCH;
    const diagnosis = await diagnose(this.at, batchSize, signal);
    if (document.activeElement !== this.batch) this.batch.value = batchSize;
    this.#showTiles(diagnosis.table, policy);
    this.#showSteps(steps);
    this.#showBuffer(this.history.latest);
    this.#showDiagnosis(diagnosis);
    this.#showProducers(diagnosis.producers);
    this.#showLeases(diagnosis.leases);
  }

  #showTiles(table, policy) {
    const inserted = table.counters.inserted ?? 0;
    const delivered = (table.counters.delivered_fresh ?? 0) + (table.counters.delivered_replay ?? 0);
    const tiles = [
      ["Policy version", number(table.policy_version), policy.published_at_ms ? `published ${ago(policy.published_at_ms)}` : "never published"],
      ["Fresh", number(table.fresh), `${number(table.fresh_effective)} effective`],
      ["Replay", number(table.replay), table.replay ? `versions ${table.replay_version_min} to ${table.replay_version_max}` : `of ${number(table.config.replay_capacity)}`],
      ["Leased", number(table.leased), `in ${plural(table.leases, "lease")}`],
      ["Waited for", number(table.missing), table.missing ? "groups that a trainer waits for" : "nobody waits"],
      ["Inserted", number(inserted), this.#rate(inserted)],
      ["From replay", delivered ? percent((table.counters.delivered_replay ?? 0) / delivered) : "–", `of ${number(delivered)} delivered`],
      ["Payload", bytes(table.payload_bytes), `fill ${table.config.fill}, sampler ${table.config.sampler}`],
    ];
    sync(
      this.tiles,
      tiles,
      ([name]) => name,
      ([name]) => h("div", { class: "tile" }, h("dt", {}, name), h("dd", {}), h("dd", { class: "muted" })),
      (tile, [, value, more]) => {
        text(tile.children[1], value);
        text(tile.children[2], more);
      },
    );
  }

  /** Groups per second since the look before. */
  #rate(inserted) {
    const at = performance.now();
    const before = this.before;
    if (!before || at - before.at > 1500) this.before = { at, inserted };
    if (!before || at <= before.at) return this.rated ?? "";
    this.rated = `${number((inserted - before.inserted) / ((at - before.at) / 1000), 2)} a second`;
    return this.rated;
  }

  #showSteps(steps) {
    const numbers = steps.map((step) => step.step);
    const draw = (chart, values) => chart.update(numbers, steps.map(values));
    draw(this.charts.reward, (step) => [step.reward_mean, step.replay_reward_mean]);
    draw(this.charts.share, (step) => [step.fresh ? step.fresh_effective / step.fresh : null]);
    draw(this.charts.fill, (step) => [step.groups - step.refilled, step.refilled, step.shortfall]);
    draw(this.charts.age, (step) => [step.staleness_mean, step.groups ? step.staleness_max : null]);
    this.steps.update(steps.slice(-LISTED_STEPS).reverse(), (step) => step.step, (step) => [
      String(step.step),
      clock(step.committed_at_ms),
      String(step.policy_version),
      number(step.reward_mean ?? step.replay_reward_mean),
      percent(step.fresh ? step.fresh_effective / step.fresh : null),
      `${step.fresh_effective} of ${step.fresh}`,
      number(step.refilled),
      number(step.shortfall),
      step.groups ? `${number(step.staleness_mean)}, max ${step.staleness_max}` : "–",
      number(step.kl_mean),
      number(step.ess_mean),
    ]);
  }

  #showBuffer({ fresh, replay }) {
    const shown = (name) => [replay, fresh].map((place) => ({ ...place[name], groups: place.groups, looked_at: place.looked_at }));
    this.charts.staleness.update(shown("staleness"));
    this.charts.priority.update(shown("priority"));
  }

  #showDiagnosis(diagnosis) {
    text(this.ready, diagnosis.ready ? "yes" : "no");
    const silent = now() - diagnosis.table.last_insert_ms > STUCK_AFTER_MS;
    const stuck = !diagnosis.ready && (silent || diagnosis.producers.some((producer) => producer.health !== "alive"));
    const look = diagnosis.ready ? "good" : stuck ? "problem" : "muted";
    const worst = diagnosis.findings.find((finding) => finding.severity === "problem");
    const state = diagnosis.ready ? "The next batch is ready." : stuck ? "The next batch is not ready." : "The next batch is being filled.";
    attribute(this.ready, "class", `badge ${look}`);
    attribute(this.headline, "class", `headline ${look}`);
    attribute(this.findings, "class", stuck ? "findings" : "findings calm");
    text(this.headline, diagnosis.ready ? state : `${state} ${worst ? worst.text[0].toUpperCase() + worst.text.slice(1) : ""}`);
    text(this.announced, stuck ? state : "");
    sync(
      this.findings,
      diagnosis.findings,
      (finding) => `${finding.severity} ${finding.code} ${/^Producer \S+|^Lease \S+/.exec(finding.text)?.[0] ?? ""}`,
      (finding) =>
        h(
          "li",
          { class: `finding ${finding.severity}` },
          h("span", { class: "sign", "aria-hidden": "true" }, SIGN[finding.severity] ?? "·"),
          h("span", { class: "hidden" }, `${finding.severity}: `),
          h("span", {}),
        ),
      (item, finding) => text(item.lastChild, finding.text),
    );
  }

  #showProducers(producers) {
    const order = { dead: 0, slow: 1, alive: 2 };
    const sorted = [...producers].sort((one, other) => order[one.health] - order[other.health] || one.producer_id.localeCompare(other.producer_id));
    this.producers.update(sorted.slice(0, 50), (it) => it.producer_id, (it) => [
      it.producer_id,
      { look: `health ${it.health}`, text: `${it.health}, ${ago(it.last_seen_ms)}` },
      number(it.inserted),
      percent(it.inserted ? it.effective / it.inserted : null),
      number(it.refused),
      ago(it.last_insert_ms),
      it.status || "–",
    ]);
    this.producers.count(producers.length);
  }

  #showLeases(leases) {
    this.leases.update(leases.slice(0, 50), (it) => it.lease_id, (it) => [
      it.lease_id,
      it.holder || "–",
      number(it.groups),
      number(it.fresh),
      `in ${span(Math.max(0, it.deadline_ms - now()) / 1000)}`,
    ]);
    this.leases.count(leases.length);
  }
}

/** The views of a table, to choose from. */
export function tabs(at, here) {
  const tab = (href, name) => h("a", { href, "aria-current": name === here ? "page" : false }, name);
  return h("nav", { class: "tabs", "aria-label": "Views of the table" }, tab(tableAddress(at), "overview"), tab(groupsAddress(at), "groups"));
}

/** A table with a heading, which says so when it is empty. */
function listOf(title, headings, nothing, end) {
  const side = (index) => ({ class: end.includes(index) ? "end" : "" });
  const body = h("tbody");
  const count = h("span", { class: "muted" });
  const empty = h("p", { class: "empty" }, nothing);
  const table = h(
    "table",
    { class: "list", hidden: true },
    h("caption", { class: "hidden" }, title),
    h("thead", {}, h("tr", {}, ...headings.map((name, index) => h("th", { scope: "col", ...side(index) }, name)))),
    body,
  );
  const make = () => h("tr", {}, ...headings.map((_, index) => h(index ? "td" : "th", index ? side(index) : { scope: "row" })));
  return {
    element: h("section", { class: "panel" }, h("h2", {}, title, " ", count), h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": title }, table), empty),
    count: (number) => text(count, number > 1 ? number : ""),
    update(items, keyOf, values) {
      table.hidden = !items.length;
      empty.hidden = items.length > 0;
      sync(body, items, keyOf, make, (row, item) => cells(row, values(item)));
    },
  };
}
