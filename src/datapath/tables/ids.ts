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

  /** The next one for which `may` says yes; those for which it does not stay free. */
  take(may: (id: number) => boolean = () => true): number {
    const refused: number[] = [];
    for (;;) {
      const id = this.#free.pop() ?? this.#next++;
      if (!may(id)) {
        refused.push(id);
        continue;
      }
      this.#free.push(...refused.reverse());
      return id;
    }
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
