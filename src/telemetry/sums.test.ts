import { expect, test } from "bun:test";
import type { Reading } from "./counters/reading.ts";
import { type Direction, type FlowRow, noCounters } from "./counters/rows.ts";
import type { Sources } from "./counters/sources.ts";
import type { Labels } from "./labels.ts";
import { sumUp } from "./sums.ts";

const labels = {
  service: (id: number) => (id === 0 ? undefined : `svc-${id}.shop:80`),
  endpoint: (id: number) => ({ address: `10.0.0.${id}`, port: 8080 }),
  workload: () => "",
  caller: () => "",
  callerAddress: (remote: string) => remote,
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
      row("passed", 2, 0, 20),
      row("in", 1, 0, 0),
    ],
    retired: [
      { ...retired, service: "svc-7.shop:80" },
      { ...retired, service: "" },
      { ...retired, direction: "passed" as const, service: "svc-8.shop:80" },
      { ...retired, source: 1, direction: "refused" as const, service: "svc-1.shop:80", workload: "policy" },
    ],
    latency: [{ source: 1, service: 1, direction: "out", rtt: [1, 2], duration: [3, 4] }],
    other: { out: noCounters(), in: noCounters() },
    room: { rows: 8, callers: 8 },
  };
  const edges = [...sumUp(reading, sources, labels).edges.values()];
  const calls = edges.filter(({ kind }) => kind === "call");
  expect(calls.length).toBe(3);
  expect(calls[0]?.counters.opened).toBe(23);
  expect(calls[0]?.refused.size).toBe(2);
  expect(calls[0]?.refused.get("policy")).toBe(3);
  // What is outside stays on the map when its row is gone, as it stays in the metrics.
  expect(
    edges.filter(({ kind }) => kind === "passed").map(({ to, counters }) => [to, counters.opened]),
  ).toEqual([
    ["outside:mesh", 20],
    ["outside:svc-8.shop:80", 3],
  ]);
  expect(calls[0]?.histograms?.rtt).toEqual([1, 2]);
});

test("an edge is carried as its newest connections are, a call as all of its endpoints", () => {
  const texts = ["", ";;;;K;hbone spiffe://m/ns/a/sa/b", ";;;;K;hbone spiffe://m/ns/a/sa/c", ";;;;K"];
  const named = { ...labels, workload: (id: number) => texts[id] ?? "" } as unknown as Labels;
  const sum = (...rows: FlowRow[]) => {
    const empty = { retired: [], latency: [], other: { out: noCounters(), in: noCounters() } };
    const reading: Reading = { atNs: 0, wall: 0, rows, ...empty, room: { rows: 8, callers: 8 } };
    const { edges } = sumUp(reading, sources, named);
    return Object.fromEntries([...edges.values()].map(({ to, carried }) => [to, carried]));
  };
  const hbone = { by: "hbone", mutualTls: true };
  const call = "service:svc-1.shop:80";
  const both = sum(row("out", 1, 1, 1), row("out", 1, 1, 2));
  expect(both["endpoint:10.0.0.1:8080"]).toMatchObject({ ...hbone, principal: "spiffe://m/ns/a/sa/b" });
  expect(both[call]).toMatchObject({ ...hbone, principal: "" });
  const mixed = sum(row("out", 1, 1, 1), row("out", 1, 1, 3));
  expect(mixed["endpoint:10.0.0.3:8080"]).toBeUndefined();
  expect(mixed[call]).toBeUndefined();
});

test("a caller's rows with and without mutual TLS are one edge, which comes as the newest does", () => {
  const texts: Record<string, string> = { "ff00::5": "web;shop;web;;K;istio spiffe://m/ns/shop/sa/web" };
  const named = {
    ...labels,
    caller: (remote: string) => texts[remote] ?? "web;shop;web;;K",
    callerAddress: (remote: string) => ({ "ff00::5": "10.0.9.9", "ff00::1": "::" })[remote] ?? remote,
  } as unknown as Labels;
  const from = (remote: string, usedNs: number): FlowRow => {
    const plain = row("in", 1, 0, 0);
    return { ...plain, key: { ...plain.key, remote, port: 80 }, usedNs };
  };
  const sum = (...rows: FlowRow[]) => {
    const empty = { retired: [], latency: [], other: { out: noCounters(), in: noCounters() } };
    return sumUp({ atNs: 0, wall: 0, rows, ...empty, room: { rows: 8, callers: 8 } }, sources, named);
  };
  const edge = "caller:10.0.9.9 -> unit:app-1.service port 80";
  const proved = sum(from("10.0.9.9", 1), from("ff00::5", 2));
  expect([...proved.edges.keys()]).toEqual([edge]);
  expect(proved.edges.get(edge)).toMatchObject({
    counters: { sent: 14 },
    carried: { by: "istio", mutualTls: true, principal: "spiffe://m/ns/shop/sa/web" },
  });
  expect(proved.nodes.get("caller:10.0.9.9")).toMatchObject({ name: "web", address: "10.0.9.9" });
  expect(sum(from("10.0.9.9", 3), from("ff00::5", 2)).edges.get(edge)?.carried).toBeUndefined();
  expect(sum(from("ff00::1", 1)).nodes.get("caller:other")).toMatchObject({ address: "" });
});
