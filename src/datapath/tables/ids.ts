/** Dense ids of one table. The smallest free id is given first, so that tables stay small. */
export class Ids {
  #next: number;
  #free: number[];

  /** `taken` is not 0 for each id in use; `first` is the smallest id to give. */
  constructor(first = 0, taken: ArrayLike<number> = []) {
    this.#next = taken.length;
    while (this.#next > first && !taken[this.#next - 1]) this.#next--;
    this.#next = Math.max(this.#next, first);
    this.#free = [];
    for (let id = this.#next - 1; id >= first; id--) if (!taken[id]) this.#free.push(id);
  }

  /** The next free id that `may` accepts. */
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

  /** Frees an id. The caller must ensure that no reader uses it. */
  give(id: number): void {
    this.#free.push(id);
  }

  /** The number of ids that a table must hold. */
  get bound(): number {
    return this.#next;
  }
}
