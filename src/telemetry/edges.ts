/** Makes the document of model.ts from sums, their history, and the agent's knowledge of services. */

import type { Reading } from "./counters/reading.ts";
import { type Counters, closedOf, endsOf, failuresOf, liveOf, noCounters } from "./counters/rows.ts";
import type { History } from "./history.ts";
import { MOST_EDGES, STEP } from "./history.ts";
import type { Edge, EdgeCounters, EdgeHistory, EdgesDocument, Machine, Node, ServiceNode } from "./model.ts";
import { findProblems } from "./problems.ts";
import { type EdgeSum, histogramOf, type Sums } from "./sums.ts";
import { recentFailures, type TunnelCounts, tunnelSummary, tunnelTotals } from "./tunnel-summary.ts";

/** The agent's knowledge of a service ("host:port"). */
export type ServiceState = (service: string) => Pick<ServiceNode, "endpoints" | "limit">;

export interface DocumentInput {
  reading: Reading;
  sums: Sums;
  history: History;
  /** Seconds. */
  window: number;
  machine: Machine;
  service?: ServiceState;
  /** The counters of each tunnel process that runs. */
  tunnels?: readonly TunnelCounts[];
  /** What this kernel or these settings do not support, a sentence each. */
  off: string[];
}

const KIND_ORDER: readonly Node["kind"][] = ["caller", "unit", "service", "endpoint", "outside"];

export function makeDocument(input: DocumentInput): EdgesDocument {
  const { reading, sums, history, machine, tunnels = [] } = input;
  const { wall } = reading;
  const covered = history.covered(wall);
  const window = Math.max(STEP, Math.min(input.window, Math.max(covered, STEP)));
  const rtt = new Map<string, { mean: number; count: number }>();
  const measured = new Map<string, number>();
  const edges = [...sums.edges.values()].map((sum): Edge => {
    const recent = history.recent(sum.id, sum.counters, window, wall);
    const earlier = history.earlier(sum.id, window, wall);
    if (earlier.rtts > 0) rtt.set(sum.id, { mean: earlier.rttUs / earlier.rtts, count: earlier.rtts });
    measured.set(sum.id, recent.rtts);
    const refused: Record<string, number> = {};
    for (const [reason, opened] of sum.refused) {
      const total = { ...noCounters(), opened };
      refused[reason] = Math.round(history.recent(refusedId(sum.id, reason), total, window, wall).opened);
    }
    return edgeOf(sum, recent, refused, window, reading);
  });
  const nodes = [...sums.nodes.values()].map((node): Node => {
    if (node.kind !== "service" || !input.service) return node;
    return { ...node, ...input.service(`${node.host}:${node.port}`) };
  });
  nodes.sort((a, b) => KIND_ORDER.indexOf(a.kind) - KIND_ORDER.indexOf(b.kind) || compare(a.id, b.id));
  edges.sort((a, b) => compare(a.id, b.id));
  const tunnelFailures = recentFailures(tunnels, history, window, wall);
  const problems = findProblems({ nodes, edges }, { rtt, measured, tunnelFailures });
  const tunnel = tunnelSummary(tunnels);
  const unseen = history.withoutRoom(sums.edges.keys());
  const off = [...input.off, ...(unseen > 0 ? [NO_ROOM(unseen)] : [])];
  const bad = new Map<string, Edge["state"]>();
  for (const { subject, rule, severity } of problems) {
    if (severity === "info" || bad.get(subject) === "failing") continue;
    const isSlow = rule.startsWith("slower") || rule === "retransmits" || rule === "alone";
    bad.set(subject, isSlow ? "slow" : "failing");
  }
  for (const edge of edges) edge.state = bad.get(edge.id) ?? edge.state;
  // The kernel sees a failure of the tunnel as a reset on an edge to an endpoint.
  const broken = new Set(problems.flatMap(({ subject, rule }) => (rule === "tunnel" ? [subject] : [])));
  for (const edge of edges)
    if (edge.carried && broken.has(edge.from) && edge.recent.failures.reset > 0) edge.state = "failing";
  // An edge of a unit to a failing service is failing, too.
  for (const edge of edges)
    if (edge.kind === "call" && edge.state === "ok" && edge.failureShare >= 0.5) edge.state = "failing";
  return {
    version: 1,
    at: new Date(wall).toISOString(),
    window: Math.round(window),
    history: Math.round(covered),
    machine,
    ...(tunnel ? { tunnel } : {}),
    nodes,
    edges,
    problems,
    limits: {
      rows: {
        used: reading.rows.filter(({ key }) => key.direction !== "in").length,
        room: reading.room.rows,
      },
      callers: {
        used: reading.rows.filter(({ key }) => key.direction === "in").length,
        room: reading.room.callers,
      },
      other: reading.other.out.opened + reading.other.in.opened,
      off,
    },
  };
}

