/**
 * Makes room in the kernel's tables of rows and names before they are full. The rows that were unused for longest move into
 * sums by name (retirement.ts), so no total ever decreases. A row with a live connection stays, and so does its source's name.
 */
import * as layout from "../datapath/tables/layout.gen.ts";
import type { Maps } from "../datapath/tables/tables.ts";
import { waitForGracePeriod } from "../kernel/grace-period.ts";
import { unmap } from "../kernel/maps.ts";
import type { Reading } from "./counters/reading.ts";
import type { Rows, RowTable } from "./counters/row-table.ts";
import { type FlowRow, liveOf, longAt, viewOf } from "./counters/rows.ts";
import type { Retirement } from "./retirement.ts";

/** A table that is fuller than the first share is reduced to the second one. */
const FULL = 0.75;
const LEFT = 0.5;
/** bpf/include/source.h. */
const UNNAMED = 2;
const SOURCE_MASK = (1n << 48n) - 1n;
const DIRECTION = layout.enums.flow_direction;
const RETIRING = layout.flow_row.fields.retiring.offset;

export class Ageing {
  readonly #maps: Maps;
  readonly #retirement: Retirement;
  readonly #cache: BigUint64Array;
  /** The same memory. */
  readonly #words: Uint32Array;

  /** Maps and retirement stay the caller's. Throws KernelError. */
  constructor(maps: Maps, retirement: Retirement) {
    this.#maps = maps;
    this.#retirement = retirement;
    this.#cache = new BigUint64Array(maps.source_cache.mmap());
    this.#words = new Uint32Array(this.#cache.buffer);
  }

