/** What several owners may want under one key: a frontend's address, a service's name. Mostly it is one. */

interface Claim<T> {
  owner: string;
  value: T;
}

export class Claims<T> {
  readonly #claims = new Map<string, Claim<T> | Claim<T>[]>();
  readonly #compare: (one: string, other: string) => number;

  /** `compare` orders owners, negative: the first one wins. By text where it is not given. */
  constructor(compare: (one: string, other: string) => number = byText) {
    this.#compare = compare;
  }

  /** Sets the owner's claim of a key. */
  put(key: string, owner: string, value: T): void {
    const known = this.#claims.get(key);
    if (known === undefined || (!Array.isArray(known) && known.owner === owner)) {
      this.#claims.set(key, { owner, value });
      return;
    }
    const others = this.#of(key).filter((each) => each.owner !== owner);
    this.#set(key, [...others, { owner, value }]);
  }

  drop(key: string, owner: string): void {
    this.#set(
      key,
      this.#of(key).filter((each) => each.owner !== owner),
    );
  }

  /** The values, ordered by owner: the first one wins. */
  get(key: string): readonly T[] {
    const claims = this.#of(key);
    const ordered = claims.length < 2 ? claims : claims.toSorted((a, b) => this.#compare(a.owner, b.owner));
    return ordered.map(({ value }) => value);
  }

  #of(key: string): readonly Claim<T>[] {
    const known = this.#claims.get(key);
    if (known === undefined) return [];
    return Array.isArray(known) ? known : [known];
  }

  #set(key: string, claims: Claim<T>[]): void {
    const [first] = claims;
    if (first === undefined) this.#claims.delete(key);
    else if (claims.length === 1) this.#claims.set(key, first);
    else this.#claims.set(key, claims);
  }
}

function byText(one: string, other: string): number {
  return one < other ? -1 : one > other ? 1 : 0;
}
