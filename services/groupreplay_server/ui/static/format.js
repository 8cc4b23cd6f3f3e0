// Numbers, sizes and times for people.

/** Return a number with about three digits. */
export function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "string") return value; // NaN and infinities come as words
  const size = Math.abs(value);
  if (size >= 10000) return compact(value);
  if (Number.isInteger(value)) return String(value);
  if (size !== 0 && size < 1e-6) return value < 0 ? "> -1e-6" : "< 1e-6";
  if (size !== 0 && size < 0.001) return value.toExponential(1);
  return String(Number(value.toPrecision(digits)));
}

function compact(value) {
  for (const [unit, of] of [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (Math.abs(value) >= of) return `${Number((value / of).toPrecision(3))}${unit}`;
  }
  return String(value);
}

/** Return a share in percent. */
export function percent(share) {
  return share === null || share === undefined ? "–" : `${Number((100 * share).toPrecision(3))} %`;
}

/** Return a size in bytes. */
export function bytes(size) {
  for (const [unit, of] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (size >= of) return `${Number((size / of).toPrecision(3))} ${unit}`;
  }
  return `${size} B`;
}

/** Return a span of seconds. */
export function span(seconds) {
  if (seconds < 1) return `${Math.max(0, Math.round(seconds * 1000))} ms`;
  if (seconds < 100) return `${Math.round(seconds)} s`;
  if (seconds < 6000) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

let ahead = null; // by which the clock of this machine is ahead of the service's, in milliseconds

/** Take note of what the service's clock showed a moment ago. */
export function noteClock(serviceMs) {
  ahead = Math.min(ahead ?? Infinity, Date.now() - serviceMs);
}

/** Return what the service's clock shows now, as far as it is known. */
export function now() {
  return Date.now() - (ahead ?? 0);
}

/** Return how long ago a Unix time in milliseconds was. */
export function ago(ms) {
  if (!ms) return "never";
  return now() - ms < 1000 ? "just now" : `${span((now() - ms) / 1000)} ago`;
}

/** Return a wall clock time. */
export function clock(ms) {
  return new Date(ms).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
}

/** Return "1 group" or "2 groups". */
export function plural(count, word) {
  return `${number(count)} ${word}${count === 1 ? "" : "s"}`;
}

/** Return the mean of numbers, or null. */
export function mean(values) {
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
}
