// The one clock of the page: refreshes the view every two seconds, while somebody looks and nobody paused it.

const EVERY_MS = 2000;

export class Live {
  #refresh = null;
  #timer = 0;
  #running = null;
  #again = false;
  paused = false;

  /** told(outcome) hears of each refresh: null, or the error. */
  constructor(told) {
    this.told = told;
    document.addEventListener("visibilitychange", () => this.#wake());
  }

  /** Refresh by this function from now on: at once, then again and again. */
  show(refresh) {
    this.#running?.abort();
    this.#running = null;
    this.#refresh = refresh;
    return this.now();
  }

  pause(paused) {
    this.paused = paused;
    this.#wake();
  }

  get sleeping() {
    return this.paused || document.hidden;
  }

  /** Refresh now; where one is under way, again after it. */
  async now() {
    clearTimeout(this.#timer);
    if (this.#running) {
      this.#again = true;
      return;
    }
    const running = new AbortController();
    this.#running = running;
    try {
      await this.#refresh?.(running.signal);
      if (this.#running === running) this.told(null);
    } catch (error) {
      if (this.#running === running) this.told(error);
    }
    if (this.#running !== running) return; // another view is shown
    this.#running = null;
    if (this.#again) {
      this.#again = false;
      await this.now();
    } else if (!this.sleeping) this.#timer = setTimeout(() => this.now(), EVERY_MS);
  }

  #wake() {
    clearTimeout(this.#timer);
    if (!this.sleeping) this.now();
  }
}
