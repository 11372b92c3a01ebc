/**
 * Allocates extents of consecutive ids, for records of variable length (slot lines, name lines). Free neighbours merge, so
 * that many short extents can become a long one, and a free extent at the end shortens the table.
 */
export class ExtentAllocator {
  #next = 0;
  /** Free extents: length by first id, and first id by end (the id after the last). No two are adjacent. */
  readonly #lengths = new Map<number, number>();
  readonly #firsts = new Map<number, number>();
  /** First ids by length. */
  readonly #bySize = new Map<number, Set<number>>();

  /** `taken` is not 0 for each id in use. */
  constructor(taken: ArrayLike<number> = []) {
    let used = taken.length;
    while (used > 0 && !taken[used - 1]) used--;
    this.#next = used;
    for (let id = 0, free = 0; id < used; id++) {
      if (!taken[id]) continue;
      if (id > free) this.#add(free, id - free);
      free = id + 1;
    }
  }

  /** The first id of `length` consecutive ones: the shortest free extent that is long enough, or new ids. */
  take(length: number): number {
    const size = this.#bySize.has(length) ? length : this.#shortestAbove(length);
    const [first] = (size !== undefined && this.#bySize.get(size)) || [];
    if (first === undefined || size === undefined) {
      const fresh = this.#next;
      this.#next += length;
      return fresh;
    }
    this.#remove(first, size);
    if (size > length) this.#add(first + length, size - length);
    return first;
  }

  /** Frees ids. */
  give(first: number, length: number): void {
    if (length === 0) return;
    let from = first;
    let to = first + length;
    const before = this.#firsts.get(from);
    if (before !== undefined) {
      this.#remove(before, from - before);
      from = before;
    }
    const after = this.#lengths.get(to);
    if (after !== undefined) {
      this.#remove(to, after);
      to += after;
    }
    if (to === this.#next) this.#next = from;
    else this.#add(from, to - from);
  }

  /** The number of ids that a table must hold. */
  get bound(): number {
    return this.#next;
  }

  /** The lengths are few: a mesh's clusters have some dozens of sizes. */
  #shortestAbove(length: number): number | undefined {
    let best: number | undefined;
    for (const size of this.#bySize.keys())
      if (size > length && (best === undefined || size < best)) best = size;
    return best;
  }

  #add(first: number, length: number): void {
    this.#lengths.set(first, length);
    this.#firsts.set(first + length, first);
    const extents = this.#bySize.get(length);
    if (extents) extents.add(first);
    else this.#bySize.set(length, new Set([first]));
  }

  #remove(first: number, length: number): void {
    this.#lengths.delete(first);
    this.#firsts.delete(first + length);
    const extents = this.#bySize.get(length);
    extents?.delete(first);
    if (extents?.size === 0) this.#bySize.delete(length);
  }
}
