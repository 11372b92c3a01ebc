/** Generated documents for the page: a small shop with a fault of each kind, and one of any size. Always the same. */
import type {
  Edge,
  EdgeCounters,
  EdgeHistory,
  EdgesDocument,
  Node,
  Problem,
} from "../../src/telemetry/model.ts";

const AT = "2026-01-05T10:00:00.000Z";

type Part = Pick<Edge, "from" | "to" | "kind"> &
  Partial<Omit<Edge, "recent">> & { recent?: Partial<Edge["recent"]> };

/** Counters of an edge that nobody used. */
export const noCounters = (): EdgeCounters => ({
  opened: 0,
  closed: 0,
  sent: 0,
  received: 0,
  retransmits: 0,
  failures: { refused: 0, timedOut: 0, unreachable: 0, reset: 0 },
  refused: {},
});

/** An edge with `opened` connections in five minutes. */
export function edge({ from, to, kind, recent = {}, ...more }: Part): Edge {
  const counters = { ...noCounters(), closed: recent.opened ?? 0, ...recent };
  const { refused, timedOut, unreachable, reset } = counters.failures;
  const denied = Object.values(counters.refused).reduce((sum, count) => sum + count, 0);
  const failed = refused + timedOut + unreachable + reset + denied;
  const port = more.port ?? 0;
  return {
    id: `${from} -> ${to}${port === 0 ? "" : ` port ${port}`}`,
    from,
    to,
    kind,
    port,
    total: counters,
    recent: counters,
    live: 0,
    rate: {
      opened: counters.opened / 300,
      failed: failed / 300,
      sent: counters.sent / 300,
      received: counters.received / 300,
    },
    failureShare: counters.opened === 0 ? 0 : Math.min(1, failed / counters.opened),
    state: counters.opened + denied === 0 ? "idle" : "ok",
    usedAt: AT,
    ...more,
  };
}

export function documentOf(nodes: Node[], edges: Edge[], problems: Problem[] = []): EdgesDocument {
  return {
    version: 1,
    at: AT,
    window: 300,
    history: 3600,
    machine: {
      host: "vm-billing-1",
      workload: "billing",
      namespace: "vms",
      cluster: "Kubernetes",
      addresses: ["10.0.0.5"],
    },
    nodes,
    edges,
    problems,
    limits: {
      rows: { used: edges.length, room: 16_384 },
      callers: { used: 2, room: 4096 },
      other: 0,
      off: [],
    },
  };
}

const service = (name: string, namespace: string, port: number, known = 2, usable = known): Node => ({
  kind: "service",
  id: `service:${name}.${namespace}.svc.cluster.local:${port}`,
  name,
  namespace,
  host: `${name}.${namespace}.svc.cluster.local`,
  port,
  endpoints: { known, usable, largestShare: 1 / known },
});
const endpoint = (name: string, namespace: string, address: string, port: number): Node => ({
  kind: "endpoint",
  id: `endpoint:${address}:${port}`,
  name,
  namespace,
  address,
  port,
  workload: {
    name,
    namespace,
    canonicalService: name.replace(/-v\d$/, ""),
    canonicalRevision: "v1",
    cluster: "Kubernetes",
  },
});
const unit = (name: string): Node => ({
  kind: "unit",
  id: `unit:${name}`,
  name,
  namespace: "",
  source: "unit",
});