  /** Unmaps the memory. */
  close(): void {
    unmap(this.#cache.buffer);
  }

  /** Whether `round` has anything to do; `names` is the number of sources with a name. Makes no object for a row. */
  isDue({ out, in: callers, latency, room }: Rows, names: number): boolean {
    const { latency_rows, source_names } = this.#maps;
    if (out.count > room.rows * FULL || callers.count > room.callers * FULL) return true;
    if (names > source_names.info.maxEntries * FULL || latency.count > latency_rows.info.maxEntries * FULL)
      return true;
    if (this.#maps.peers.entries().count > this.#maps.peers.info.maxEntries * FULL) return true;
    if (isAnyRetiring(out) || isAnyRetiring(callers)) return true;
    for (let at = 0; at < this.#words.length; at += 2)
      if (this.#words[at] === UNNAMED && ((this.#words[at + 1] ?? 0) & 0xffff) === 0) return true;
    return false;
  }

  /** Reduces tables that fill up; `reading` must be new. Returns the number of removed rows and names. Throws KernelError. */
  round(reading: Reading): number {
    const callers = reading.rows.filter(({ key }) => key.direction === "in");
    const others = reading.rows.filter(({ key }) => key.direction !== "in");
    let gone = this.#ageRows(callers, reading.room.callers);
    gone += this.#ageRows(others, reading.room.rows);
    gone += this.#ageSources(reading.rows);
    gone += this.#ageLatency(reading);
    gone += this.#agePeers();
    // An earlier agent may have died between the mark and its removal.
    if (reading.rows.some(({ isRetiring }) => isRetiring)) this.#retirement.unmark();
    return gone;
  }

  #ageRows(rows: FlowRow[], room: number): number {
    if (rows.length <= room * FULL) return 0;
    const idle = rows.filter(({ counters }) => liveOf(counters) === 0).sort((a, b) => a.usedNs - b.usedNs);
    return this.#retirement.retire(idle.slice(0, rows.length - Math.floor(room * LEFT)));
  }

  #ageSources(rows: FlowRow[]): number {
    const { source_names } = this.#maps;
    const { keys, count } = source_names.entries();
    const room = source_names.info.maxEntries;
    if (count < room) this.#uncache(new Set([BigInt(UNNAMED)]));
    if (count <= room * FULL) return 0;
    const used = new Map<number, number>();
    for (const { key, counters, usedNs } of rows) {
      const at = liveOf(counters) > 0 ? Number.POSITIVE_INFINITY : usedNs;
      used.set(key.source, Math.max(used.get(key.source) ?? 0, at));
    }
    const view = viewOf(keys);
    const lastUse = (source: number) => used.get(source) ?? 0;
    const victims = new Set(
      Array.from({ length: count }, (_, i) => longAt(view, i * 8))
        .filter((source) => Number.isFinite(lastUse(source)))
        .sort((a, b) => lastUse(a) - lastUse(b))
        .slice(0, count - Math.floor(room * LEFT)),
    );
    this.#retirement.retire(
      rows.filter(({ key }) => victims.has(key.source)),
      0,
    );
    for (const source of victims) source_names.delete(longBytes(source));
    // A program that found a name before it was deleted may still write its source to the cache.
    waitForGracePeriod();
    this.#uncache(new Set([UNNAMED, ...victims].map(BigInt)));
    this.#dropLatency(({ source }) => victims.has(source));
    return victims.size;
  }

  /** Clears the cache for these sources, so that their cgroups are named again at their next connection. */
  #uncache(sources: ReadonlySet<bigint>): void {
    this.#cache.forEach((word, at) => {
      if (word !== 0n && sources.has(word & SOURCE_MASK)) Atomics.compareExchange(this.#cache, at, word, 0n);
    });
  }

  /**
   * Removes callers that neither a row nor a connection has. A tunnel names a caller in `carried` before it inserts it in
   * `peers`, and the kernel makes a row before it removes the former. So `carried` is read first; and what a tunnel named
   * between that look and the removal is inserted again.
   */
  #agePeers(): number {
    const { peers } = this.#maps;
    const { size } = layout.address;
    const { keys, values, count } = peers.entries();
    if (count <= peers.info.maxEntries * FULL) return 0;
    const named = this.#namedPeers();
    const removed = new Map<string, { key: Uint8Array; value: Uint8Array }>();
    for (let i = 0; i < count; i++) {
      const key = keys.slice(i * size, (i + 1) * size);
      const id = hexOf(key);
      if (named.has(id)) continue;
      removed.set(id, { key, value: values.slice(i * layout.peer.size, (i + 1) * layout.peer.size) });
      peers.delete(key);
    }
    for (const id of this.#namedPeers()) {
      const again = removed.get(id);
      if (again && removed.delete(id)) peers.update(again.key, again.value);
    }
    return removed.size;
  }

  /** The keys in `carried` and in inbound rows. */
  #namedPeers(): Set<string> {
    const { carried, caller_rows } = this.#maps;
    const named = new Set<string>();
    const { values, count } = carried.entries();
    for (let i = 0; i < count; i++) named.add(remoteAt(values, i * layout.carried.size));
    const rows = caller_rows.entries();
    const { remote } = layout.flow_key.fields;
    for (let i = 0; i < rows.count; i++)
      named.add(remoteAt(rows.keys, i * layout.flow_key.size + remote.offset));
    return named;
  }

  /** Removes histograms of pairs without a row. */
  #ageLatency({ rows, latency }: Reading): number {
    if (latency.length <= this.#maps.latency_rows.info.maxEntries * FULL) return 0;
    const pair = (direction: string, source: number, service: number) => `${direction} ${source} ${service}`;
    const known = new Set(
      rows.map(({ key }) => pair(key.direction, key.source, key.direction === "in" ? key.port : key.service)),
    );
    return this.#dropLatency(
      ({ source, service, direction }) =>
        !known.has(pair(direction === DIRECTION.FLOW_IN ? "in" : "out", source, service)),
    );
  }

  #dropLatency(isOver: (key: { source: number; service: number; direction: number }) => boolean): number {
    const { latency_rows } = this.#maps;
    const { keys, count } = latency_rows.entries();
    const view = viewOf(keys);
    const { size, fields } = layout.latency_key;
    let dropped = 0;
    for (let i = 0; i < count; i++) {
      const at = i * size;
      const key = {
        source: longAt(view, at + fields.source.offset),
        service: view.getUint32(at + fields.service.offset, true),
        direction: view.getUint32(at + fields.direction.offset, true),
      };
      if (!isOver(key)) continue;
      latency_rows.delete(keys.slice(at, at + size));
      dropped++;
    }
    return dropped;
  }
}

function remoteAt(bytes: Uint8Array, at: number): string {
  return hexOf(bytes.subarray(at, at + layout.address.size));
}

function hexOf(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("hex");
}

function isAnyRetiring(rows: RowTable): boolean {
  for (let row = 0; row < rows.count; row++) if (rows.word(row, RETIRING) !== 0) return true;
  return false;
}

function longBytes(value: number): Uint8Array {
  return new Uint8Array(BigUint64Array.of(BigInt(value)).buffer);
}
