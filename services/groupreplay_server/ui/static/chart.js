// Small charts in SVG: lines over steps, what a batch was filled with, and distributions. Each has its figures in words,
// shows those of one step under the pointer or, with the arrow keys, under the cursor, and is redrawn only when it changed.

import { attribute, h, s, sync, text } from "./dom.js";
import { number } from "./format.js";

const HEIGHT = 132;
const PAD = { left: 40, right: 10, top: 8, bottom: 18 };
const SMOOTHING = 0.9;

class Chart {
  constructor({ title, note = "", series }) {
    this.series = series;
    this.width = 0;
    this.values = h("span", { class: "values" });
    this.empty = h("p", { class: "empty", hidden: true });
    this.plot = s("g");
    this.axes = s("g", { class: "axes", "aria-hidden": "true" });
    this.cursor = s("line", { class: "cursor", y1: PAD.top, y2: HEIGHT - PAD.bottom, visibility: "hidden" });
    this.svg = s("svg", { role: "img", tabindex: "0", height: HEIGHT }, this.axes, this.plot, this.cursor);
    this.element = h(
      "figure",
      { class: "chart" },
      h("figcaption", {}, h("h3", {}, title, note ? h("small", {}, ` ${note}`) : null), this.values),
      this.svg,
      this.empty,
    );
    this.title = title;
    this.at = null;
    attribute(this.svg, "aria-label", `${title}: not read yet`);
    new ResizeObserver(([entry]) => this.#resize(entry.contentRect.width)).observe(this.element);
    this.svg.addEventListener("pointermove", (event) => this.look(this.nearest(event.offsetX)));
    this.svg.addEventListener("pointerleave", () => this.look(null));
    this.svg.addEventListener("blur", () => this.look(null));
    this.svg.addEventListener("keydown", (event) => this.#key(event));
  }

  #resize(width) {
    if (Math.round(width) === this.width || width < 1) return;
    this.width = Math.round(width);
    attribute(this.svg, "width", this.width);
    attribute(this.svg, "viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.draw();
  }

  #key(event) {
    const last = this.count - 1;
    const to = {
      ArrowRight: Math.min(last, (this.at ?? -1) + 1),
      ArrowLeft: Math.max(0, (this.at ?? last + 1) - 1),
      Home: 0,
      End: last,
    }[event.key];
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.look(to);
  }

  /** Show the figures of one place, or with null those of the newest. */
  look(index) {
    this.at = index;
    const x = index === null ? null : this.placeOf(index);
    attribute(this.cursor, "visibility", x === null ? "hidden" : "visible");
    attribute(this.values, "aria-live", index === null ? null : "polite");
    if (x !== null) for (const name of ["x1", "x2"]) attribute(this.cursor, name, x);
    this.caption();
  }

  show(words, entries, summary) {
    text(this.empty, words);
    this.empty.hidden = !words;
    attribute(this.svg, "hidden", Boolean(words));
    sync(
      this.values,
      words ? [] : entries,
      (entry) => entry.name,
      () => h("span", { class: "value" }, h("i", { "aria-hidden": "true" }), h("span"), h("b")),
      (element, entry) => {
        attribute(element.firstChild, "class", entry.look ? `key ${entry.look}` : "");
        text(element.children[1], entry.name);
        text(element.children[2], entry.value);
      },
    );
    attribute(this.svg, "aria-label", words ? `${this.title}: ${words}` : `${this.title}. ${summary}`);
  }

  scale(low, high) {
    const room = HEIGHT - PAD.top - PAD.bottom;
    return (value) => HEIGHT - PAD.bottom - ((value - low) / (high - low || 1)) * room;
  }

  drawAxes(ticks, y, labels) {
    const right = this.width - PAD.right;
    this.axes.replaceChildren(
      ...ticks.flatMap((tick) => [
        s("line", { x1: PAD.left, x2: right, y1: y(tick), y2: y(tick) }),
        s("text", { x: PAD.left - 5, y: y(tick) + 3.5, "text-anchor": "end" }, number(tick)),
      ]),
      ...labels.map(([x, label, anchor]) => s("text", { x, y: HEIGHT - 4, "text-anchor": anchor }, label)),
    );
  }
}

/** Steps from left to right: what lines and fills share. */
class StepChart extends Chart {
  constructor(options) {
    super(options);
    this.steps = [];
  }

