/** The counters of a tunnel, for its status. All are bounded: names beyond the limits are counted as "(others)". */
import type { FailureReason } from "./failure.ts";

export type Way = "outbound" | "inbound" | "hbone";

/** Most identities of peers, and most pairs of service and reason. */
const MOST_NAMES = 1_000;
const OTHERS = "(others)";

export interface WayCounters {
  /** Open connections (or CONNECTs), and all established ones. */
  open: number;
  total: number;
  /** Connections that are being established. */
  pending: number;
  /** Bytes that local apps sent to peers and received from them. */
  sent: number;
  received: number;
  failures: Partial<Record<FailureReason, number>>;
}

export interface CounterRows {
  ways: Record<Way, WayCounters>;
  /** Successful TLS handshakes. */
  handshakes: { client: number; server: number };
  /** Connections to apps that show the caller's address, and that show this machine's own because the caller can't be shown. */
  callers: { shown: number; hidden: number };
  /** Outbound connections that failed and succeeded on another endpoint. */
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

  /** A connection was established. */
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

  /** A connection failed; `service` for outbound. */
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

  /** A connection ended before it was established. */
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
