/**
 * Rows whose service, cluster or endpoint is about to mean something else are moved into sums by name, so that no counter
 * ever goes back. Each move is four steps, and what is to be stored is absolute: an agent that is killed after any of them
 * leaves a record in the kernel (map `retirement`), by which the next one does the same steps again.
 */

import * as layout from "../datapath/tables/layout.gen.ts";
import type { Maps, MayReuse } from "../datapath/tables/tables.ts";
import { unmap } from "../kernel/maps.ts";
import { type Labels, labelBytes } from "./labels.ts";
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
} from "./rows.ts";

const RECORD = layout.retirement;
const { retired_row: ROW, retired_key: KEY, enums } = layout;
const DIRECTION = enums.flow_direction;
/** What was read that long ago is read again, milliseconds. An id that may be reused has rested for longer. */
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
   * Completes what an agent before left half done. The maps stay the caller's. `step` hears of each step when it is done: a
   * test ends there. Throws KernelError.
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

  /** Lets go of the memory. */
  close(): void {
    unmap(this.#record.buffer);
  }

  /** For Tables.mayReuse: moves the rows that carry the id. False while one of them has a live connection. */
  readonly mayReuse: MayReuse = (kind, id) => {
    const may = this.#mayReuse(kind, id);
    this.#labels.changed(kind, id);
    return may;
  };

  #mayReuse(...[kind, id]: Parameters<MayReuse>): boolean {
    if (performance.now() - this.#readAt > FRESH) this.#read();
    if (!this.#used.has(`${kind} ${id}`)) return true;
    const carriers = this.#rows.filter(({ key }) => carries(key, kind, id));
    if (!carriers.every((row) => this.#retire(row))) return false;
    this.#used.delete(`${kind} ${id}`);
    if (kind !== "cluster") this.#labels.forget(kind, id);
    if (kind === "service") this.#dropLatency(id);
    return true;
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

  /** False when a connection of it lives. */
  #retire({ key, bytes }: FlowRow): boolean {
    const value = new Uint8Array(new ArrayBuffer(layout.flow_row.size));
    // It may be gone already, and it may have changed since it was read: a service's connections outlive its name.
    if (!this.#maps.flow_rows.lookup(bytes, value)) return true;
    const counters = decodeCounters(viewOf(value), 0);
    if (counters.opened !== closedOf(counters)) return false;
    const label = this.#labelOf(key);
    const to = new Uint8Array(new ArrayBuffer(KEY.size));
    const toView = viewOf(to);
    toView.setBigUint64(KEY.fields.source.offset, BigInt(key.source), true);
    toView.setBigUint64(KEY.fields.label.offset, hashOf(label), true);
    toView.setUint8(KEY.fields.direction.offset, DIRECTIONS[key.direction]);
    const sum = new Uint8Array(new ArrayBuffer(ROW.size));
    if (this.#maps.retired_rows.lookup(to, sum))
      addCounters(counters, decodeCounters(viewOf(sum), ROW.fields.sum.offset));
    else sum.set(labelBytes(label), ROW.fields.label.offset);
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

  /** Does what the record says. Doing it twice is doing it once. */
  #complete(): void {
    const part = (field: "from" | "to" | "sum") => {
      const { offset, size } = RECORD.fields[field];
      return this.#record.slice(offset, offset + size);
    };
    this.#maps.retired_rows.update(part("to"), part("sum"));
    this.#step("stored");
    this.#maps.flow_rows.delete(part("from"));
    this.#step("deleted");
    Atomics.store(this.#pending, 0, 0n);
  }

  /** Service, newline, workload. */
  #labelOf(key: FlowKey): string {
    const service = this.#labels.service(key.service) ?? "";
    return `${service}\n${key.direction === "out" ? this.#labels.workload(key.endpoint) : ""}`;
  }

  /** Histograms say nothing of a service that is gone. */
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

const DIRECTIONS = {
  out: DIRECTION.FLOW_OUT,
  in: DIRECTION.FLOW_IN,
  refused: DIRECTION.FLOW_REFUSED,
  passed: DIRECTION.FLOW_PASSED,
} as const;

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

/** What a record that is pending would move; for tests. */
export function pendingOf(maps: Maps): FlowKey | undefined {
  const value = new Uint8Array(new ArrayBuffer(RECORD.size));
  maps.retirement.lookup(new Uint8Array(4), value);
  if (viewOf(value).getBigUint64(0, true) !== 1n) return undefined;
  return decodeKey(viewOf(value), value, RECORD.fields.from.offset);
}
