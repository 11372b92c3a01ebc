/** Tables of rows and names make room before they are full, and no counter is lost while connections go on. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import * as layout from "../../src/datapath/tables/layout.gen.ts";
import type { Maps } from "../../src/datapath/tables/tables.ts";
import { emptyMesh } from "../../src/mesh/model.ts";
import { Ageing } from "../../src/telemetry/ageing.ts";
import { Counting } from "../../src/telemetry/counters/counting.ts";
import { Flusher } from "../../src/telemetry/counters/flush.ts";
import { readTraffic } from "../../src/telemetry/counters/reading.ts";
import {
  addCounters,
  closedOf,
  type Direction,
  encodeCounters,
  noCounters,
  readRows,
  viewOf,
} from "../../src/telemetry/counters/rows.ts";
import { Sources } from "../../src/telemetry/counters/sources.ts";
import { Labels } from "../../src/telemetry/labels.ts";
import { Retirement } from "../../src/telemetry/retirement.ts";
import { mapIteratorsRefused } from "../lab/map-iterators.ts";
import { output, PATIENCE, placed } from "../lab/process.ts";
import { DatapathLab } from "./lab.ts";
import { addCluster, addFrontend, endpoint } from "./mesh.ts";

setDefaultTimeout(PATIENCE * 30_000);
const why = mapIteratorsRefused();
if (why !== undefined) console.warn(`ageing tests are skipped: ${why}`);
/** Accepted connections are counted in every namespace: no other test may serve the same port. */
const PORT = 30_000 + (process.pid % 2_000);
const UNNAMED = 2n;