const NO_ROOM = (count: number) =>
  `${MOST_EDGES} edges have a history. ${count} more have totals, and neither rates nor problems.`;

/** The key in a History for the refusals of an edge by reason. */
export function refusedId(edge: string, reason: string): string {
  return `${edge} ! ${reason}`;
}

/** All values to record in a History. */
export function totalsFor(sums: Sums, tunnels: readonly TunnelCounts[] = []): Map<string, Counters> {
  const totals = new Map<string, Counters>(tunnelTotals(tunnels));
  for (const { id, counters, refused } of sums.edges.values()) {
    totals.set(id, counters);
    for (const [reason, opened] of refused) {
      const count = { ...noCounters(), opened };
      count.ends[0] = opened;
      totals.set(refusedId(id, reason), count);
    }
  }
  return totals;
}

/** Undefined for an edge without history. `totals` are its present totals, for an edge that came after the last sample. */
export function historyOf(
  history: History,
  edge: string,
  now: number,
  totals?: Counters,
): EdgeHistory | undefined {
  const series = history.series(edge, now, totals);
  if (!series) return undefined;
  const { at, ...rest } = series;
  return { edge, step: STEP, at: new Date(at).toISOString(), ...rest };
}

function edgeOf(
  sum: EdgeSum,
  recent: Counters,
  refused: Record<string, number>,
  window: number,
  { atNs, wall }: Reading,
): Edge {
  const denied = Object.values(refused).reduce((all, count) => all + count, 0);
  const failed = failuresOf(recent);
  const closed = closedOf(recent);
  const isIdle = recent.opened + closed + recent.sent + recent.received + denied === 0;
  const connects = recent.opened + denied;
  const established = closed - failed + endsOf(recent, "reset");
  return {
    id: sum.id,
    from: sum.from,
    to: sum.to,
    kind: sum.kind,
    port: sum.port,
    total: countersOf(sum.counters, Object.fromEntries(sum.refused), sum.kind),
    recent: countersOf(recent, refused, sum.kind),
    ...(sum.carried ? { carried: sum.carried } : {}),
    live: liveOf(sum.counters),
    rate: {
      opened: recent.opened / window,
      failed: (failed + denied) / window,
      sent: (sum.kind === "inbound" ? recent.received : recent.sent) / window,
      received: (sum.kind === "inbound" ? recent.sent : recent.received) / window,
    },
    failureShare: connects === 0 ? 0 : Math.min(1, (failed + denied) / connects),
    ...(recent.rtts > 0 ? { rtt: { mean: recent.rttUs / recent.rtts } } : {}),
    ...(recent.failedNs > 0 ? { failed: { mean: recent.failedNs / 1e6 / Math.max(1, failed) } } : {}),
    ...(recent.durationNs > 0
      ? { duration: { mean: recent.durationNs / 1e9 / Math.max(1, established) } }
      : {}),
    ...(sum.histograms
      ? {
          histograms: {
            rtt: histogramOf(sum.histograms.rtt, "us", 1),
            duration: histogramOf(sum.histograms.duration, "ms", 0.256),
          },
        }
      : {}),
    ...(sum.usedNs > 0 ? { usedAt: new Date(wall - (atNs - sum.usedNs) / 1e6).toISOString() } : {}),
    state: isIdle ? "idle" : "ok",
  };
}

/** The kernel names "sent" what this machine sent; an "inbound" edge begins at the peer. */
function countersOf(counters: Counters, refused: Record<string, number>, kind: Edge["kind"]): EdgeCounters {
  const inbound = kind === "inbound";
  const whole = Math.round;
  return {
    opened: whole(counters.opened),
    closed: whole(closedOf(counters)),
    sent: whole(inbound ? counters.received : counters.sent),
    received: whole(inbound ? counters.sent : counters.received),
    retransmits: whole(counters.retransmits),
    failures: {
      refused: whole(endsOf(counters, "refused")),
      timedOut: whole(endsOf(counters, "timed-out")),
      unreachable: whole(endsOf(counters, "unreachable")),
      reset: whole(endsOf(counters, "reset")),
    },
    refused,
  };
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
