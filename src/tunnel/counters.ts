/** What a tunnel counts, for its status. Everything is bounded: names beyond the bounds go together under "(others)". */
import type { FailureReason } from "./failure.ts";

export type Way = "outbound" | "inbound" | "hbone";

/** Peers' identities, and pairs of service and reason, that are counted one by one. */
const MOST_NAMES = 1_000;
const OTHERS = "(others)";

export interface WayCounters {
  /** Connections (or CONNECTs) that are open now, and that came about in all. */
  open: number;
  total: number;
  /** Connections that wait for a handshake or for the peer. */
  pending: number;
  /** Bytes that apps here sent to peers, and received from them. */
  sent: number;
  received: number;
  failures: Partial<Record<FailureReason, number>>;
}

export interface CounterRows {
  ways: Record<Way, WayCounters>;
  /** TLS handshakes that succeeded. */
  handshakes: { client: number; server: number };
  /** Connections to apps that show the caller's address, and that show this machine's own because the caller can't be shown. */
  callers: { shown: number; hidden: number };
  /** Outbound connections that failed and came about on another endpoint. */
  retried: number;
  /** Verified identities of peers, with their connections. */
  identities: Record<string, number>;
  /** Outbound failures as SERVICE -> reason -> count. */
  services: Record<string, Partial<Record<FailureReason, number>>>;
}

export class Counters {
  readonly rows: CounterRows = {
    ways: { outbound: empty(), inbound: empty(), hbone: empty() },
    handshakes: { client: 0, server: 0 },
    callers: { shown: 0, hidden: 0 },
    retried: 0,
    identities: {},
    services: {},
  };
  /** Grows with every change. */
  version = 0;

  begin(way: Way): void {
    this.rows.ways[way].pending++;
    this.version++;
  }

  /** What began has come about. */
  opened(way: Way, identity?: string): void {
    const row = this.rows.ways[way];
    row.pending--;
    row.open++;
    row.total++;
    this.version++;
    if (identity === undefined) return;
    const { identities } = this.rows;
    const name = bounded(identities, identity);
    identities[name] = (identities[name] ?? 0) + 1;
  }

  closed(way: Way, sent: number, received: number): void {
    const row = this.rows.ways[way];
    row.open--;
    row.sent += sent;
    row.received += received;
    this.version++;
  }

  /** What began, or what was open, has failed; `service` for outbound. */
  failed(way: Way, reason: FailureReason, service?: string): void {
    const { failures } = this.rows.ways[way];
    failures[reason] = (failures[reason] ?? 0) + 1;
    this.version++;
    if (service === undefined) return;
    const { services } = this.rows;
    const name = bounded(services, service);
    const row = services[name] ?? {};
    row[reason] = (row[reason] ?? 0) + 1;
    services[name] = row;
  }

  /** What began is over before it came about. */
  abandoned(way: Way): void {
    this.rows.ways[way].pending--;
    this.version++;
  }
}

function bounded(rows: Record<string, unknown>, name: string): string {
  return Object.hasOwn(rows, name) || Object.keys(rows).length < MOST_NAMES ? name : OTHERS;
}

function empty(): WayCounters {
  return { open: 0, total: 0, pending: 0, sent: 0, received: 0, failures: {} };
}

/** The sum of the rows of several processes. */
export function addRows(all: readonly CounterRows[]): CounterRows {
  return all.reduce<unknown>((sum, each) => added(sum, pick(each)), undefined) as CounterRows;
}

function pick({ ways, handshakes, callers, retried, identities, services }: CounterRows): CounterRows {
  return { ways, handshakes, callers, retried, identities, services };
}

/** Numbers are added, objects member by member. */
function added(left: unknown, right: unknown): unknown {
  if (typeof left === "number" && typeof right === "number") return left + right;
  if (typeof left !== "object" || typeof right !== "object" || left === null || right === null)
    return left ?? right;
  const result: Record<string, unknown> = { ...left };
  for (const [name, value] of Object.entries(right)) result[name] = added(result[name], value);
  return result;
}