describe.skipIf(why !== undefined)("ageing", () => {
  let lab: DatapathLab;
  let maps: Maps;
  let counting: Counting;
  let flusher: Flusher | undefined;
  let retirement: Retirement;
  let ageing: Ageing;
  beforeAll(async () => {
    lab = await DatapathLab.create();
    await lab.namespace.addLoopback("172.31.1.1");
    const mesh = emptyMesh();
    addCluster(mesh, "open", [endpoint(`172.31.1.1:${PORT}`)]);
    addFrontend(mesh, "10.96.9.1:80", { kind: "cluster", cluster: "open" });
    lab.publish(mesh);
    maps = lab.datapath.tables.maps;
    counting = new Counting(maps.traffic, maps.served_ports);
    counting.count(true);
    counting.serve([PORT]);
    flusher = Flusher.open(maps, counting);
    retirement = new Retirement(maps, new Labels(lab.datapath.tables, undefined, true));
    ageing = new Ageing(maps, retirement);
  });
  afterAll(async () => {
    ageing?.close();
    retirement?.close();
    flusher?.close();
    counting?.close();
    await lab?.remove();
  });

  /** Rows as programs would make them: `sources` or callers that came by once, and `live` that did not end. */
  const fill = (direction: "in" | "out", count: number, live = 0) => {
    const keys = new Uint8Array(new ArrayBuffer(count * layout.flow_key.size));
    const values = new Uint8Array(new ArrayBuffer(count * layout.flow_row.size));
    const view = viewOf(keys);
    const { fields } = layout.flow_key;
    for (let i = 0; i < count; i++) {
      const at = i * layout.flow_key.size;
      view.setBigUint64(at + fields.source.offset, BigInt(direction === "in" ? 77 : 1000 + i), true);
      view.setUint8(at + fields.direction.offset, direction === "in" ? 2 : 1);
      view.setUint16(at + fields.port.offset, direction === "in" ? 8080 : 0);
      view.setUint32(at + 28, i, true);
      const ends = i < live ? 0 : 3;
      const row = { ...noCounters(), opened: 3, sent: 100 + i, received: 7 };
      row.ends[0] = ends;
      encodeCounters(row, viewOf(values), i * layout.flow_row.size);
      viewOf(values).setBigUint64(
        i * layout.flow_row.size + layout.flow_row.fields.used_ns.offset,
        BigInt(i + 1),
        true,
      );
    }
    (direction === "in" ? maps.caller_rows : maps.flow_rows).updateBatch(keys, values, count);
  };
  const total = (direction: Direction) => {
    const sum = noCounters();
    const { rows, retired, other } = readTraffic(maps);
    for (const { key, counters } of rows) if (key.direction === direction) addCounters(sum, counters);
    for (const row of retired) if (row.direction === direction) addCounters(sum, row.counters);
    addCounters(sum, direction === "in" ? other.in : other.out);
    return sum;
  };
  const round = () => ageing.round(readTraffic(maps));
  const many = () =>
    output(
      placed(
        [
          ...["/usr/bin/python3", join(import.meta.dirname, "flows.py"), "many", "10.96.9.1", "80"],
          ...["172.31.1.1", String(PORT)],
        ],
        { netns: lab.namespace.path, cgroup: lab.cgroup },
      ),
    ).then((text) => JSON.parse(text) as { sent: number; received: number });

  test("callers that were idle for longest go into sums, live ones stay", () => {
    const room = maps.caller_rows.info.maxEntries;
    fill("in", room, 40);
    const before = total("in");
    expect(before.opened).toBe(3 * room);
    expect(round()).toBe(room / 2);
    expect(total("in")).toEqual(before);
    const left = readRows(maps.caller_rows);
    expect(left.length).toBe(room / 2);
    expect(left.filter(({ counters }) => closedOf(counters) === 0).length).toBe(40);
    expect(left.some(({ isRetiring }) => isRetiring)).toBe(false);
    // The oldest went, and there is nothing to do before the table fills up again.
    expect(Math.min(...left.filter(({ usedNs }) => usedNs > 40).map(({ usedNs }) => usedNs))).toBe(
      room / 2 + 41,
    );
    expect(round()).toBe(0);
  });

  test("rows that are retired again and again lose nothing of the connections that end meanwhile", async () => {
    const before = { in: total("in"), out: total("out") };
    let busy = true;
    let moved = 0;
    const work = (async () => [await many(), await many(), await many()])().finally(() => {
      busy = false;
    });
    while (busy) {
      flusher?.flush();
      flusher?.findAccepted(lab.namespace.path);
      const rows = [...readRows(maps.caller_rows), ...readRows(maps.flow_rows)];
      moved += retirement.retire(rows.filter(({ usedNs }) => usedNs > 10_000));
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    const apps = { sent: 0, received: 0 };
    for (const { sent, received } of await work) {
      apps.sent += sent;
      apps.received += received;
    }
    const [incoming, out] = [total("in"), total("out")];
    expect(moved).toBeGreaterThan(2);
    expect([
      out.opened - before.out.opened,
      closedOf(out) - closedOf(before.out),
      out.sent - before.out.sent,
      out.received - before.out.received,
    ]).toEqual([900, 900, apps.sent, apps.received]);
    expect([
      incoming.opened - before.in.opened,
      closedOf(incoming) - closedOf(before.in),
      incoming.received - before.in.received,
      incoming.sent - before.in.sent,
    ]).toEqual([900, 900, apps.sent, apps.received]);
  });

  test("names of units that are gone make room, and units that found none get theirs", async () => {
    const { source_names, source_cache } = maps;
    const own = new Set(source_names.entries().keys);
    expect(own.size).toBeGreaterThan(0);
    const room = source_names.info.maxEntries;
    const keys = new BigUint64Array(new ArrayBuffer(room * 8));
    const values = new Uint8Array(new ArrayBuffer(room * 128));
    // What connected before is forgotten, and its name has no room.
    for (const { bytes } of readRows(maps.flow_rows)) maps.flow_rows.delete(bytes());
    const { keys: old, count } = source_names.entries();
    for (let i = 0; i < count; i++) source_names.delete(old.slice(i * 8, (i + 1) * 8));
    for (let i = 0; i < room; i++) {
      keys[i] = BigInt(1000 + i);
      values.set(new TextEncoder().encode(`job-${i}.service`), i * 128);
    }
    source_names.updateBatch(new Uint8Array(keys.buffer), values, room);
    const cache = new BigUint64Array(source_cache.mmap());
    cache.fill(0n);
    fill("out", 3000, 10);
    const before = total("out");
    await many();
    expect(counting.get("unnamed")).toBeGreaterThan(0);
    // It walks up the cgroups once, not at each connection.
    expect(cache.filter((word) => (word & 0xffffffffffffn) === UNNAMED).length).toBe(1);
    flusher?.flush();
    expect(total("out").opened).toBe(before.opened + 300);
    round();
    expect(source_names.entries().count).toBe(room / 2);
    expect(total("out").opened).toBe(before.opened + 300);
    expect(cache.some((word) => (word & 0xffffffffffffn) === UNNAMED)).toBe(false);
    // The ten with live connections kept their rows and names; those that were used last as well.
    const sources = new Sources(source_names);
    sources.refresh();
    expect([sources.of(1000).name, sources.of(1009).name]).toEqual(["job-0.service", "job-9.service"]);
    expect([sources.of(1010).kind, sources.of(1000 + room - 1).kind]).toEqual(["unknown", "unknown"]);
    expect(sources.of(1000 + 2999).name).toBe("job-2999.service");
    await many();
    flusher?.flush();
    const named = readRows(maps.flow_rows).filter(
      ({ key, usedNs }) => usedNs > 10_000 && key.source !== 0 && sources.of(key.source).kind === "unknown",
    );
    sources.refresh();
    expect(named.map(({ key }) => sources.of(key.source).name)).toEqual([lab.cgroup.split("/").at(-1) ?? ""]);
  });
});
