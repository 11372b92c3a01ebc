/**
 * The name table in the kernel (bpf/maps/names.h), written by difference. A name keeps its id as long as it exists. One
 * store replaces its addresses.
 */

import { randomBytes } from "node:crypto";
import { ChunkedTable } from "../datapath/tables/chunked-table.ts";
import { DeferredFree } from "../datapath/tables/deferred-free.ts";
import { ExtentAllocator } from "../datapath/tables/extent-allocator.ts";
import { Ids } from "../datapath/tables/ids.ts";
import { innerMap, installInnerMap, withRoomFor } from "../datapath/tables/inner-map.ts";
import { BpfMap, FLAG } from "../kernel/maps.ts";
import { formatAddress, isV4, parseAddress } from "../mesh/address.ts";
import type { Entry } from "./entries.ts";
import * as layout from "./layout.gen.ts";
import { labelCount, nameOfWire, wireName } from "./wire.ts";

export type NameMaps = Readonly<Record<keyof typeof layout.maps, BpfMap>>;

const {
  answers: ANSWERS,
  long_name: LONG,
  length: LENGTH,
  kind: KIND,
  wildcard: WILDCARD,
  name: NAME,
} = layout.name_entry.fields;
const KINDS = layout.enums.entry_kind;
const FLAGS = layout.enums.names_flag;
const ENTRY = layout.name_entry.size;
const INLINE = NAME.count;
const LONG_SIZE = layout.long_name.size;
const MASK = (1n << 64n) - 1n;
/** As in names.h. */
const SALT = { none: 0n, wildcard: 0x9e3779b97f4a7c15n, search: 0xc2b2ae3d27d4eb4fn } as const;
const SMALLEST_HASH = 1024;
/** Most distinct label counts of wildcards. */
const MOST_DEPTHS = 8;
const MOST_ADDRESSES = 0xffff;

interface Placed {
  id: number;
  key: bigint;
  kind: Entry["kind"];
  /** Canonical addresses, IPv4 first; for a pointer, the target id. */
  first: number;
  v4: number;
  v6: number;
  long: number;
  depth: number;
}

/** The result of a change. */
export interface Written {
  /** Stores, insertions and deletions that are visible to programs. */
  writes: number;
  skipped: { name: string; reason: string }[];
}

/** Owns the inner maps that it opens; the outer maps stay the caller's. */
export class NameTable {
  readonly #maps: NameMaps;
  readonly #settings: BigUint64Array;
  readonly #entries: ChunkedTable;
  readonly #longNames: ChunkedTable;
  readonly #addresses: ChunkedTable;
  readonly #deferred: DeferredFree;
  #hash: BpfMap;
  #placed = new Map<string, Placed>();
  readonly #byId = new Map<number, string>();
  readonly #keys = new Set<bigint>();
  #ids = new Ids(0);
  #longIds = new Ids(1);
  #runs = new ExtentAllocator();
  /** The number of wildcards and exclusions by label count. */
  readonly #depths = new Map<number, number>();

