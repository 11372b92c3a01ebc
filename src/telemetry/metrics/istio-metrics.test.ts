import { expect, test } from "bun:test";
import type { Labels } from "../labels.ts";
import type { Reading } from "../reading.ts";
import { type Counters, type FlowKey, noCounters } from "../rows.ts";
import { istioFamilies } from "./istio-metrics.ts";

const self = {
  workload: "billing-vm",
  namespace: "vms",
  canonicalService: "billing",
  canonicalRevision: "latest",
  app: "billing",
  version: "",
  cluster: "Kubernetes",
};
/** As istiod sends them: an endpoint with a workload, one without, a caller. */
const labels = {
  service: (id: number) =>
    ["", "ledger.shop.svc.cluster.local:80", "dead.shop.svc.cluster.local:80"][id] || undefined,
  workload: (id: number) => (id === 1 ? "ledger-v1;shop;ledger;;Kubernetes" : ";;;;Kubernetes"),
  caller: (address: string) => (address === "10.0.0.9" ? "frontend-v1;shop;frontend;v1;Kubernetes" : ""),
} as unknown as Labels;

const key = (more: Partial<FlowKey>): FlowKey => ({
  source: 5,
  direction: "out",
  port: 0,
  service: 1,
  cluster: 1,
  endpoint: 1,
  remote: "",
  ...more,
});
const counters = (more: Partial<Counters>, ends: number[] = []): Counters => {
  const all = { ...noCounters(), ...more };
  ends.forEach((count, i) => {
    all.ends[i] = count;
  });
  return all;
};
const reading = (rows: [FlowKey, Counters][], retired: Reading["retired"] = []): Reading => ({
  atNs: 0,
  wall: 0,
  rows: rows.map(([each, sum]) => ({
    key: each,
    bytes: () => new Uint8Array(),
    counters: sum,
    usedNs: 0,
    isRetiring: false,
  })),
  retired,
  latency: [],
  other: { out: noCounters(), in: noCounters() },
  room: { rows: 1, callers: 1 },
});
/** By family, the series whose labels have all of `wanted`. */
const find = (from: Reading, wanted: Record<string, string>) =>
  Object.fromEntries(
    istioFamilies(from, labels, self, () => "billing.vms.svc.cluster.local:9080", "1").map(
      ({ name, samples }) => [
        name,
        samples
          .filter(({ labels: set }) =>
            Object.entries(wanted).every(([n, v]) => set.some(([a, b]) => a === n && b === v)),
          )
          .map(({ value }) => value),
      ],
    ),
  );

test("at the source, received is what our app sent", () => {
  const from = reading([[key({}), counters({ opened: 10, sent: 900, received: 400 }, [8])]]);
  expect(
    find(from, {
      reporter: "source",
      source_workload: "billing-vm",
      source_version: "unknown",
      destination_workload: "ledger-v1",
      destination_workload_namespace: "shop",
      destination_canonical_revision: "latest",
      destination_service_name: "ledger",
      destination_service_namespace: "shop",
      response_flags: "-",
    }),
  ).toMatchObject({
    istio_tcp_connections_opened: [10],
    istio_tcp_connections_closed: [8],
    istio_tcp_received_bytes: [900],
    istio_tcp_sent_bytes: [400],
  });
});

test("at the destination, received is what came in, and the caller is named", () => {
  const from = reading([
    [
      key({ direction: "in", remote: "10.0.0.9", port: 9080 }),
      counters({ opened: 3, sent: 70, received: 30 }, [3]),
    ],
  ]);
  expect(
    find(from, {
      reporter: "destination",
      source_workload: "frontend-v1",
      source_canonical_revision: "v1",
      destination_workload: "billing-vm",
      destination_service: "billing.vms.svc.cluster.local",
      destination_service_namespace: "vms",
      connection_security_policy: "none",
    }),
  ).toMatchObject({ istio_tcp_received_bytes: [30], istio_tcp_sent_bytes: [70] });
});

test("failed connects have the flag UF, refusals theirs, and all four series are there", () => {
  const from = reading([
    [key({ service: 2, endpoint: 2 }), counters({ opened: 5 }, [1, 2, 1, 1])],
    [key({ service: 2, direction: "refused", endpoint: 1 }), counters({ opened: 4 }, [4])],
    [key({ service: 0, direction: "passed", endpoint: 0 }), counters({ opened: 6 }, [6])],
  ]);
  const dead = {
    destination_service_name: "dead",
    destination_workload: "unknown",
    destination_service_namespace: "unknown",
  };
  expect(find(from, { ...dead, response_flags: "UF" })).toEqual({
    istio_tcp_connections_opened: [0],
    istio_tcp_connections_closed: [4],
    istio_tcp_received_bytes: [0],
    istio_tcp_sent_bytes: [0],
    istio_build: [],
  });
  expect(find(from, { ...dead, response_flags: "UH" }).istio_tcp_connections_opened).toEqual([4]);
  expect(find(from, { destination_service_name: "PassthroughCluster" }).istio_tcp_connections_opened).toEqual(
    [6],
  );
});

test("rows that are gone count on in the same series", () => {
  const row = counters({ opened: 2, sent: 5 }, [2]);
  const gone = {
    source: 5,
    direction: "out" as const,
    service: "ledger.shop.svc.cluster.local:80",
    workload: "ledger-v1;shop;ledger;;Kubernetes",
    counters: row,
  };
  expect(find(reading([[key({}), row]], [gone]), { destination_workload: "ledger-v1" })).toMatchObject({
    istio_tcp_connections_opened: [4],
    istio_tcp_received_bytes: [10],
  });
});

test("series are bounded: beyond it the workload is unknown, and nothing is lost", () => {
  const many = { ...labels, workload: (id: number) => `w${id};ns;w${id};;K` } as unknown as Labels;
  const rows = Array.from(
    { length: 10_500 },
    (_, i) => [key({ endpoint: i }), counters({ opened: 1 }, [1])] as [FlowKey, Counters],
  );
  const [opened] = istioFamilies(reading(rows), many, self, () => undefined, "1");
  expect(opened?.samples.length).toBe(10_001);
  expect(opened?.samples.reduce((sum, { value }) => sum + value, 0)).toBe(10_500);
});
