/** BPF maps by file descriptor. Keys and values are bytes in the machine's order, as the BPF programs see them. */
import { readFileSync } from "node:fs";
import { cString, ffi } from "../runtime/ffi.ts";
import { Descriptor } from "./descriptor.ts";
import { check, ENOTSUPP, ERRNO, KernelError } from "./error.ts";
import { fixedText, infoOf } from "./info.ts";
import { native } from "./native.ts";

/** The values of enum bpf_map_type that kmesh uses. */
const TYPES = {
  hash: 1,
  array: 2,
  "prog-array": 3,
  "percpu-hash": 5,
  "percpu-array": 6,
  "lru-hash": 9,
  "lru-percpu-hash": 10,
  "lpm-trie": 11,
  "array-of-maps": 12,
  "hash-of-maps": 13,
  sockmap: 15,
  "cgroup-storage": 19,
  "sk-storage": 24,
  ringbuf: 27,
} as const;

export type MapType = keyof typeof TYPES;

const TYPE_NAMES = new Map<number, MapType>(
  Object.entries(TYPES).map(([name, number]) => [number, name as MapType]),
);

/** enum bpf_map_type. */
export function mapTypeNumber(type: MapType | number): number {
  return typeof type === "number" ? type : TYPES[type];
}

/** Flags for a map's creation (BPF_F_...). */
export const FLAG = {
  noPrealloc: 1,
  readOnly: 8,
  writeOnly: 16,
  /** Programs can't write it. */
  rdonlyProg: 128,
  wronlyProg: 256,
  mmapable: 1024,
  /** An array whose size may differ from the template's when it is an inner map. */
  innerMap: 4096,
} as const;

export interface MapInfo {
  id: number;
  /** The kernel's name of the map: 15 bytes at most. */
  name: string;
  /** The number when the type is not in TYPES. */
  type: MapType | number;
  keySize: number;
  valueSize: number;
  maxEntries: number;
  flags: number;
}

export interface MapSpec {
  /** At most 15 bytes. */
  name: string;
  type: MapType;
  keySize: number;
  valueSize: number;
  maxEntries: number;
  /** FLAG values, or-ed. */
  flags?: number;
  /** The template of a map-in-map. */
  inner?: BpfMap;
}

const MODES = { any: 0n, new: 1n, exists: 2n } as const;

/** Most elements in one batch call: more gain nothing, and the kernel is busy for a bounded time. */
const BATCH = 65536;
/** Elements of the first batch when a whole map is read: most maps hold far fewer than they could. */
const FIRST_BATCH = 256;

export class BpfMap extends Descriptor {
  readonly info: MapInfo;
  /** Bytes of one value in `lookup`, `update` and batches. For per-CPU maps: one aligned value per possible CPU. */
  readonly valueBytes: number;
  #batch = true;
  /** Elements when the whole map was last read. */
  #lastCount = 0;

  private constructor(fd: number) {
    super(fd);
    this.info = readInfo(fd);
    this.valueBytes = perCpu(this.info.type)
      ? roundUp8(this.info.valueSize) * possibleCpus()
      : this.info.valueSize;
  }

  /**
   * Creates a map. A map that needs BTF ("sk-storage", "cgroup-storage", spin locks in values) comes from a
   * BpfObject. Throws KernelError: EINVAL for types that the kernel does not know, EPERM without CAP_BPF.
   */
  static create(spec: MapSpec): BpfMap {
    if (Buffer.byteLength(spec.name) > 15) throw new RangeError(`the map name ${spec.name} is over 15 bytes`);
    const { type, keySize, valueSize, maxEntries, flags = 0, inner } = spec;
    const fd = native().kmesh_map_create(
      TYPES[type],
      cString(spec.name),
      keySize,
      valueSize,
      maxEntries,
      flags,
      inner === undefined ? -1 : inner.fd,
    );
    return BpfMap.adopt(check(fd, "bpf_map_create", spec.name));
  }

  /** Opens a pinned map. Throws KernelError: ENOENT when nothing is pinned there. */
  static fromPin(path: string): BpfMap {
    return BpfMap.adopt(check(native().bpf_obj_get(cString(path)), "bpf_obj_get", path));
  }

  /** Opens a loaded map by its id. Throws KernelError: ENOENT, or EPERM without CAP_SYS_ADMIN. */
  static fromId(id: number): BpfMap {
    return BpfMap.adopt(check(native().bpf_map_get_fd_by_id(id), "bpf_map_get_fd_by_id", String(id)));
  }

  /** Takes ownership of a map's file descriptor. Closes it and throws when it is no map. */
  static adopt(fd: number): BpfMap {
    try {
      return new BpfMap(fd);
    } catch (error) {
      native().kmesh_close(fd);
      throw error;
    }
  }

  protected get title(): string {
    return `the map ${this.info.name}`;
  }

