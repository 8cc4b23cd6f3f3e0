// What the tokens of a group can be shaded by, how each looks, and what the colours mean.

import { decode } from "./columns.js";
import { h } from "./dom.js";
import { number } from "./format.js";

const LEVELS = 8;
export const LOGPROBS = "behaviour_logprobs";
export const FED_BACK = "ratio fed back";
const TWICE = Math.log(2);

/**
 * Return name -> shading, or null for none: {values, label, low, high} with a number for each token of the responses;
 * reversed where the lowest is the darkest, diverging where both ends are dark, show where another number is told.
 */
export function readShadings(group, ratios) {
  const shadings = new Map([["", null]]);
  if (!group.response_token_ids) return shadings;
  const behaviour = decode(group.behaviour_logprobs, "float32");
  shadings.set(LOGPROBS, { values: behaviour, label: "behaviour log probability", low: -4, high: 0, reversed: true });
  shadings.set(FED_BACK, fedBack(ratios, behaviour.length));
  for (const [name, column] of Object.entries(group.columns ?? {})) {
    const values = column.shape.length === 1 && column.shape[0] === behaviour.length ? decode(column.values, column.dtype) : null;
    if (!values || values instanceof BigInt64Array) continue;
    shadings.set(name, { values, label: `column ${name}`, ...rangeOf(values) });
    if (name.endsWith("logprobs")) {
      const logRatios = values.map((value, index) => value - behaviour[index]);
      shadings.set(`ratio ${name}`, ratio(logRatios, `ratio of ${name} to behaviour`));
    }
  }
  return shadings;
}

/** As ratios are read: nobody wants to know a logarithm. Twice is as far from one as half. */
function ratio(values, label) {
  return { values, label, low: -TWICE, high: TWICE, diverging: true, show: Math.exp };
}

function fedBack(ratios, count) {
  const values = ratios ? decode(ratios.values, "float16") : null;
  if (values?.length !== count) return { label: `${FED_BACK} (none)`, missing: true };
  return { ...ratio(values, FED_BACK), choice: `${FED_BACK} (policy version ${ratios.policy_version})` };
}

/** Return what there is to say of the ratios that were fed back, or of why there are none. */
export function aboutRatios(ratios) {
  if (!ratios) {
    return (
      "No ratio of each token was fed back for this group, so it cannot be shaded by it. Trainers send those of one group of each step, " +
      "or of all (feedback_log_ratios), and a table keeps the newest 64 MiB. KL and ESS, above, are of the whole group."
    );
  }
  const by = ratios.step === null ? "without a step" : `by step ${ratios.step}`;
  return (
    `Ratio fed back ${by}: how likely policy version ${ratios.policy_version} finds the token, over how likely it was when it was sampled. ` +
    "Tokens without colour were left out of the loss, or have not changed."
  );
}

/** Return an option for each shading. */
export function options(shadings) {
  return [...shadings].map(([name, shading]) =>
    h("option", { value: name, disabled: Boolean(shading?.missing) }, shading ? (shading.choice ?? shading.label) : "nothing"),
  );
}

/** Return the elements of the legend. */
export function legend({ low, high, reversed, diverging, show = (value) => value }) {
  const looks = Array.from({ length: LEVELS }, (_, level) => h("i", { class: diverging ? divergingLook(level) : `t${level}` }));
  const ends = [number(show(low)), number(show(high))];
  if (reversed) ends.reverse();
  if (diverging) [ends[0], ends[1]] = [`less likely, ${ends[0]}`, `${ends[1]}, more likely`];
  return [ends[0], h("span", { "aria-hidden": "true" }, ...looks), ends[1]];
}

/** Return the class of a token. */
export function tokenLook(value, { low, high, reversed, diverging }) {
  if (!Number.isFinite(value)) return "";
  const share = high > low ? Math.max(0, Math.min(1, (value - low) / (high - low))) : 0.5;
  const level = Math.min(LEVELS - 1, Math.floor(share * LEVELS));
  if (diverging) return divergingLook(level);
  return `t${reversed ? LEVELS - 1 - level : level}`;
}

/** Return what a token says when it is pointed at. */
export function tokenTitle(value, { label, show = (it) => it }) {
  return `${label} ${Number.isNaN(value) ? "none: the step did not score this token" : number(show(value))}`;
}

/** Below the middle in one colour, above in the other, the stronger the further away. */
function divergingLook(level) {
  const half = LEVELS / 2;
  return level < half ? `below t${2 * (half - 1 - level)}` : `t${2 * (level - half)}`;
}

function rangeOf(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low && value > -Infinity) low = value;
    if (value > high && value < Infinity) high = value;
  }
  return { low, high };
}
