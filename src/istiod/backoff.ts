/** Delays between connection attempts: exponential with jitter. */
export interface BackoffLimits {
  /** First delay, milliseconds. */
  first: number;
  /** No delay is longer, milliseconds. */
  longest: number;
}

/** istiod forgets an auto-registered machine after 10 s: being back within that needs short delays. */
export const BACKOFF: BackoffLimits = { first: 100, longest: 5_000 };

export class Backoff {
  readonly #limits: BackoffLimits;
  #ceiling: number;

  constructor(limits: BackoffLimits = BACKOFF) {
    this.#limits = limits;
    this.#ceiling = limits.first;
  }

  /** The next delay in milliseconds: between half of and the whole of a ceiling that doubles each time. */
  next(): number {
    const ceiling = this.#ceiling;
    this.#ceiling = Math.min(ceiling * 2, this.#limits.longest);
    return ceiling / 2 + (Math.random() * ceiling) / 2;
  }

  /** Starts over after a connection that held. */
  reset(): void {
    this.#ceiling = this.#limits.first;
  }
}
