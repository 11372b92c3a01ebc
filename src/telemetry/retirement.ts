/**
 * Moves rows into sums by name, so that no counter ever decreases: rows whose service, cluster or endpoint is about to mean
 * something else, and rows that were not used for long (ageing.ts). A move has four steps and stores absolute values. An agent
 * that is killed after any step leaves a record in the kernel (map `retirement`), and the next agent repeats the steps by it.
 */

import * as layout from "../datapath/tables/layout.gen.ts";
import type { Maps, MayReuse } from "../datapath/tables/tables.ts";
import { ERRNO, KernelError } from "../kernel/error.ts";
import { fetchAtomics } from "../kernel/features.ts";
import { waitForGracePeriod } from "../kernel/grace-period.ts";
import { type BpfMap, unmap } from "../kernel/maps.ts";
import { BpfObject } from "../kernel/object.ts";
import { REASONS } from "../mesh/model.ts";
import { asset } from "../runtime/assets.ts";
import {
  addCounters,
  closedOf,
  decodeCounters,
  decodeKey,
  encodeCounters,
  type FlowKey,
  type FlowRow,
  readRows,
  viewOf,
} from "./counters/rows.ts";
import { type Labels, labelBytes } from "./labels.ts";

const RECORD = layout.retirement;
const { retired_row: ROW, retired_key: KEY, enums } = layout;
const DIRECTION = enums.flow_direction;
/** Lifetime of the cached rows, milliseconds. Shorter than the quarantine of ids. */
const FRESH = 1_000;

export type RetirementStep = "recorded" | "pending" | "stored" | "deleted";

export class Retirement {
  readonly #maps: Maps;
  readonly #labels: Labels;
  readonly #step: (name: RetirementStep) => void;
  readonly #record: Uint8Array;
  readonly #pending: BigUint64Array;
  #rows: FlowRow[] = [];
  #used = new Set<string>();
  #readAt = Number.NEGATIVE_INFINITY;

