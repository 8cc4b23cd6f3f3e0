// The steps of a table that this page knows: reads what is new, and starts again when steps were undone.

import { tableHistory } from "./api.js";
import { noteClock } from "./format.js";

const LATE_STEPS = 32; // may be committed after newer ones
const MOST_STEPS = 5000; // that a page keeps while it is open

export class StepHistory {
  #steps = new Map();
  #undone = null;

  constructor(at, limit) {
    this.at = at;
    this.limit = limit;
    this.latest = null;
  }

  get steps() {
    return [...this.#steps.values()].sort((one, other) => one.step - other.step);
  }

  /** Read what is new; return all steps. */
  async refresh(signal) {
    const newest = Math.max(-1, ...this.#steps.keys());
    let read = await tableHistory(this.at, { limit: this.limit, after_step: this.#after(newest) }, signal);
    const lost = (read.newest_step ?? -1) < newest; // of a Redis that lost them
    if (this.#undone !== null && (lost || read.steps_undone !== this.#undone)) {
      this.#steps.clear();
      read = await tableHistory(this.at, { limit: this.limit }, signal);
    }
    this.#undone = read.steps_undone;
    for (const step of read.steps) this.#steps.set(step.step, step);
    for (const old of this.steps.slice(0, -MOST_STEPS)) this.#steps.delete(old.step);
    this.latest = read;
    noteClock(read.taken_at_ms);
    return this.steps;
  }

  #after(newest) {
    return newest > LATE_STEPS ? newest - LATE_STEPS : undefined;
  }
}
