/** Names of clusters and services in the kernel: ids to text, and back when an agent starts. */
import type { ChunkedTable } from "./chunked.ts";
import { Ids } from "./ids.ts";
import * as layout from "./layout.gen.ts";
import { Runs } from "./runs.ts";

const LINE = layout.name_line.size;
const { first_line: FIRST_LINE, length: LENGTH } = layout.name_ref.fields;

/** One line on its way into the table. */
const line = new Uint8Array(LINE);
const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** The bytes of all names, shared by the name spaces. */
export class NameLines {
  readonly table: ChunkedTable;
  readonly #runs: Runs;

  /** `used` are the runs that names occupy already. */
  constructor(table: ChunkedTable, used: Iterable<readonly [number, number]>) {
    this.table = table;
    this.#runs = new Runs(used);
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

  /** `first` is the smallest id to give; `occupied` are ids without a name that must not be given yet. */
  constructor(refs: ChunkedTable, lines: NameLines, first: number, occupied: Iterable<number> = []) {
    this.#refs = refs;
    this.#lines = lines;
    this.#byName = readNames(refs, lines.table);
    this.#ids = new Ids(first, [...this.#byName.values(), ...occupied]);
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

  /** How many ids a table beside this one must have room for. */
  get bound(): number {
    return this.#ids.bound;
  }

  /** Gives a new name its id. */
  add(name: string): number {
    const bytes = encoder.encode(name);
    const id = this.#ids.take();
    const first = this.#lines.write(bytes);
    this.#refs.reserve(this.#ids.bound);
    this.#refs.publish(id, BigInt(first) | (BigInt(bytes.length) << 32n));
    this.#byName.set(name, id);
    return id;
  }

  /** Takes the name back; the id stays out of use until `recycle`. */
  remove(name: string): void {
    const id = this.#byName.get(name);
    if (id === undefined) return;
    this.#byName.delete(name);
    this.#lines.free(this.#refs.word(id, FIRST_LINE.offset), this.#refs.word(id, LENGTH.offset));
    this.#refs.publish(id, 0n);
  }

  /** No table, program or socket knows the id any more. */
  recycle(id: number): void {
    this.#ids.give(id);
  }
}

/** All names that `refs` holds, with their ids. */
export function readNames(refs: ChunkedTable, lines: ChunkedTable): Map<string, number> {
  const names = new Map<string, number>();
  for (let id = 0; id < refs.capacity; id++) {
    const length = refs.word(id, LENGTH.offset);
    if (length > 0) names.set(readName(lines, refs.word(id, FIRST_LINE.offset), length), id);
  }
  return names;
}

/** The runs of name lines that `refs` points at. */
export function usedNameLines(refs: ChunkedTable): [first: number, length: number][] {
  const runs: [number, number][] = [];
  for (let id = 0; id < refs.capacity; id++) {
    const length = refs.word(id, LENGTH.offset);
    if (length > 0) runs.push([refs.word(id, FIRST_LINE.offset), linesOf(length)]);
  }
  return runs;
}

function readName(lines: ChunkedTable, first: number, length: number): string {
  const bytes = new Uint8Array(length);
  for (let at = 0, line = first; at < length; at += LINE, line++) {
    bytes.set(lines.record(line).subarray(0, Math.min(LINE, length - at)), at);
  }
  return decoder.decode(bytes);
}

/** Lines that names of these lengths take, were they all new. */
export function linesOfNames(names: Iterable<string>): number {
  let lines = 0;
  for (const name of names) lines += linesOf(name.length);
  return lines;
}

function linesOf(length: number): number {
  return Math.ceil(length / LINE);
}