  /** Reads the maps; `report` gets errors of freeing records. Throws KernelError, and RangeError for inconsistent tables. */
  constructor(maps: NameMaps, report: (error: unknown) => void = () => {}) {
    this.#deferred = new DeferredFree(report);
    this.#maps = maps;
    this.#settings = new BigUint64Array(maps.names_settings.mmap());
    if (this.#word("multiplier") === 0n) this.#draw();
    this.#entries = new ChunkedTable(maps.name_entries, "name_entries", ENTRY);
    this.#longNames = new ChunkedTable(maps.long_names, "long_names", LONG_SIZE);
    this.#addresses = new ChunkedTable(maps.name_addresses, "name_addr", layout.address.size);
    this.#hash = innerMap(maps.names) ?? installInnerMap(maps.names, createHash(SMALLEST_HASH));
    this.#readBack();
  }

  get size(): number {
    return this.#placed.size;
  }

  /** The names in the table. */
  names(): IterableIterator<string> {
    return this.#placed.keys();
  }

  /** The entry of a name in the kernel. */
  get(name: string): Entry | undefined {
    const placed = this.#placed.get(name);
    return placed && this.#entryOf(name, placed);
  }

  /** The entry with this id. */
  byId(id: number): Entry | undefined {
    const name = this.#byId.get(id);
    return name === undefined ? undefined : this.get(name);
  }

  /** Bytes of its records in the kernel; each element of the hash takes about 72 more. */
  get bytes(): number {
    return this.#entries.bytes + this.#longNames.bytes + this.#addresses.bytes;
  }

  set flags(flags: number) {
    this.#publish("flags", BigInt(flags));
  }

  get flags(): number {
    return Number(this.#word("flags"));
  }

  /** Labels of the search domain with an entry; 0 without one. */
  set searchDepth(labels: number) {
    this.#publish("search_depth", BigInt(labels));
  }

  /** Publishes entries: new, changed, or removed (undefined). */
  apply(changes: Iterable<readonly [name: string, entry: Entry | undefined]>): Written {
    const report: Written = { writes: 0, skipped: [] };
    const adds: { name: string; entry: Entry }[] = [];
    const pointers: { name: string; entry: Entry & { kind: "pointer" } }[] = [];
    const removals: string[] = [];
    for (const [name, entry] of changes) {
      const placed = this.#placed.get(name);
      if (entry === undefined || (placed && placed.kind !== entry.kind)) {
        if (placed) removals.push(name);
        if (entry === undefined) continue;
      }
      if (entry.kind === "pointer") pointers.push({ name, entry });
      else if (!placed || placed.kind !== entry.kind) adds.push({ name, entry });
      else if (entry.kind === "addresses") report.writes += this.#change(placed, entry.addresses);
    }
    // Remove an entry whose kind changed first: it is a reverse name or an exclusion, not a service.
    for (const name of removals) this.#remove(name);
    report.writes += removals.length + this.#add(adds, report);
    const fresh: { name: string; entry: Entry }[] = [];
    for (const { name, entry } of pointers) {
      const placed = this.#placed.get(name);
      const target = this.#placed.get(entry.target)?.id;
      if (!placed) fresh.push({ name, entry });
      else if (target !== undefined && placed.first !== target) {
        placed.first = target;
        this.#entries.publish(placed.id, BigInt(target), ANSWERS.offset);
        report.writes++;
      }
    }
    report.writes += this.#add(fresh, report);
    this.#publishDepths();
    return report;
  }

  /** Waits until unpublished records may be reused. */
  close(): void {
    this.#deferred.close();
    this.#hash.close();
  }

  #add(list: readonly { name: string; entry: Entry }[], report: Written): number {
    const made: Placed[] = [];
    try {
      for (const { name, entry } of list) {
        const reason = this.#place(name, entry, made);
        if (reason !== undefined) report.skipped.push({ name, reason });
      }
      if (made.length === 0) return 0;
      // Before the keys: a wildcard is found only if its depth is searched.
      this.#publishDepths(true);
      this.#hash = withRoomFor(this.#placed.size, this.#maps.names, this.#hash, createHash);
      const keys = BigUint64Array.from(made, ({ key }) => key);
      const values = BigUint64Array.from(made, ({ key, id }) => ((key >> 32n) << 32n) | BigInt(id));
      this.#hash.updateBatch(new Uint8Array(keys.buffer), new Uint8Array(values.buffer), made.length);
    } catch (error) {
      // The hash may have a part of the keys. Remove all, so that the next attempt adds them again.
      for (const { id } of made) this.#remove(this.#byId.get(id) ?? "");
      throw error;
    }
    return made.length;
  }

  /** Writes the record without publishing it. Returns the reason if that is impossible. */
  #place(name: string, entry: Entry, made: Placed[]): string | undefined {
    const wildcard = name.startsWith("*.");
    const wire = wireName(wildcard ? name.slice(2) : entry.kind === "search" ? name.slice(1) : name);
    if (!wire) return "it is not a valid DNS name";
    const salt = entry.kind === "search" ? SALT.search : wildcard ? SALT.wildcard : SALT.none;
    const key = this.#hashOf(wire) ^ salt;
    if (this.#keys.has(key)) return "another name has the same hash";
    const depth = wildcard ? labelCount(wire) : 0;
    if (wildcard && !this.#depths.has(depth) && this.#depths.size >= MOST_DEPTHS)
      return `there are wildcards of ${MOST_DEPTHS} other depths`;
    const target = entry.kind === "pointer" ? this.#placed.get(entry.target)?.id : 0;
    if (target === undefined) return "the name it points at is not there";
    const id = this.#ids.take();
    const long = wire.length > INLINE ? this.#longIds.take() : 0;
    this.#entries.reserve(this.#ids.bound);
    const run = entry.kind === "addresses" ? this.#run(entry.addresses) : { first: target, v4: 0, v6: 0 };
    record.fill(0);
    record.set(wire.subarray(0, INLINE), NAME.offset);
    record[LENGTH.offset] = wire.length;
    record[KIND.offset] = NUMBER_OF[entry.kind];
    record[WILDCARD.offset] = wildcard ? 1 : 0;
    const view = new DataView(record.buffer);
    view.setBigUint64(ANSWERS.offset, wordOf(run), true);
    view.setUint32(LONG.offset, long, true);
    this.#entries.write(id, record);
    if (long > 0) {
      this.#longNames.reserve(this.#longIds.bound);
      longRecord.fill(0);
      longRecord.set(wire.subarray(INLINE));
      this.#longNames.write(long, longRecord);
    }
    const placed: Placed = { id, key, kind: entry.kind, ...run, long, depth };
    this.#know(name, placed);
    made.push(placed);
    return undefined;
  }

  #know(name: string, placed: Placed): void {
    this.#placed.set(name, placed);
    this.#byId.set(placed.id, name);
    this.#keys.add(placed.key);
    if (placed.depth > 0) this.#depths.set(placed.depth, (this.#depths.get(placed.depth) ?? 0) + 1);
  }

  /** Returns 1 if the value changed. */
  #change(placed: Placed, addresses: readonly string[]): number {
    const before = this.#addressesOf(placed);
    const sorted = inOrder(addresses);
    if (before.length === sorted.length && before.every((address, i) => address === sorted[i])) return 0;
    const { first, v4, v6 } = placed;
    Object.assign(placed, this.#run(addresses));
    this.#entries.publish(placed.id, wordOf(placed), ANSWERS.offset);
    this.#deferred.defer(() => this.#runs.give(first, v4 + v6));
    return 1;
  }

  #remove(name: string): void {
    const placed = this.#placed.get(name);
    if (!placed) return;
    this.#hash.delete(new Uint8Array(BigUint64Array.of(placed.key).buffer));
    this.#placed.delete(name);
    this.#byId.delete(placed.id);
    this.#keys.delete(placed.key);
    const left = (this.#depths.get(placed.depth) ?? 1) - 1;
    if (left > 0) this.#depths.set(placed.depth, left);
    else this.#depths.delete(placed.depth);
    const { id, long, first, v4, v6 } = placed;
    this.#deferred.defer(() => {
      // Clear it, or a start would regard it as used.
      this.#entries.record(id).fill(0);
      this.#ids.give(id);
      if (long > 0) this.#longIds.give(long);
      this.#runs.give(first, placed.kind === "addresses" ? v4 + v6 : 0);
    });
  }

  /** Writes addresses without publishing them. */
  #run(addresses: readonly string[]): { first: number; v4: number; v6: number } {
    const sorted = inOrder(addresses).slice(0, MOST_ADDRESSES);
    if (sorted.length === 0) return { first: 0, v4: 0, v6: 0 };
    const first = this.#runs.take(sorted.length);
    this.#addresses.reserve(this.#runs.bound);
    sorted.forEach((address, i) => {
      this.#addresses.write(first + i, parseAddress(address) ?? new Uint8Array(16));
    });
    const v4 = sorted.filter(isV4).length;
    return { first, v4, v6: sorted.length - v4 };
  }

  #addressesOf({ first, v4, v6 }: Placed): string[] {
    return Array.from({ length: v4 + v6 }, (_, i) => formatAddress(this.#addresses.record(first + i)));
  }

  #entryOf(name: string, placed: Placed): Entry {
    if (placed.kind === "addresses") return { kind: "addresses", name, addresses: this.#addressesOf(placed) };
    if (placed.kind === "pointer")
      return { kind: "pointer", name, target: this.#byId.get(placed.first) ?? "" };
    return { kind: placed.kind, name };
  }

  #hashOf(wire: Uint8Array): bigint {
    return hashOf(wire, this.#word("multiplier"));
  }

  #readBack(): void {
    const { keys, values, count: held } = this.#hash.entries();
    const hashes = new BigUint64Array(keys.slice(0, held * 8).buffer);
    const ids = new BigUint64Array(values.slice(0, held * 8).buffer);
    const taken = new Uint8Array(this.#entries.capacity);
    const takenLong = new Uint8Array(this.#longNames.capacity);
    const takenAddresses = new Uint8Array(this.#addresses.capacity);
    for (let i = 0; i < held; i++) {
      const id = Number((ids[i] ?? 0n) & 0xffffffffn);
      if (id >= this.#entries.capacity)
        throw new RangeError(`the table of names has no room for its entry ${id}`);
      const bytes = this.#entries.record(id);
      const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
      const length = bytes[LENGTH.offset] ?? 0;
      const long = view.getUint32(LONG.offset, true);
      if (length > INLINE && (long === 0 || long >= this.#longNames.capacity))
        throw new RangeError(`the table of names lacks the rest of entry ${id}'s name`);
      const wire = new Uint8Array(length);
      wire.set(bytes.subarray(NAME.offset, NAME.offset + Math.min(length, INLINE)));
      if (length > INLINE) wire.set(this.#longNames.record(long).subarray(0, length - INLINE), INLINE);
      const kind = KIND_OF[bytes[KIND.offset] ?? 0];
      if (!kind) throw new RangeError(`the table of names has an entry ${id} of no kind`);
      const wildcard = bytes[WILDCARD.offset] === 1;
      const word = view.getBigUint64(ANSWERS.offset, true);
      const count = Number((word >> 32n) & 0xffffn) + Number(word >> 48n);
      const first = Number(word & 0xffffffffn);
      if (kind === "addresses" && first + count > this.#addresses.capacity)
        throw new RangeError(`the table of names lacks addresses of entry ${id}`);
      const placed: Placed = {
        id,
        key: hashes[i] ?? 0n,
        kind,
        first,
        v4: Number((word >> 32n) & 0xffffn),
        v6: Number(word >> 48n),
        long,
        depth: wildcard ? labelCount(wire) : 0,
      };
      this.#know(`${wildcard ? "*." : kind === "search" ? "/" : ""}${nameOfWire(wire)}`, placed);
      taken[id] = 1;
      if (long > 0) takenLong[long] = 1;
      if (kind === "addresses") takenAddresses.fill(1, placed.first, placed.first + placed.v4 + placed.v6);
    }
    this.#ids = new Ids(0, taken);
    this.#longIds = new Ids(1, takenLong);
    this.#runs = new ExtentAllocator(takenAddresses);
  }

  /** `growing`: only add depths. */
  #publishDepths(growing = false): void {
    const found = new Set([...this.#depths.keys()]);
    if (growing)
      for (let word = this.#word("wildcard_depths"); word > 0n; word >>= 8n) found.add(Number(word & 0xffn));
    const sorted = [...found].sort((a, b) => b - a).slice(0, MOST_DEPTHS);
    this.#publish(
      "wildcard_depths",
      sorted.reduce((word, depth, i) => word | (BigInt(depth) << BigInt(8 * i)), 0n),
    );
  }

  #draw(): void {
    const multiplier = randomBytes(8).readBigUInt64LE() | 1n;
    // Newton's method: an odd number starts with three correct bits, and each step doubles them.
    let inverse = multiplier;
    for (let i = 0; i < 5; i++) inverse = (inverse * (2n - multiplier * inverse)) & MASK;
    this.#publish("inverse", inverse & MASK);
    this.#publish("multiplier", multiplier);
  }

  #word(field: SettingsField): bigint {
    return this.#settings[layout.names_settings.fields[field].offset >> 3] ?? 0n;
  }

  #publish(field: SettingsField, value: bigint): void {
    const at = layout.names_settings.fields[field].offset >> 3;
    if (this.#settings[at] !== value) Atomics.store(this.#settings, at, value);
  }
}

type SettingsField = Exclude<keyof typeof layout.names_settings.fields, "reserved">;

const NUMBER_OF: Readonly<Record<Entry["kind"], number>> = {
  addresses: KINDS.ENTRY_ADDRESSES,
  pointer: KINDS.ENTRY_POINTER,
  pass: KINDS.ENTRY_PASS,
  search: KINDS.ENTRY_SEARCH,
};
const KIND_OF: Readonly<Record<number, Entry["kind"]>> = Object.fromEntries(
  Object.entries(NUMBER_OF).map(([kind, number]) => [number, kind as Entry["kind"]]),
);

export const NAME_FLAGS = FLAGS;

const record = new Uint8Array(new ArrayBuffer(ENTRY));
const longRecord = new Uint8Array(new ArrayBuffer(LONG_SIZE));

/**
 * The sum of byte i times M^i, mod 2^64, computed in halves of 32 bits by products of 16 bits. A bigint for each byte would
 * take most of the time of a table with 100,000 names.
 */
export function hashOf(wire: Uint8Array, multiplier: bigint): bigint {
  const factor = Number(multiplier & 0xffffffffn);
  const factorHigh = Number(multiplier >> 32n) | 0;
  const f0 = factor & 0xffff;
  const f1 = factor >>> 16;
  let low = 0;
  let high = 0;
  for (let i = wire.length - 1; i >= 0; i--) {
    const a0 = low & 0xffff;
    const a1 = low >>> 16;
    const p00 = a0 * f0;
    const p01 = a0 * f1;
    const p10 = a1 * f0;
    const middle = (p00 >>> 16) + (p01 & 0xffff) + (p10 & 0xffff);
    const carry = a1 * f1 + (p01 >>> 16) + (p10 >>> 16) + (middle >>> 16);
    high = (carry + (Math.imul(low, factorHigh) >>> 0) + (Math.imul(high, factor) >>> 0)) >>> 0;
    low = ((((middle & 0xffff) << 16) >>> 0) | (p00 & 0xffff)) >>> 0;
    low += wire[i] ?? 0;
    if (low > 0xffffffff) {
      low -= 0x100000000;
      high = (high + 1) >>> 0;
    }
  }
  return (BigInt(high) << 32n) | BigInt(low);
}

function wordOf({ first, v4, v6 }: { first: number; v4: number; v6: number }): bigint {
  return BigInt(first) | (BigInt(v4) << 32n) | (BigInt(v6) << 48n);
}

function inOrder(addresses: readonly string[]): readonly string[] {
  if (addresses.length < 2) return addresses;
  return [...addresses.filter(isV4), ...addresses.filter((address) => !isV4(address))];
}

function createHash(maxEntries: number): BpfMap {
  return BpfMap.create({
    name: "names",
    type: "hash",
    keySize: 8,
    valueSize: 8,
    maxEntries,
    flags: FLAG.noPrealloc,
  });
}
