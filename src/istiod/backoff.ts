/** Delays between connection attempts: exponential with jitter. */
export interface BackoffLimits {
  /** First delay, milliseconds. */
  first: number;
  /** The longest delay, milliseconds. */
  longest: number;
}

/** istiod removes an auto-registered WorkloadEntry 10 s after its connection ends. Delays stay below that. */
export const BACKOFF: BackoffLimits = { first: 100, longest: 5_000 };

/** The delays between attempts, one after another: exponential with jitter. */
export class Backoff {
  readonly #limits: BackoffLimits;
  #ceiling: number;

  constructor(limits: BackoffLimits = BACKOFF) {
    this.#limits = limits;
    this.#ceiling = limits.first;
  }

  /**
   * The next delay, milliseconds: random between half of the current ceiling and the ceiling. The ceiling doubles
   * with each call.
   */
  next(): number {
    const ceiling = this.#ceiling;
    this.#ceiling = Math.min(ceiling * 2, this.#limits.longest);
    return ceiling / 2 + (Math.random() * ceiling) / 2;
  }

  /** Starts again with the first delay. Call it after a connection that held. */
  reset(): void {
    this.#ceiling = this.#limits.first;
  }
}
