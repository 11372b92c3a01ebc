/**
 * Bytes that all connections together hold for readers that do not read. While the budget is used up, connections give
 * their peers no further credit, so that what is held stays at the budget and one connection window each.
 */
export class Budget {
  readonly #limit: number;
  #used = 0;
  readonly #waiting = new Set<() => void>();

  /** `limit` in bytes. */
  constructor(limit: number) {
    this.#limit = limit;
  }

  get used(): number {
    return this.#used;
  }

  get exhausted(): boolean {
    return this.#used >= this.#limit;
  }

  /** Whether windows may grow: less than half is used. */
  get ample(): boolean {
    return this.#used < this.#limit / 2;
  }

  take(bytes: number): void {
    this.#used += bytes;
  }

  /** Gives bytes back, and calls those who wait when there is room again. */
  release(bytes: number): void {
    this.#used -= bytes;
    if (this.exhausted || this.#waiting.size === 0) return;
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const resume of waiting) resume();
  }

  /** Calls `resume` once when there is room. */
  wait(resume: () => void): void {
    this.#waiting.add(resume);
  }

  forget(resume: () => void): void {
    this.#waiting.delete(resume);
  }
}
