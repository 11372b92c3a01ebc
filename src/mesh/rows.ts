/** Numbers of rows by name, for tables with a hundred thousand: a Map takes 60 bytes a name beside the name itself. */

const SEED = 0x811c9dc5;
const PRIME = 0x01000193;
const SMALLEST = 64;
const FREE = 0;
/** A name was here: who looks for another one goes on. */
const GRAVE = 0xffff_ffff;

/** A row is given again after its name is gone. */
export class Rows {
  readonly #names: (string | undefined)[] = [];
  readonly #unused: number[] = [];
  /** By hash, with open addressing: row + 1, FREE or GRAVE. */
  #slots = new Uint32Array(SMALLEST);
  /** Slots that are not free. */
  #taken = 0;

  get size(): number {
    return this.#names.length - this.#unused.length;
  }

  /** The row of a name. */
  find(name: string): number | undefined {
    const slot = this.#slotOf(name);
    return slot === undefined ? undefined : (this.#slots[slot] ?? 0) - 1;
  }

  /** The row of a name, a new one when it has none. */
  add(name: string): number {
    const known = this.find(name);
    if (known !== undefined) return known;
    if ((this.#taken + 1) * 2 > this.#slots.length) this.#rehash();
    const row = this.#unused.pop() ?? this.#names.length;
    this.#names[row] = name;
    this.#place(name, row);
    return row;
  }

  /** Gives the row that the name had. */
  remove(name: string): number | undefined {
    const slot = this.#slotOf(name);
    if (slot === undefined) return undefined;
    const row = (this.#slots[slot] ?? 0) - 1;
    this.#slots[slot] = GRAVE;
    this.#names[row] = undefined;
    this.#unused.push(row);
    return row;
  }

  /** The name of a row; "" without one. */
  name(row: number): string {
    return this.#names[row] ?? "";
  }

  /** All rows with a name, ascending. */
  *[Symbol.iterator](): Generator<number> {
    for (let row = 0; row < this.#names.length; row++) if (this.#names[row] !== undefined) yield row;
  }

  #slotOf(name: string): number | undefined {
    const mask = this.#slots.length - 1;
    for (let slot = hashOf(name) & mask; ; slot = (slot + 1) & mask) {
      const taken = this.#slots[slot] ?? FREE;
      if (taken === FREE) return undefined;
      if (taken !== GRAVE && this.#names[taken - 1] === name) return slot;
    }
  }

  /** The name must not be there. */
  #place(name: string, row: number): void {
    const mask = this.#slots.length - 1;
    let slot = hashOf(name) & mask;
    while (this.#slots[slot] !== FREE) slot = (slot + 1) & mask;
    this.#slots[slot] = row + 1;
    this.#taken++;
  }

  /** Drops the graves, and grows when the names need it. */
  #rehash(): void {
    let length = SMALLEST;
    while (length < (this.size + 1) * 3) length *= 2;
    this.#slots = new Uint32Array(length);
    this.#taken = 0;
    for (const row of this) this.#place(this.name(row), row);
  }
}

function hashOf(name: string): number {
  let hash = SEED;
  for (let i = 0; i < name.length; i++) hash = Math.imul(hash ^ name.charCodeAt(i), PRIME);
  return (hash ^ (hash >>> 15)) >>> 0;
}
