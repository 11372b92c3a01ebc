/** What the map says of `kmesh tunnel`, from the counters of its processes. */
import type { CounterRows, WayCounters } from "../tunnel/counters.ts";
import type { TunnelStatus } from "../tunnel/process/status-file.ts";
import { type Counters, noCounters } from "./counters/rows.ts";
import type { History } from "./history.ts";
import type { TunnelSummary, TunnelWay } from "./model.ts";

export type TunnelCounts = CounterRows & Pick<TunnelStatus, "certificate" | "draining">;

/** Peers that a document names, those with most connections. */
const MOST_PEERS = 100;
/** Pairs of a service and a reason that have a history. */
const MOST_FAILURES = 50;

/** Outbound failures by service ("host:port"), then by reason. */
export type TunnelFailures = ReadonlyMap<string, ReadonlyMap<string, number>>;

/** Undefined where no tunnel runs. */
export function tunnelSummary(tunnels: readonly TunnelCounts[]): TunnelSummary | undefined {
  // The accepting one has the newest certificate.
  const first = tunnels.find(({ draining }) => !draining) ?? tunnels[0];
  if (!first) return undefined;
  const ways = (way: keyof CounterRows["ways"]) => sumOfWays(tunnels.map((each) => each.ways[way]));
  const peers = new Map<string, number>();
  for (const { identities } of tunnels)
    for (const [name, count] of Object.entries(identities)) peers.set(name, (peers.get(name) ?? 0) + count);
  const most = [...peers].sort(([a, x], [b, y]) => y - x || (a < b ? -1 : 1)).slice(0, MOST_PEERS);
  return {
    principal: first.certificate.id ?? "",
    certified: first.certificate.valid,
    outbound: ways("outbound"),
    inbound: ways("inbound"),
    hbone: ways("hbone"),
    handshakes: tunnels.reduce((sum, { handshakes: { client, server } }) => sum + client + server, 0),
    peers: Object.fromEntries(most),
  };
}

/** What is recorded in a History of the outbound failures. */
export function tunnelTotals(tunnels: readonly TunnelCounts[]): [id: string, totals: Counters][] {
  const found = [...failuresOf(tunnels)].flatMap(([service, reasons]) =>
    [...reasons].map(([reason, count]) => ({ id: failureId(service, reason), count })),
  );
  const most = found.sort((a, b) => b.count - a.count).slice(0, MOST_FAILURES);
  return most.map(({ id, count }) => [id, counted(count)]);
}

/** The outbound failures of the last `window` seconds. */
export function recentFailures(
  tunnels: readonly TunnelCounts[],
  history: History,
  window: number,
  now: number,
): TunnelFailures {
  const recent = new Map<string, Map<string, number>>();
  for (const [service, reasons] of failuresOf(tunnels))
    for (const [reason, count] of reasons) {
      const { opened } = history.recent(failureId(service, reason), counted(count), window, now);
      if (opened <= 0) continue;
      const row = recent.get(service) ?? new Map<string, number>();
      recent.set(service, row.set(reason, Math.round(opened)));
    }
  return recent;
}

function failuresOf(tunnels: readonly TunnelCounts[]): Map<string, Map<string, number>> {
  const all = new Map<string, Map<string, number>>();
  for (const { services } of tunnels)
    for (const [service, reasons] of Object.entries(services)) {
      const row = all.get(service) ?? new Map<string, number>();
      for (const [reason, count] of Object.entries(reasons)) row.set(reason, (row.get(reason) ?? 0) + count);
      all.set(service, row);
    }
  return all;
}

function failureId(service: string, reason: string): string {
  return `tunnel ${service} ! ${reason}`;
}

function counted(opened: number): Counters {
  const counters = { ...noCounters(), opened };
  counters.ends[0] = opened;
  return counters;
}

function sumOfWays(rows: readonly WayCounters[]): TunnelWay {
  const sum: TunnelWay = { open: 0, total: 0, sent: 0, received: 0, failures: {} };
  for (const { open, total, sent, received, failures } of rows) {
    sum.open += open;
    sum.total += total;
    sum.sent += sent;
    sum.received += received;
    for (const [reason, count] of Object.entries(failures))
      sum.failures[reason] = (sum.failures[reason] ?? 0) + count;
  }
  return sum;
}
