/**
 * A table of records with dense ids that grows without moving one (bpf/maps/chunked.h): an array-of-maps whose
 * inner arrays double in size, each written and read through mmap.
 */
import { BpfMap, FLAG, type Placement, placeInner, unmap } from "../../kernel/maps.ts";
import { atomicAdd } from "../../kernel/net/sockets.ts";

/** Records of the smallest chunk, as in chunked.h. */
const BASE_SHIFT = 8;
const BASE = 1 << BASE_SHIFT;

/** Views over one inner array. Elements lie `stride` bytes apart. */
interface Chunk {
  bytes: Uint8Array;
  words: Uint32Array;
  longs: BigUint64Array;
}

/** Consecutive records as words, for reading a whole table. */
export interface Span {
  /** The first record's id. */
  first: number;
  count: number;
  words: Uint32Array;
  /** Words from one record to the next. */
  step: number;
}

const CHUNK_FLAGS = FLAG.mmapable | FLAG.innerMap;

export class ChunkedTable {
  readonly #outer: BpfMap;
  readonly #name: string;
  readonly #size: number;
  /** Bytes from one record to the next. */
  readonly stride: number;
  /** Absent until the first use. */
  #opened: Chunk[] | undefined;

  /**
   * Opens the present chunks of `outer` (an array-of-maps, which stays the caller's) at the first use: a start adopts a
   * hundred chunks, and needs none of them before istiod's first push. `size` is the record's size in bytes; `name` is the
   * name of new chunks (at most 12 characters). The first use throws KernelError, and Error when records have another size.
   */
  constructor(outer: BpfMap, name: string, size: number) {
    this.#outer = outer;
    this.#name = name;
    this.#size = size;
    this.stride = (size + 7) & ~7;
  }

