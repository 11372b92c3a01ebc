/** Runs of consecutive ids, for records of variable length (slot lines, name lines). First fit by exact size. */
export class Runs {
  #next: number;
  /** Free runs by their length. */
  #free = new Map<number, number[]>();

  /** `used` are the runs in use already: first id and length. */
  constructor(used: Iterable<readonly [first: number, length: number]> = []) {
    const sorted = [...used].sort(([a], [b]) => a - b);
    this.#next = 0;
    for (const [first, length] of sorted) {
      if (first > this.#next) this.give(this.#next, first - this.#next);
      this.#next = Math.max(this.#next, first + length);
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