  get count() {
    return this.steps.length;
  }

  /** Draw these steps, each with its number and one value (or null) per series. */
  update(steps, rows) {
    const signature = `${steps.length}:${steps[0]}:${steps.at(-1)}:${rows.at(-1)}`;
    if (signature === this.signature) return;
    this.signature = signature;
    this.steps = steps;
    this.rows = rows;
    this.draw();
    this.look(this.at !== null && this.at < this.count ? this.at : null);
  }

  placeOf(index) {
    const [first, last] = [this.steps[0], this.steps.at(-1)];
    const share = last > first ? (this.steps[index] - first) / (last - first) : 0.5;
    return PAD.left + share * (this.width - PAD.left - PAD.right);
  }

  nearest(x) {
    let best = null;
    for (let index = 0; index < this.count; index += 1) {
      const away = Math.abs(this.placeOf(index) - x);
      if (best === null || away < best.away) best = { index, away };
    }
    return best?.index ?? null;
  }

  get stepLabels() {
    const right = this.width - PAD.right;
    if (this.count < 2) return [[(PAD.left + right) / 2, `step ${this.steps[0]}`, "middle"]];
    return [[PAD.left, `step ${number(this.steps[0])}`, "start"], [right, number(this.steps.at(-1)), "end"]];
  }

  caption() {
    if (!this.count) {
      this.show("no step was committed yet", [], "");
      return;
    }
    const index = this.at ?? this.count - 1;
    const entries = this.series.map((one, at) => ({
      name: one.name,
      look: one.look,
      value: (one.format ?? number)(this.rows[index][at]),
    }));
    if (this.at !== null) entries.unshift({ name: "step", look: "", value: String(this.steps[index]) });
    const words = this.series.map((one, at) => {
      const values = this.rows.map((row) => row[at]).filter((value) => typeof value === "number");
      if (!values.length) return `${one.name}: no figures.`;
      const format = one.format ?? number;
      const now = format(this.rows.at(-1)[at]);
      return `${one.name}: ${now} now, ${format(Math.min(...values))} to ${format(Math.max(...values))}.`;
    });
    const here = this.at === null ? "" : ` Cursor at ${entries.map((one) => `${one.name} ${one.value}`).join(", ")}.`;
    this.show("", entries, `Steps ${this.steps[0]} to ${this.steps.at(-1)}. ${words.join(" ")}${here}`);
  }
}

/** Lines over steps. A series may be `smooth`: drawn faintly as it is, and clearly as its running mean. */
export class LineChart extends StepChart {
  constructor(options) {
    super(options);
    this.domain = options.domain;
    this.paths = this.series.map((one) => ({
      raw: s("path", { class: `line ${one.look}${one.smooth ? " faint" : ""}` }),
      mean: one.smooth ? s("path", { class: `line ${one.look}` }) : null,
      dot: s("circle", { class: `dot ${one.look}`, r: 2.5 }),
    }));
    this.plot.append(...this.paths.flatMap((path) => [path.raw, path.mean, path.dot].filter(Boolean)));
  }

  draw() {
    if (!this.width || !this.count) return;
    const values = this.rows.flat().filter((value) => typeof value === "number");
    const [low, high, ticks] = niceRange(values, this.domain);
    const y = this.scale(low, high);
    this.series.forEach((one, at) => {
      const column = this.rows.map((row) => (typeof row[at] === "number" ? row[at] : null));
      const path = this.paths[at];
      const shown = one.smooth ? runningMean(column) : column;
      attribute(path.raw, "d", this.line(column, y));
      if (path.mean) attribute(path.mean, "d", this.line(shown, y));
      const last = shown.findLastIndex((value) => value !== null);
      attribute(path.dot, "visibility", last < 0 ? "hidden" : "visible");
      if (last >= 0) {
        attribute(path.dot, "cx", this.placeOf(last));
        attribute(path.dot, "cy", y(shown[last]));
      }
    });
    this.drawAxes(ticks, y, this.stepLabels);
  }