/** A shop's billing machine: one endpoint refuses, one loses packets, one is ejected, one service is idle. */
export function shop(): EdgesDocument {
  const [billing, report, cron] = [
    unit("billing.service"),
    unit("report-worker.service"),
    unit("cron.service"),
  ];
  const [orders, payments, stock, ledger] = [
    service("orders", "shop", 8080),
    service("payments", "shop", 443, 3, 2),
    service("stock", "shop", 9090, 2),
    service("ledger", "finance", 5432, 1),
  ];
  const ends = [
    endpoint("orders-v1", "shop", "10.1.0.11", 8080),
    endpoint("orders-v2", "shop", "10.1.0.12", 8080),
    endpoint("payments-v1", "shop", "10.1.1.21", 8443),
    { ...endpoint("payments-v2", "shop", "10.1.1.22", 8443), ejected: 24 },
    endpoint("stock-v1", "shop", "10.1.2.31", 9090),
    endpoint("ledger-0", "finance", "10.2.0.41", 5432),
  ] as const;
  const [o1, o2, p1, p2, s1, l0] = ends;
  const front: Node = {
    kind: "caller",
    id: "caller:10.1.9.7",
    name: "frontend-v1",
    namespace: "shop",
    address: "10.1.9.7",
    workload: {
      name: "frontend-v1",
      namespace: "shop",
      canonicalService: "frontend",
      canonicalRevision: "v1",
      cluster: "Kubernetes",
    },
  };
  const stranger: Node = {
    kind: "caller",
    id: "caller:192.0.2.80",
    name: "192.0.2.80",
    namespace: "",
    address: "192.0.2.80",
    unknown: "istiod names no workload with the address 192.0.2.80.",
  };
  const outside: Node = {
    kind: "outside",
    id: "outside:api.example.com:443",
    name: "api.example.com:443",
    namespace: "",
  };
  const busy = (opened: number, rtt: number) => ({
    recent: { opened, sent: opened * 2_400, received: opened * 18_000 },
    rtt: { mean: rtt },
    duration: { mean: 0.12 },
    live: 4,
  });
  const carried = {
    by: "hbone",
    mutualTls: true,
    principal: "spiffe://cluster.local/ns/finance/sa/ledger",
  } as const;
  const edges = [
    edge({ from: front.id, to: billing.id, kind: "inbound", port: 8000, ...busy(5_400, 420), live: 0 }),
    edge({ from: stranger.id, to: billing.id, kind: "inbound", port: 8000, ...busy(12, 8_100), live: 0 }),
    edge({ from: billing.id, to: orders.id, kind: "call", ...busy(3_600, 510) }),
    edge({
      from: billing.id,
      to: payments.id,
      kind: "call",
      ...busy(900, 740),
      recent: {
        opened: 900,
        sent: 90_000,
        received: 400_000,
        failures: { refused: 300, timedOut: 0, unreachable: 0, reset: 0 },
      },
      state: "failing",
    }),
    edge({ from: report.id, to: ledger.id, kind: "call", carried, ...busy(60, 2_300) }),
    edge({ from: report.id, to: stock.id, kind: "call", ...busy(240, 16_000) }),
    edge({ from: cron.id, to: stock.id, kind: "call" }),
    edge({ from: report.id, to: outside.id, kind: "passed", ...busy(18, 21_000) }),
    edge({ from: orders.id, to: o1.id, kind: "endpoint", ...busy(1_790, 500) }),
    edge({ from: orders.id, to: o2.id, kind: "endpoint", ...busy(1_810, 520) }),
    edge({ from: payments.id, to: p1.id, kind: "endpoint", ...busy(600, 740) }),
    // Fails, and carried nothing.
    edge({
      from: payments.id,
      to: p2.id,
      kind: "endpoint",
      recent: { opened: 300, failures: { refused: 300, timedOut: 0, unreachable: 0, reset: 0 } },
      failed: { mean: 0.4 },
      state: "failing",
    }),
    edge({
      from: stock.id,
      to: s1.id,
      kind: "endpoint",
      ...busy(240, 16_000),
      recent: { opened: 240, sent: 6e6, received: 9e6, retransmits: 412 },
      state: "slow",
    }),
    edge({ from: ledger.id, to: l0.id, kind: "endpoint", carried, ...busy(60, 2_300) }),
  ];
  const id = (from: Node, to: Node) => `${from.id} -> ${to.id}`;
  return documentOf(
    [front, stranger, billing, report, cron, orders, payments, stock, ledger, ...ends, outside],
    edges,
    [
      {
        subject: id(payments, p2),
        rule: "connect-refused",
        severity: "error",
        text: "300 of 300 connections to payments-v2 (10.1.1.22 port 8443) were refused by its host: nothing listens there",
        value: 300,
        next: "kmesh explain payments.shop.svc.cluster.local:443",
      },
      {
        subject: id(stock, s1),
        rule: "retransmits",
        severity: "warning",
        text: "412 segments to stock-v1 (10.1.2.31 port 9090) had to be sent again, about 7.9 % of them: packets are lost on the way",
        value: 412,
        next: "ping -c 20 10.1.2.31",
      },
      {
        subject: p2.id,
        rule: "ejected",
        severity: "warning",
        text: "payments-v2 (10.1.1.22 port 8443) is left out for 24 s more, since connects to it failed in a row",
        value: 24,
        next: "kmesh status",
      },
      {
        subject: id(report, outside),
        rule: "outside-mesh",
        severity: "info",
        text: "report-worker.service made 18 connections that go to no endpoint of the mesh (api.example.com:443)",
        value: 18,
        next: "kmesh log --follow",
      },
    ],
  );
}

