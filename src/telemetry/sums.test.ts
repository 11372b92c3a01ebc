import { expect, test } from "bun:test";
import type { Labels } from "./labels.ts";
import type { Reading } from "./reading.ts";
import { type Direction, type FlowRow, noCounters } from "./rows.ts";
import type { Sources } from "./sources.ts";
import { sumUp } from "./sums.ts";

const labels = {
  service: (id: number) => (id === 0 ? undefined : `svc-${id}.shop:80`),
  endpoint: (id: number) => ({ address: `10.0.0.${id}`, port: 8080 }),
  workload: () => "",
  caller: () => "",
  ejectedUntil: () => 0,
} as unknown as Labels;
const sources = { of: (id: number) => ({ kind: "unit", name: `app-${id}.service` }) } as unknown as Sources;

const row = (direction: Direction, source: number, service: number, endpoint: number): FlowRow => ({
  key: {
    source,
    direction,
    port: 0,
    service,
    cluster: 1,
    endpoint,
    remote: direction === "in" ? "10.0.9.9" : "",
  },
  bytes: () => new Uint8Array(0),
  counters: { ...noCounters(), opened: 10 * service + endpoint, sent: 7 },
  usedNs: endpoint,
  isRetiring: false,
});

test("calls have the counters of all their endpoints, refusals apart", () => {
  const retired = {
    id: "",
    source: 2,
    direction: "out" as const,
    workload: "",
    counters: { ...noCounters(), opened: 3 },
  };
  const reading: Reading = {
    atNs: 0,
    wall: 0,
    rows: [
      row("out", 1, 1, 1),
      row("out", 1, 1, 2),
      row("refused", 1, 1, 4),
      row("out", 2, 0, 3),
      row("passed", 2, 0, 0),
      row("in", 1, 0, 0),
    ],
    retired: [
      { ...retired, service: "svc-7.shop:80" },
      { ...retired, service: "" },
    ],
    latency: [{ source: 1, service: 1, direction: "out", rtt: [1, 2], duration: [3, 4] }],
    other: { out: noCounters(), in: noCounters() },
    room: { rows: 8, callers: 8 },
  };
  const calls = [...sumUp(reading, sources, labels).edges.values()].filter(({ kind }) => kind === "call");
  expect(calls.length).toBe(3);
  expect(calls[0]?.counters.opened).toBe(23);
  expect(calls[0]?.refused.size).toBe(1);
  expect(calls[0]?.histograms?.rtt).toEqual([1, 2]);
});
