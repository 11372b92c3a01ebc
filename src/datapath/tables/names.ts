/** Names of clusters and services in the kernel: text by id, and ids by text when an agent starts. */
import type { ChunkedTable } from "./chunked-table.ts";
import { ExtentAllocator } from "./extent-allocator.ts";
import { Ids } from "./ids.ts";
import * as layout from "./layout.gen.ts";

const LINE = layout.name_line.size;
const { first_line: FIRST_LINE, length: LENGTH } = layout.name_ref.fields;

/** A buffer for one line of the table. */
const line = new Uint8Array(LINE);
const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** The bytes of all names, shared by the name spaces. */
export class NameLines {
  readonly table: ChunkedTable;
  readonly #runs: ExtentAllocator;

  /** `spaces` are the tables whose names are stored already. */
  constructor(table: ChunkedTable, spaces: readonly ChunkedTable[]) {
    this.table = table;
    const taken = new Uint8Array(table.capacity);
    for (const refs of spaces)
      eachName(refs, (_, first, length) => taken.fill(1, first, first + linesOf(length)));
    this.#runs = new ExtentAllocator(taken);
  }

  write(bytes: Uint8Array): number {
    const lines = linesOf(bytes.length);
    const first = this.#runs.take(lines);
    this.table.reserve(this.#runs.bound);
    for (let i = 0; i < lines; i++) {
      line.fill(0);
      line.set(lines === 1 ? bytes : bytes.subarray(i * LINE, (i + 1) * LINE));
      this.table.write(first + i, line);
    }
    return first;
  }

  free(first: number, length: number): void {
    this.#runs.give(first, linesOf(length));
  }
}

/** Name -> id of one kind of thing. */
export class NameSpace {
  readonly #refs: ChunkedTable;
  readonly #lines: NameLines;
  readonly #ids: Ids;
  readonly #byName: Map<string, number>;

  readonly #mayGive: (id: number) => boolean;

  /**
   * `first` is the smallest id to give. Ids that are not 0 in `occupied` must not be given yet, with or without a name; ids
   * that `mayGive` refuses must not be given now.
   */
  constructor(
    refs: ChunkedTable,
    lines: NameLines,
    first: number,
    occupied: Uint8Array = new Uint8Array(),
    mayGive: (id: number) => boolean = () => true,
  ) {
    this.#mayGive = mayGive;
    this.#refs = refs;
    this.#lines = lines;
    this.#byName = readNames(refs, lines.table);
    const taken = new Uint8Array(Math.max(refs.capacity, occupied.length));
    taken.set(occupied);
    for (const id of this.#byName.values()) taken[id] = 1;
    this.#ids = new Ids(first, taken);
  }

  id(name: string): number | undefined {
    return this.#byName.get(name);
  }

  names(): IterableIterator<string> {
    return this.#byName.keys();
  }

  ids(): IterableIterator<number> {
    return this.#byName.values();
  }

  /** The number of ids that a parallel table must hold. */
  get bound(): number {
    return this.#ids.bound;
  }

  /** Gives a new name its id. */
  add(name: string): number {
    const bytes = encoder.encode(name);
    const id = this.#ids.take(this.#mayGive);
    const first = this.#lines.write(bytes);
    this.#refs.reserve(this.#ids.bound);
    this.#refs.publish(id, BigInt(first) | (BigInt(bytes.length) << 32n));
    this.#byName.set(name, id);
    return id;
  }

  /** Removes the name. The id stays unused until `recycle`. */
  remove(name: string): void {
    const id = this.#byName.get(name);
    if (id === undefined) return;
    this.#byName.delete(name);
    this.#lines.free(this.#refs.word(id, FIRST_LINE.offset), this.#refs.word(id, LENGTH.offset));
    this.#refs.publish(id, 0n);
  }

  /** Frees the id. No table, program or socket may use it. */
  recycle(id: number): void {
    this.#ids.give(id);
  }
}

/** All names in `refs`, with their ids. */
export function readNames(refs: ChunkedTable, lines: ChunkedTable): Map<string, number> {
  const names = new Map<string, number>();
  eachName(refs, (id, first, length) => {
    names.set(decoder.decode(lines.bytesOf(first, linesOf(length)).subarray(0, length)), id);
  });
  return names;
}

/** The name of an id; undefined without one. */
export function nameOf(refs: ChunkedTable, lines: ChunkedTable, id: number): string | undefined {
  const length = refs.has(id) ? refs.word(id, LENGTH.offset) : 0;
  if (length === 0) return undefined;
  const first = refs.word(id, FIRST_LINE.offset);
  return decoder.decode(lines.bytesOf(first, linesOf(length)).subarray(0, length));
}

/** By id: the first line of the name, and its length in bytes. */
function eachName(refs: ChunkedTable, visit: (id: number, line: number, length: number) => void): void {
  for (const { first, count, words, step } of refs.spans()) {
    for (let i = 0; i < count; i++) {
      const length = words[i * step + (LENGTH.offset >> 2)] ?? 0;
      if (length > 0) visit(first + i, words[i * step + (FIRST_LINE.offset >> 2)] ?? 0, length);
    }
  }
}

/** The number of lines for new names of these lengths. */
export function linesOfNames(names: Iterable<string>): number {
  let lines = 0;
  for (const name of names) lines += linesOf(name.length);
  return lines;
}

function linesOf(length: number): number {
  return Math.ceil(length / LINE);
}