  /** Fills `value`; false when the key is missing. The value of a map-in-map is the inner map's id. */
  lookup(key: Uint8Array, value: Uint8Array): boolean {
    this.#measure(key, value, 1);
    const result = native().bpf_map_lookup_elem(this.fd, key, value);
    if (result === -ERRNO.ENOENT) return false;
    if (result < 0) throw this.#error("bpf_map_lookup_elem", result);
    return true;
  }

  /**
   * Writes one element. The value of a map-in-map is the inner map's file descriptor.
   * Throws KernelError: E2BIG when the map is full, EEXIST ("new"), ENOENT ("exists").
   */
  update(key: Uint8Array, value: Uint8Array, mode: "any" | "new" | "exists" = "any"): void {
    this.#measure(key, value, 1);
    const result = native().bpf_map_update_elem(this.fd, key, value, MODES[mode]);
    if (result < 0) throw this.#error("bpf_map_update_elem", result);
  }

  /** False when the key was missing. */
  delete(key: Uint8Array): boolean {
    this.#measure(key, undefined, 1);
    const result = native().bpf_map_delete_elem(this.fd, key);
    if (result === -ERRNO.ENOENT) return false;
    if (result < 0) throw this.#error("bpf_map_delete_elem", result);
    return true;
  }

  /**
   * Writes `count` elements, packed in `keys` and `values`, in as few system calls as the kernel allows. Not atomic:
   * after an error the first ones are written. Throws KernelError like `update`.
   */
  updateBatch(keys: Uint8Array, values: Uint8Array, count: number): void {
    this.#measure(keys, values, count);
    const { keySize } = this.info;
    const wanted = new Uint32Array(new ArrayBuffer(4));
    let done = 0;
    while (this.#batch && done < count) {
      wanted[0] = Math.min(BATCH, count - done);
      const result = native().bpf_map_update_batch(
        this.fd,
        keys.subarray(done * keySize),
        values.subarray(done * this.valueBytes),
        wanted,
        null,
      );
      if (result === -ENOTSUPP) this.#batch = false;
      else if (result < 0) throw this.#error("bpf_map_update_batch", result);
      else done += wanted[0];
    }
    for (; done < count; done++)
      this.update(
        keys.subarray(done * keySize, (done + 1) * keySize),
        values.subarray(done * this.valueBytes, (done + 1) * this.valueBytes),
      );
  }

  /** Reads the whole map: `count` packed keys, and their values. Concurrent changes may be missing. */
  entries(): { keys: Uint8Array; values: Uint8Array; count: number } {
    return (this.#batch ? this.#entriesByBatch() : undefined) ?? this.#entriesOneByOne();
  }

  /**
   * Maps a `FLAG.mmapable` array into this process, shared and writable, for as long as the process lives, or until
   * `unmap`. Elements lie `roundUp(valueSize, 8)` bytes apart. An aligned 8-byte store is seen by programs whole or not at all.
   * Throws KernelError: ENOTSUPP or EINVAL for other maps, EPERM for read-only or frozen ones.
   */
  mmap(): ArrayBuffer {
    const bytes = roundUp8(this.info.valueSize) * this.info.maxEntries;
    const address = new BigUint64Array(new ArrayBuffer(8));
    const result = native().kmesh_mmap(this.fd, BigInt(bytes), address);
    if (result < 0) throw this.#error("mmap", result);
    return ffi.memory(address[0] ?? 0n, bytes);
  }

  #entriesByBatch(): { keys: Uint8Array; values: Uint8Array; count: number } | undefined {
    const { keySize, maxEntries } = this.info;
    // A little more than the last time, since growing copies all that was read.
    const expected = this.#lastCount + (this.#lastCount >> 4);
    let size = Math.min(FIRST_BATCH + expected, Math.max(maxEntries, 1));
    let keys = new Uint8Array(new ArrayBuffer(size * keySize));
    let values = new Uint8Array(new ArrayBuffer(size * this.valueBytes));
    // The cursor: a bucket's number for hashes, a key for the others.
    const cursor = new Uint8Array(new ArrayBuffer(Math.max(keySize, 8)));
    const wanted = new Uint32Array(new ArrayBuffer(4));
    let count = 0;
    for (let first = true; ; ) {
      if (count === size) {
        size *= 2;
        keys = grown(keys, size * keySize);
        values = grown(values, size * this.valueBytes);
      }
      wanted[0] = Math.min(BATCH, size - count);
      const result = native().bpf_map_lookup_batch(
        this.fd,
        first ? null : cursor,
        cursor,
        keys.subarray(count * keySize),
        values.subarray(count * this.valueBytes),
        wanted,
        null,
      );
      if (result === -ENOTSUPP) {
        this.#batch = false;
        return undefined;
      }
      // One bucket has more elements than the buffer; the cursor did not advance.
      if (result === -ERRNO.ENOSPC) {
        size *= 2;
        keys = grown(keys, size * keySize);
        values = grown(values, size * this.valueBytes);
        continue;
      }
      if (result < 0 && result !== -ERRNO.ENOENT) throw this.#error("bpf_map_lookup_batch", result);
      count += wanted[0];
      if (result === -ERRNO.ENOENT) break;
      first = false;
    }
    this.#lastCount = count;
    return {
      keys: keys.subarray(0, count * keySize),
      values: values.subarray(0, count * this.valueBytes),
      count,
    };
  }