  /**
   * Completes what an earlier agent left half done. The maps stay the caller's. `step` is called after each step: a test ends
   * there. Throws KernelError.
   */
  constructor(maps: Maps, labels: Labels, step: (name: RetirementStep) => void = () => undefined) {
    this.#step = step;
    this.#maps = maps;
    this.#labels = labels;
    const memory = maps.retirement.mmap();
    this.#record = new Uint8Array(memory);
    this.#pending = new BigUint64Array(memory, RECORD.fields.pending.offset, 1);
    if (this.#pending[0] === 1n) this.#complete();
  }

  /** Unmaps the memory. */
  close(): void {
    unmap(this.#record.buffer);
  }

  /** For Tables.mayReuse: moves the rows with the id. False while one of them has a live connection. */
  readonly mayReuse: MayReuse = (kind, id) => {
    const may = this.#mayReuse(kind, id);
    this.#labels.changed(kind, id);
    return may;
  };

  #mayReuse(...[kind, id]: Parameters<MayReuse>): boolean {
    if (performance.now() - this.#readAt > FRESH) this.#read();
    // A start asks this for each of 100,000 new endpoints.
    if (this.#used.size === 0 || !this.#used.has(`${kind} ${id}`)) return true;
    const carriers = this.#rows.filter(({ key }) => carries(key, kind, id));
    if (!carriers.every((row) => this.#retire(row))) return false;
    this.#used.delete(`${kind} ${id}`);
    if (kind !== "cluster") this.#labels.forget(kind, id);
    if (kind === "service") this.#dropLatency(id);
    return true;
  }

  /**
   * Moves rows in which programs may begin to count at any moment. They are marked first (bpf/ageing.bpf.c), and rows that
   * have a live connection after that stay. `source` is the source under which they go on; without it their own. Waits for a
   * grace period. Returns the number of moved rows. Throws KernelError.
   */
  retire(rows: readonly FlowRow[], source?: number): number {
    if (rows.length === 0) return 0;
    let moved = 0;
    const marker = Marker.open();
    try {
      const maps = new Set(rows.map(({ key }) => this.#mapOf(key.direction)));
      marker.choose(rows);
      for (const map of maps) marker.walk(map);
      waitForGracePeriod();
      for (const row of rows) if (this.#retire(row, source)) moved++;
      marker.dismiss(rows);
      for (const map of maps) marker.walk(map);
    } finally {
      marker.close();
    }
    this.#readAt = Number.NEGATIVE_INFINITY;
    return moved;
  }

  /** Removes marks that an earlier agent left. Throws KernelError. */
  unmark(): void {
    const marker = Marker.open();
    try {
      for (const map of [this.#maps.flow_rows, this.#maps.caller_rows]) marker.walk(map);
    } finally {
      marker.close();
    }
  }

  #mapOf(direction: FlowKey["direction"]): BpfMap {
    return direction === "in" ? this.#maps.caller_rows : this.#maps.flow_rows;
  }

  #read(): void {
    this.#rows = readRows(this.#maps.flow_rows);
    this.#used = new Set(
      this.#rows.flatMap(({ key }) => [
        `service ${key.service}`,
        ...(key.direction === "out" ? [`cluster ${key.cluster}`, `endpoint ${key.endpoint}`] : []),
      ]),
    );
    this.#readAt = performance.now();
  }

  /** False when the row has a live connection. */
  #retire({ key, bytes: bytesOf }: FlowRow, source = key.source): boolean {
    const bytes = bytesOf();
    const value = new Uint8Array(new ArrayBuffer(layout.flow_row.size));
    // The row may be gone, or may have changed since it was read: a service's connections outlive its name.
    if (!this.#mapOf(key.direction).lookup(bytes, value)) return true;
    const counters = decodeCounters(viewOf(value), 0);
    if (counters.opened !== closedOf(counters)) return false;
    const sum = new Uint8Array(new ArrayBuffer(ROW.size));
    const to = this.#entryFor({ ...key, source }, sum);
    if (!to) return false;
    addCounters(counters, decodeCounters(viewOf(sum), ROW.fields.sum.offset));
    encodeCounters(counters, viewOf(sum), ROW.fields.sum.offset);
    this.#record.set(bytes, RECORD.fields.from.offset);
    this.#record.set(to, RECORD.fields.to.offset);
    this.#record.set(sum, RECORD.fields.sum.offset);
    this.#step("recorded");
    Atomics.store(this.#pending, 0, 1n);
    this.#step("pending");
    this.#complete();
    return true;
  }

  /**
   * Gives the key of the entry in retired_rows that a row is added to, and copies the entry to `sum`. It is made here, so
   * that the record can always be carried out. The first one of a direction brings the entry with the label 0 along, which
   * takes what finds no room. Undefined when there is no room for that either.
   */
  #entryFor(key: FlowKey, sum: Uint8Array): Uint8Array | undefined {
    const { retired_rows } = this.#maps;
    const label = this.#labelOf(key);
    const other = retiredKey(0, 0n, key.direction);
    const to = retiredKey(key.source, hashOf(label), key.direction);
    const named = new Uint8Array(new ArrayBuffer(ROW.size));
    named.set(labelBytes(label), ROW.fields.label.offset);
    if (retired_rows.lookup(to, sum)) return to;
    insert(retired_rows, other, new Uint8Array(new ArrayBuffer(ROW.size)));
    insert(retired_rows, to, named);
    if (retired_rows.lookup(to, sum)) return to;
    return retired_rows.lookup(other, sum) ? other : undefined;
  }

  /** Does what the record says. Idempotent. */
  #complete(): void {
    const part = (field: "from" | "to" | "sum") => {
      const { offset, size } = RECORD.fields[field];
      return this.#record.slice(offset, offset + size);
    };
    this.#maps.retired_rows.update(part("to"), part("sum"));
    this.#step("stored");
    const from = part("from");
    const key = decodeKey(viewOf(from), from, 0);
    if (key) this.#mapOf(key.direction).delete(from);
    this.#step("deleted");
    Atomics.store(this.#pending, 0, 0n);
  }

  /** Service, or the local port of an accepted connection; newline; workload, or the reason of a refusal. */
  #labelOf(key: FlowKey): string {
    if (key.direction === "in") return `${key.port}\n${this.#labels.caller(key.remote)}`;
    const service = this.#labels.service(key.service) ?? "";
    if (key.direction === "refused") return `${service}\n${REASONS[key.endpoint] ?? "internal"}`;
    return `${service}\n${key.direction === "out" ? this.#labels.workload(key.endpoint, key.service) : ""}`;
  }

  /** Removes the histograms of a service that is gone. */
  #dropLatency(service: number): void {
    const { keys, count } = this.#maps.latency_rows.entries();
    const view = viewOf(keys);
    const { size, fields } = layout.latency_key;
    for (let i = 0; i < count; i++) {
      const direction = view.getUint32(i * size + fields.direction.offset, true);
      if (
        direction === DIRECTION.FLOW_OUT &&
        view.getUint32(i * size + fields.service.offset, true) === service
      )
        this.#maps.latency_rows.delete(keys.subarray(i * size, (i + 1) * size));
    }
  }
}

/** The programs of bpf/ageing.bpf.c over the choice of one agent. Owns program and choice. */
class Marker {
  readonly #object: BpfObject;

  private constructor(object: BpfObject) {
    this.#object = object;
  }

  /** Throws KernelError. */
  static open(): Marker {
    const object = BpfObject.open(asset(fetchAtomics() ? "ageing.bpf.o" : "ageing.compat.bpf.o"), "ageing");
    try {
      object.load();
    } catch (error) {
      object.close();
      throw error;
    }
    return new Marker(object);
  }

  choose(rows: readonly FlowRow[]): void {
    const { size } = layout.flow_key;
    const keys = new Uint8Array(new ArrayBuffer(rows.length * size));
    rows.forEach((row, i) => {
      keys.set(row.bytes(), i * size);
    });
    const values = new Uint8Array(new ArrayBuffer(rows.length * 4));
    const map = this.#object.map("chosen");
    try {
      map.updateBatch(keys, values, rows.length);
    } finally {
      map.close();
    }
  }

  dismiss(rows: readonly FlowRow[]): void {
    const map = this.#object.map("chosen");
    try {
      for (const row of rows) map.delete(row.bytes());
    } finally {
      map.close();
    }
  }

  /** Marks the chosen rows, and no others. */
  walk(map: BpfMap): void {
    const program = this.#object.program("mark_rows");
    try {
      program.walk(map);
    } finally {
      program.close();
    }
  }

  close(): void {
    this.#object.close();
  }
}

const DIRECTIONS = {
  out: DIRECTION.FLOW_OUT,
  in: DIRECTION.FLOW_IN,
  refused: DIRECTION.FLOW_REFUSED,
  passed: DIRECTION.FLOW_PASSED,
} as const;

function retiredKey(source: number, label: bigint, direction: FlowKey["direction"]): Uint8Array {
  const key = new Uint8Array(new ArrayBuffer(KEY.size));
  const view = viewOf(key);
  view.setBigUint64(KEY.fields.source.offset, BigInt(source), true);
  view.setBigUint64(KEY.fields.label.offset, label, true);
  view.setUint8(KEY.fields.direction.offset, DIRECTIONS[direction]);
  return key;
}

/** Inserts a key. Ignores an existing key and a full map. Throws KernelError for other errors. */
function insert(map: BpfMap, key: Uint8Array, value: Uint8Array): void {
  try {
    map.update(key, value, "new");
  } catch (error) {
    if (!(error instanceof KernelError) || ![ERRNO.EEXIST, ERRNO.E2BIG].includes(error.errno)) throw error;
  }
}

function carries(key: FlowKey, kind: Parameters<MayReuse>[0], id: number): boolean {
  if (kind === "service") return key.service === id;
  return key.direction === "out" && key[kind] === id;
}

/** FNV-1a. */
function hashOf(text: string): bigint {
  let hash = 0xcbf29ce484222325n;
  for (const byte of new TextEncoder().encode(text)) {
    hash ^= BigInt(byte);
    hash = BigInt.asUintN(64, hash * 0x100000001b3n);
  }
  return hash;
}

/** The counts that a pending record would move; for tests. */
export function pendingOf(maps: Maps): FlowKey | undefined {
  const value = new Uint8Array(new ArrayBuffer(RECORD.size));
  maps.retirement.lookup(new Uint8Array(4), value);
  if (viewOf(value).getBigUint64(0, true) !== 1n) return undefined;
  return decodeKey(viewOf(value), value, RECORD.fields.from.offset);
}
