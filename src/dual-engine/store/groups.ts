/** Values by key, several at one key. Most keys have one value, which then needs no set of its own. */
export class Groups {
  readonly #groups = new Map<string, string | Set<string>>();

  /** The number of keys. */
  get size(): number {
    return this.#groups.size;
  }

  /** The values of a key, in the order in which they came; [] without any. */
  get(key: string): Iterable<string> {
    const known = this.#groups.get(key);
    if (known === undefined) return NOTHING;
    return known instanceof Set ? known : [known];
  }

  add(key: string, value: string): void {
    const known = this.#groups.get(key);
    if (known === undefined) this.#groups.set(key, value);
    else if (known instanceof Set) known.add(value);
    else if (known !== value) this.#groups.set(key, new Set([known, value]));
  }

  delete(key: string, value: string): void {
    const known = this.#groups.get(key);
    if (known instanceof Set) {
      known.delete(value);
      const [left] = known;
      if (left !== undefined && known.size === 1) this.#groups.set(key, left);
    } else if (known === value) this.#groups.delete(key);
  }
}

const NOTHING: readonly never[] = [];