  /** The number of records. */
  get capacity(): number {
    return BASE * (2 ** this.#chunks.length - 1);
  }

  /** Bytes of the records, as the kernel allocates them. */
  get bytes(): number {
    return this.capacity * this.stride;
  }

  /** Makes room for the ids below `count`; new records are zero. */
  reserve(count: number): void {
    if (count > this.capacity) reserveAll([[this, count]]);
  }

  /** Adds to `placements` new chunks for the ids below `count`, and where they belong. */
  missing(count: number, placements: Placement[]): void {
    let capacity = this.capacity;
    for (let level = this.#chunks.length; capacity < count; level++) {
      placements.push({ outer: this.#outer, key: level, inner: this.#create(level) });
      capacity += BASE << level;
    }
  }

  /** Owns the next chunk, which is in the outer map already. */
  take(inner: BpfMap): void {
    this.#chunks.push(map(inner));
  }

  /** Unmaps the memory. The table then has no records for this process. */
  unmap(): void {
    for (const { bytes } of this.#opened ?? []) unmap(bytes.buffer);
    this.#opened = [];
  }

  /** Opens the chunks now. `outer` may be closed afterwards. Throws as the first use does. */
  open(): this {
    this.#opened ??= this.#read();
    return this;
  }

  get #chunks(): Chunk[] {
    this.#opened ??= this.#read();
    return this.#opened;
  }

  #read(): Chunk[] {
    const chunks: Chunk[] = [];
    const id = new Uint32Array(new ArrayBuffer(4));
    for (let level = 0; this.#outer.lookup(key(level), new Uint8Array(id.buffer)); level++) {
      const inner = BpfMap.fromId(id[0] ?? 0);
      const { valueSize } = inner.info;
      if (valueSize !== this.#size) {
        inner.close();
        throw new Error(
          `the table ${this.#outer.info.name} is not kmesh's: its records have ${valueSize} bytes, not ${this.#size}`,
        );
      }
      chunks.push(map(inner));
    }
    return chunks;
  }

  #create(level: number): BpfMap {
    return BpfMap.create({
      name: `${this.#name}_${level}`,
      type: "array",
      keySize: 4,
      valueSize: this.#size,
      maxEntries: BASE << level,
      flags: CHUNK_FLAGS,
    });
  }

  has(id: number): boolean {
    return id < this.capacity;
  }

  /** The record's own bytes, live: writing them writes the kernel's. Throws RangeError when `id` has no record. */
  record(id: number): Uint8Array {
    const at = this.#offset(id);
    return this.#chunk(id).bytes.subarray(at, at + this.#size);
  }

  /** All records, live. */
  spans(): Span[] {
    const step = this.stride >> 2;
    return this.#chunks.map(({ words }, level) => ({
      first: BASE * (2 ** level - 1),
      count: BASE << level,
      words,
      step,
    }));
  }

  /**
   * The bytes of `count` consecutive records, with padding: live, or a copy if they span two chunks. Throws RangeError when
   * one of them has no record.
   */
  bytesOf(first: number, count: number): Uint8Array {
    const at = this.#offset(first);
    const { bytes } = this.#chunk(first);
    if (at + count * this.stride <= bytes.length) return bytes.subarray(at, at + count * this.stride);
    const copy = new Uint8Array(new ArrayBuffer(count * this.stride));
    for (let i = 0; i < count; i++) copy.set(this.record(first + i), i * this.stride);
    return copy;
  }

  /** Fills the record. */
  write(id: number, bytes: Uint8Array): void {
    this.#chunk(id).bytes.set(bytes, this.#offset(id));
  }

  /** The 32-bit word `at` bytes into the record. */
  word(id: number, at: number): number {
    return this.#chunk(id).words[(this.#offset(id) + at) >> 2] ?? 0;
  }

  setWord(id: number, at: number, value: number): void {
    this.#chunk(id).words[(this.#offset(id) + at) >> 2] = value;
  }

  /** The aligned 8 bytes `at` bytes into the record. */
  long(id: number, at = 0): bigint {
    return this.#chunk(id).longs[(this.#offset(id) + at) >> 3] ?? 0n;
  }

  /** The same as a signed number, because damage may make a count negative. 0 for an id without a record. */
  count(id: number, at: number): number {
    return this.has(id) ? Number(BigInt.asIntN(64, this.long(id, at))) : 0;
  }

  /** Stores the aligned 8 bytes atomically, after all earlier writes. This publishes a record. */
  publish(id: number, value: bigint, at = 0): void {
    Atomics.store(this.#chunk(id).longs, (this.#offset(id) + at) >> 3, value);
  }

  /** Adds to the aligned 8 bytes, which programs may add to at the same time. */
  add(id: number, at: number, change: number): void {
    atomicAdd(this.#chunk(id).bytes.subarray(this.#offset(id) + at), BigInt(change));
  }

  /** Adds to the 32-bit word, which programs may add to at the same time. Gives what it is then. */
  addToWord(id: number, at: number, change: number): number {
    return Atomics.add(this.#chunk(id).words, (this.#offset(id) + at) >> 2, change) + change;
  }

  /** Stores the aligned 8 bytes if they still are `old`, and gives whether they were. */
  replace(id: number, at: number, old: bigint, value: bigint): boolean {
    return Atomics.compareExchange(this.#chunk(id).longs, (this.#offset(id) + at) >> 3, old, value) === old;
  }

  #chunk(id: number): Chunk {
    const chunk = this.#chunks[31 - Math.clz32(id + BASE) - BASE_SHIFT];
    if (!chunk) throw new RangeError(`table ${this.#name} has no record ${id}`);
    return chunk;
  }

  /** The offset of the record in its chunk, bytes. */
  #offset(id: number): number {
    const place = id + BASE;
    return (place - (1 << (31 - Math.clz32(place)))) * this.stride;
  }
}

/** Makes room in several tables at once, so that they wait for the kernel only once. */
export function reserveAll(rooms: readonly (readonly [table: ChunkedTable, count: number])[]): void {
  const grown = rooms.map(([table, count]) => ({ table, count, placements: [] as Placement[] }));
  try {
    for (const { table, count, placements } of grown) table.missing(count, placements);
    placeInner(grown.flatMap(({ placements }) => placements));
  } catch (error) {
    // Usually out of memory: free the new chunks, so that the next attempt has more.
    for (const { placements } of grown) for (const { inner } of placements) inner.close();
    throw error;
  }
  for (const { table, placements } of grown) for (const { inner } of placements) table.take(inner);
}

/** Owns the map. Its mapping outlives the descriptor. */
function map(inner: BpfMap): Chunk {
  let memory: ArrayBuffer;
  try {
    memory = inner.mmap();
  } finally {
    inner.close();
  }
  return {
    bytes: new Uint8Array(memory),
    words: new Uint32Array(memory),
    longs: new BigUint64Array(memory),
  };
}

function key(level: number): Uint8Array {
  return new Uint8Array(Uint32Array.of(level).buffer);
}