  #entriesOneByOne(): { keys: Uint8Array; values: Uint8Array; count: number } {
    const { keySize } = this.info;
    let size = 64;
    let keys = new Uint8Array(new ArrayBuffer(size * keySize));
    let values = new Uint8Array(new ArrayBuffer(size * this.valueBytes));
    let count = 0;
    let previous: Uint8Array | null = null;
    const key = new Uint8Array(new ArrayBuffer(keySize));
    for (;;) {
      const result = native().bpf_map_get_next_key(this.fd, previous, key);
      if (result === -ERRNO.ENOENT) break;
      if (result < 0) throw this.#error("bpf_map_get_next_key", result);
      if (count === size) {
        size *= 2;
        keys = grown(keys, size * keySize);
        values = grown(values, size * this.valueBytes);
      }
      const value = values.subarray(count * this.valueBytes, (count + 1) * this.valueBytes);
      // Deleted since: not an entry.
      if (this.lookup(key, value)) keys.set(key, count++ * keySize);
      previous = key.slice();
    }
    return {
      keys: keys.subarray(0, count * keySize),
      values: values.subarray(0, count * this.valueBytes),
      count,
    };
  }

  /** The kernel copies as many bytes as the map's sizes say, even beyond a shorter buffer. */
  #measure(keys: Uint8Array, values: Uint8Array | undefined, count: number): void {
    if (keys.length < this.info.keySize * count || (values && values.length < this.valueBytes * count))
      throw new RangeError(
        `map ${this.info.name}: ${count} x (${this.info.keySize} + ${this.valueBytes}) bytes needed, ` +
          `${keys.length} + ${values?.length ?? 0} given`,
      );
  }

  #error(call: string, result: number): KernelError {
    const full = -result === ERRNO.E2BIG ? `full at ${this.info.maxEntries} entries` : "";
    return new KernelError(call, -result, this.info.name, full);
  }
}

/** Unmaps memory from `BpfMap.mmap`. A later access crashes the process. */
export function unmap(memory: ArrayBufferLike): void {
  const bytes = new Uint8Array(memory);
  check(native().kmesh_munmap(bytes, BigInt(bytes.length)), "munmap", `${bytes.length} bytes`);
}

/** An inner map, and its index in an outer map. */
export interface Placement {
  outer: BpfMap;
  key: number;
  inner: BpfMap;
}

/**
 * Writes inner maps into arrays of maps, concurrently: the kernel waits for a grace period (some 10 ms) after each
 * such update, and the waits overlap. Not atomic. Throws KernelError.
 */
export function placeInner(placements: readonly Placement[]): void {
  const BUNCH = 64;
  for (let at = 0; at < placements.length; at += BUNCH) {
    const bunch = placements.slice(at, at + BUNCH);
    const fds = Uint32Array.from(bunch.flatMap(({ outer, key, inner }) => [outer.fd, key, inner.fd]));
    const bytes = new Uint8Array(fds.buffer);
    check(
      native().kmesh_place_inner(bytes, bunch.length),
      "bpf_map_update_elem",
      bunch[0]?.outer.info.name ?? "",
    );
  }
}

function grown(bytes: Uint8Array<ArrayBuffer>, size: number): Uint8Array<ArrayBuffer> {
  const larger = new Uint8Array(new ArrayBuffer(size));
  larger.set(bytes);
  return larger;
}

function roundUp8(size: number): number {
  return (size + 7) & ~7;
}

function perCpu(type: MapType | number): boolean {
  return type === "percpu-array" || type === "percpu-hash" || type === "lru-percpu-hash";
}

/** Number of possible CPUs: a per-CPU map has so many values per key. */
function possibleCpus(): number {
  const last = readFileSync("/sys/devices/system/cpu/possible", "utf8").trim().split(/[-,]/).at(-1);
  return Number(last) + 1;
}

/** struct bpf_map_info. */
function readInfo(fd: number): MapInfo {
  const bytes = infoOf(fd, 88, "map");
  const [type = 0, id = 0, keySize = 0, valueSize = 0, maxEntries = 0, flags = 0] = new Uint32Array(
    bytes,
    0,
    6,
  );
  return {
    id,
    name: fixedText(new Uint8Array(bytes, 24, 16)),
    type: TYPE_NAMES.get(type) ?? type,
    keySize,
    valueSize,
    maxEntries,
    flags,
  };
}
