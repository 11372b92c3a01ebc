/** ExtentAllocator of consecutive ids, for records of variable length (slot lines, name lines). First fit by exact size. */
export class ExtentAllocator {
  #next: number;
  /** Free runs by their length. */
  #free = new Map<number, number[]>();

  /** `taken` has a number other than 0 for each id in use already. */
  constructor(taken: ArrayLike<number> = []) {
    this.#next = 0;
    for (let id = 0; id < taken.length; id++) {
      if (!taken[id]) continue;
      this.give(this.#next, id - this.#next);
      this.#next = id + 1;
    }
  }

  /** The first id of `length` consecutive ones. */
  take(length: number): number {
    const first = this.#free.get(length)?.pop();
    if (first !== undefined) return first;
    for (const [size, runs] of this.#free) {
      if (size <= length) continue;
      const whole = runs.pop();
      if (whole === undefined) continue;
      this.give(whole + length, size - length);
      return whole;
    }
    const fresh = this.#next;
    this.#next += length;
    return fresh;
  }

  give(first: number, length: number): void {
    if (length === 0) return;
    const runs = this.#free.get(length);
    if (runs) runs.push(first);
    else this.#free.set(length, [first]);
  }

  /** How many ids a table must have room for. */
  get bound(): number {
    return this.#next;
  }
}
