import { expect, test } from "bun:test";
import * as layout from "../datapath/tables/layout.gen.ts";
import type { BpfMap } from "../kernel/maps.ts";
import type { Reading, RetiredRow } from "./counters/reading.ts";
import { Columns, type Entries, type Rows, RowTable } from "./counters/row-table.ts";
import { noCounters, readRows } from "./counters/rows.ts";
import type { Sources } from "./counters/sources.ts";
import { EdgeTotals } from "./edge-totals.ts";
import { totalsFor } from "./edges.ts";
import type { Labels } from "./labels.ts";
import { sumUp } from "./sums.ts";

const { FLOW_OUT, FLOW_IN, FLOW_REFUSED, FLOW_PASSED } = layout.enums.flow_direction;
const KEY = layout.flow_key;
const ROW = layout.flow_row;

const names = { revision: 0, prefix: "svc", unit: "app" };
const labels = {
  get revision() {
    return names.revision;
  },
  service: (id: number) => (id === 0 ? undefined : `${names.prefix}-${id}.shop:80`),
  // Two ids of one address, and one that is gone.
  endpoint: (id: number) =>
    id === 9 ? undefined : { address: id % 2 ? `10.0.0.${id >> 1}` : "fd00::1", port: 8080 },
  workload: () => "",
  caller: () => "",
  callerAddress: (remote: string) => remote,
  ejectedUntil: () => 0,
} as unknown as Labels;
const sources = {
  of: (id: number) => ({ kind: "unit", name: `${names.unit}-${id}.service` }),
} as unknown as Sources;

type Row = [direction: number, source: number, service: number, endpoint: number];

/** Rows whose counters all differ. */
function entriesOf(rows: readonly Row[]): Entries {
  const keys = new Uint8Array(rows.length * KEY.size);
  const values = new Uint8Array(rows.length * ROW.size);
  const keyView = new DataView(keys.buffer);
  rows.forEach(([direction, source, service, endpoint], i) => {
    const at = i * KEY.size;
    keyView.setBigUint64(at + KEY.fields.source.offset, BigInt(source), true);
    keys[at + KEY.fields.direction.offset] = direction;
    if (direction === FLOW_IN) {
      keyView.setUint16(at + KEY.fields.port.offset, service);
      keys.set([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 9, 9, endpoint], at + KEY.fields.remote.offset);
    } else {
      keyView.setUint32(at + KEY.fields.service.offset, service, true);
      keyView.setUint32(at + KEY.fields.endpoint.offset, endpoint, true);
    }
    new BigUint64Array(values.buffer, i * ROW.size + ROW.fields.opened.offset, 14).forEach(
      (_, field, longs) => {
        longs[field] = BigInt((i + 1) * 1000 + field);
      },
    );
  });
  return { keys, values, count: rows.length };
}

const none = { count: 0, keys: new Uint8Array(), values: new Uint8Array() };
const other = { out: noCounters(), in: noCounters() };

/** What the map adds up of the same rows, with an object for each. */
function expected(out: Entries, accepted: Entries, retired: RetiredRow[]) {
  const mapOf = (entries: Entries) => ({ entries: () => entries }) as unknown as BpfMap;
  const reading: Reading = {
    ...{ atNs: 0, wall: 0, latency: [], other, room: { rows: 8, callers: 8 }, retired },
    rows: [...readRows(mapOf(out)), ...readRows(mapOf(accepted))],
  };
  return totalsFor(sumUp(reading, sources, labels));
}

function given(totals: EdgeTotals) {
  return new Map([...totals.keys()].map((id) => [id, totals.get(id)]));
}

test("totals are those of the map, with new names, other rows and thousands of them", () => {
  const totals = new EdgeTotals(labels, sources);
  const check = (outRows: Row[], inRows: Row[], retired: RetiredRow[]) => {
    const [out, accepted] = [entriesOf(outRows), entriesOf(inRows)];
    const rows: Rows = {
      ...{ out: new RowTable(out), in: new RowTable(accepted), latency: new Columns(none, 16, 384) },
      ...{ retired, other, room: { rows: 8, callers: 8 } },
    };
    totals.take(rows);
    const map = expected(out, accepted, retired);
    expect(given(totals)).toEqual(map);
    return map;
  };
  const outRows: Row[] = [
    [FLOW_OUT, 1, 1, 1],
    [FLOW_OUT, 1, 1, 2],
    [FLOW_OUT, 1, 1, 4],
    [FLOW_OUT, 1, 2, 9],
    [FLOW_OUT, 2, 0, 3],
    [FLOW_REFUSED, 1, 1, 4],
    [FLOW_REFUSED, 3, 5, 1],
    [FLOW_PASSED, 2, 0, 0],
    [FLOW_PASSED, 2, 1, 0],
    [99, 2, 1, 0],
  ];
  const inRows: Row[] = [
    [FLOW_IN, 1, 8080, 1],
    [FLOW_IN, 1, 8080, 2],
    [FLOW_IN, 2, 443, 2],
  ];
  const sum = { ...noCounters(), opened: 3, sent: 4 };
  const retired: RetiredRow[] = [
    { id: "a", source: 2, direction: "out", service: "svc-7.shop:80", workload: "", counters: sum },
    { id: "b", source: 1, direction: "in", service: "8080", workload: "w;ns;;;", counters: sum },
    { id: "c", source: 2, direction: "passed", service: "", workload: "", counters: sum },
    { id: "d", source: 4, direction: "refused", service: "svc-8.shop:80", workload: "policy", counters: sum },
  ];
  expect(check(outRows, inRows, retired).size).toBe(18);
  check(outRows.slice(0, 3), [], retired);
  names.prefix = "renamed";
  names.revision++;
  check(outRows, inRows, []);
  names.unit = "other";
  check(outRows, inRows, retired);
  const many = Array.from({ length: 3_000 }, (_, i): Row => [FLOW_OUT, 1, i, 11 + 2 * i]);
  expect(check(many, [], []).size).toBeGreaterThan(3_000);
  check(outRows, [], []);
  check(outRows, [], []);
});