  line(column, y) {
    let pen = "M";
    let path = "";
    column.forEach((value, index) => {
      if (value === null) {
        pen = "M";
        return;
      }
      path += `${pen}${this.placeOf(index).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = "L";
    });
    return path;
  }
}

/** What batches were filled with: shares on top of each other, in as many bars as there is room for. */
export class FillChart extends StepChart {
  constructor(options) {
    super(options);
    this.areas = this.series.map((one) => s("path", { class: `area ${one.look}` }));
    this.plot.append(...this.areas);
  }

  draw() {
    if (!this.width || !this.count) return;
    const room = this.width - PAD.left - PAD.right;
    const bars = Math.min(this.count, Math.max(1, Math.floor(room / 3)));
    const most = Math.max(1, ...this.rows.map((row) => row.reduce((sum, value) => sum + value, 0)));
    const y = this.scale(0, most);
    const paths = this.series.map(() => "");
    for (let bar = 0; bar < bars; bar += 1) {
      const from = Math.floor((bar * this.count) / bars);
      const to = Math.floor(((bar + 1) * this.count) / bars);
      const left = PAD.left + (bar * room) / bars;
      const width = Math.max(1, room / bars - (room / bars > 4 ? 1 : 0));
      let base = 0;
      this.series.forEach((_, at) => {
        const rows = this.rows.slice(from, to);
        const size = rows.reduce((sum, row) => sum + row[at], 0) / rows.length;
        const [top, bottom] = [y(base + size), y(base)];
        if (size > 0) paths[at] += `M${left.toFixed(1)} ${bottom.toFixed(1)}V${top.toFixed(1)}h${width.toFixed(1)}V${bottom.toFixed(1)}z`;
        base += size;
      });
    }
    this.areas.forEach((area, at) => attribute(area, "d", paths[at]));
    this.drawAxes(niceRange([0, most], [0, most])[2], y, this.stepLabels);
  }

  placeOf(index) {
    return PAD.left + ((index + 0.5) / this.count) * (this.width - PAD.left - PAD.right);
  }
}

/** How values are distributed over groups: {edges, counts} per series, each bin as high as there are groups in it. */
export class Distribution extends Chart {
  constructor(options) {
    super(options);
    this.unit = options.unit;
    this.shown = [];
    this.bars = this.series.map((one) => s("path", { class: `area ${one.look}` }));
    this.plot.append(...this.bars);
  }

  get count() {
    return this.bins.length;
  }

  /** All bins of all series, by where they begin. */
  get bins() {
    return this.shown
      .flatMap((one, at) => one.counts.map((count, bin) => ({ at, count, low: one.edges[bin], high: one.edges[bin + 1] })))
      .filter((bin) => bin.count)
      .sort((one, other) => one.low - other.low);
  }

  /** shown: for each series {edges, counts, groups, looked_at}. */
  update(shown) {
    const signature = JSON.stringify(shown);
    if (signature === this.signature) return;
    this.signature = signature;
    this.shown = shown;
    this.draw();
    this.look(null);
  }

  draw() {
    const bins = this.bins;
    if (!this.width || !bins.length) return;
    const low = Math.min(...bins.map((bin) => bin.low));
    const high = Math.max(...bins.map((bin) => bin.high));
    const wide = high > low ? high - low : 1;
    const room = this.width - PAD.left - PAD.right;
    this.x = (value) => PAD.left + (high > low ? (value - low) / wide : 0.5) * room;
    const most = Math.max(...bins.map((bin) => this.groupsOf(bin)));
    const y = this.scale(0, most);
    const paths = this.series.map(() => "");
    const here = this.seriesShown;
    for (const bin of bins) {
      const [from, to] = high > low ? [this.x(bin.low), this.x(bin.high)] : [PAD.left + room * 0.4, PAD.left + room * 0.6];
      const part = (to - from) / here.length; // both places have the same bins: their bars stand side by side
      const left = from + here.indexOf(bin.at) * part;
      const right = Math.max(left + 1, left + part - (bin.at === here.at(-1) ? 1 : 0));
      paths[bin.at] += `M${left.toFixed(1)} ${y(0)}V${y(this.groupsOf(bin)).toFixed(1)}H${right.toFixed(1)}V${y(0)}z`;
    }
    this.bars.forEach((bar, at) => attribute(bar, "d", paths[at]));
    const right = this.width - PAD.right;
    const end = this.unit.whole ? high - 1 : high;
    const labels =
      end > low
        ? [[PAD.left, `${number(low)}${this.unit.name}`, "start"], [right, number(end), "end"]]
        : [[(PAD.left + right) / 2, `${number(low)}${this.unit.name}`, "middle"]];
    this.drawAxes(niceRange([0, most], [0, most])[2], y, labels);
  }

  /** Indexes of the series that have values. */
  get seriesShown() {
    return this.shown.flatMap((one, at) => (one.counts.length ? [at] : []));
  }

  groupsOf(bin) {
    const one = this.shown[bin.at];
    return (bin.count * one.groups) / one.looked_at;
  }

  placeOf(index) {
    const bin = this.bins[index];
    const here = this.seriesShown;
    return this.x ? this.x(bin.low + ((bin.high - bin.low) * (here.indexOf(bin.at) + 0.5)) / here.length) : null;
  }

  nearest(x) {
    const places = this.bins.map((_, index) => Math.abs(this.placeOf(index) - x));
    return places.length ? places.indexOf(Math.min(...places)) : null;
  }

  range(bin) {
    const last = this.unit.whole ? bin.high - 1 : bin.high;
    return last > bin.low ? `${number(bin.low)} to ${number(last)}` : number(bin.low);
  }

  caption() {
    const bins = this.bins;
    if (!bins.length) {
      this.show("no groups are waiting", [], "");
      return;
    }
    const entries = this.series.map((one, at) => ({
      name: one.name,
      look: one.look,
      value: this.shown[at].counts.length ? number(this.shown[at].groups) : "0",
    }));
    if (this.at !== null && bins[this.at]) {
      const bin = bins[this.at];
      const groups = this.shown[bin.at].looked_at < this.shown[bin.at].groups ? "about " : "";
      const value = `${groups}${number(Math.round(this.groupsOf(bin)))} at ${this.range(bin)}`;
      entries.splice(0, entries.length, { name: this.series[bin.at].name, look: this.series[bin.at].look, value });
    }
    const words = this.series.map((one, at) => {
      const own = bins.filter((bin) => bin.at === at);
      if (!own.length) return `${one.name}: none.`;
      return `${one.name}: ${own.map((bin) => `${number(Math.round(this.groupsOf(bin)))} at ${this.range(bin)}`).join(", ")}.`;
    });
    this.show("", entries, words.join(" "));
  }
}

/** A line without axes, for a row of a table. */
export class Sparkline {
  constructor(look, name) {
    this.name = name;
    this.path = s("path", { class: `line ${look}` });
    this.element = s("svg", { class: "spark", role: "img", viewBox: "0 0 96 22", width: 96, height: 22 }, this.path);
    attribute(this.element, "aria-label", `${name}: no steps yet`);
  }

  update(values) {
    const column = runningMean(values.map((value) => (typeof value === "number" ? value : null)));
    const known = column.filter((value) => value !== null);
    if (!known.length) return;
    const [low, high] = [Math.min(...known), Math.max(...known)];
    const x = (index) => 1 + (94 * index) / Math.max(1, column.length - 1);
    const y = (value) => (high > low ? 20 - (18 * (value - low)) / (high - low) : 11);
    const points = column.flatMap((value, index) => (value === null ? [] : `${x(index).toFixed(1)} ${y(value).toFixed(1)}`));
    attribute(this.path, "d", `M${points.join("L")}${points.length === 1 ? "h1" : ""}`);
    attribute(this.element, "aria-label", `${this.name}: from ${number(known[0])} to ${number(known.at(-1))}`);
  }
}

/** The running mean that TensorBoard draws: exponential, without the pull of its start. */
function runningMean(column) {
  let [sum, weight] = [0, 0];
  return column.map((value) => {
    if (value === null) return null;
    sum = SMOOTHING * sum + (1 - SMOOTHING) * value;
    weight = SMOOTHING * weight + (1 - SMOOTHING);
    return sum / weight;
  });
}

/** Return the lower end, the upper end and the ticks of an axis that holds values. */
function niceRange(values, domain = []) {
  let low = domain[0] ?? Math.min(...values);
  let high = domain[1] ?? Math.max(...values);
  if (!Number.isFinite(low) || !Number.isFinite(high)) return [0, 1, [0, 1]];
  if (high <= low) [low, high] = [low - (domain[0] === undefined ? Math.abs(low) * 0.1 || 0.5 : 0), low + (Math.abs(low) * 0.1 || 0.5)];
  const rough = (high - low) / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-6; tick += step) ticks.push(Number(tick.toPrecision(12)));
  return [low, high, ticks];
}