/** 12 units, a third of the nodes services in `namespaces` namespaces, the rest endpoints; every 40th endpoint refuses. */
export function large(nodeCount: number, edgeCount: number, namespaces = 12): EdgesDocument {
  const units = Array.from({ length: 12 }, (_, i) => unit(`worker-${i}.service`));
  const services = Array.from({ length: Math.floor(nodeCount / 3) }, (_, i) =>
    service(`service-${i}`, `team-${i % namespaces}`, 80),
  );
  const endpoints = Array.from({ length: nodeCount - units.length - services.length }, (_, i) =>
    endpoint(
      `service-${i % services.length}-v1`,
      `team-${(i % services.length) % namespaces}`,
      `10.${i >> 8}.${i & 255}.1`,
      8080,
    ),
  );
  const edges: Edge[] = [];
  const problems: Problem[] = [];
  endpoints.forEach((to, i) => {
    const from = services[i % services.length];
    if (!from) return;
    const bad = i % 40 === 7;
    const leg = edge({
      from: from.id,
      to: to.id,
      kind: "endpoint",
      recent: {
        opened: 10 + i,
        failures: { refused: bad ? 10 + i : 0, timedOut: 0, unreachable: 0, reset: 0 },
      },
      ...(bad ? { state: "failing" as const } : { rtt: { mean: 300 + i } }),
    });
    edges.push(leg);
    if (bad)
      problems.push({
        subject: leg.id,
        rule: "connect-refused",
        severity: "error",
        text: `${10 + i} of ${10 + i} connections to ${to.name} were refused by its host: nothing listens there`,
        value: 10 + i,
        next: "kmesh status",
      });
  });
  for (let i = 0; edges.length < edgeCount && i < units.length * services.length; i++) {
    const from = units[i % units.length];
    const to = services[Math.floor(i / units.length)];
    if (from && to)
      edges.push(
        edge({
          from: from.id,
          to: to.id,
          kind: "call",
          recent: { opened: 5 + (i % 90) },
          rtt: { mean: 400 },
        }),
      );
  }
  return documentOf([...units, ...services, ...endpoints], edges, problems);
}

export function history(id: string): EdgeHistory {
  const steps = Array.from({ length: 360 }, (_, i) => i);
  const wave = (height: number) =>
    steps.map((i) => Math.round(height * (1.4 + Math.sin(i / 23) + 0.25 * Math.sin(i / 3))));
  return {
    edge: id,
    step: 10,
    at: AT,
    opened: wave(40),
    failed: steps.map((i) => (i > 300 ? 9 : 0)),
    sent: wave(90_000),
    received: wave(500_000),
    retransmits: steps.map(() => 0),
    live: wave(4),
    rtt: wave(500),
  };
}
