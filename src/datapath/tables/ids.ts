/** Dense ids of one table: given once, the smallest free one first, so that tables stay small. */
export class Ids {
  #next: number;
  #free: number[];

  /** `taken` has a number other than 0 for each id in use already; `first` is the smallest id that may be given. */
  constructor(first = 0, taken: ArrayLike<number> = []) {
    this.#next = taken.length;
    while (this.#next > first && !taken[this.#next - 1]) this.#next--;
    this.#next = Math.max(this.#next, first);
    this.#free = [];
    for (let id = this.#next - 1; id >= first; id--) if (!taken[id]) this.#free.push(id);
  }

  take(): number {
    return this.#free.pop() ?? this.#next++;
  }

  /** The id may be taken again. Giving one back that some reader still uses is the caller's fault. */
  give(id: number): void {
    this.#free.push(id);
  }

  /** How many ids a table must have room for. */
  get bound(): number {
    return this.#next;
  }
}
