/** What the load counts, and what two counts tell about the time between them. */
export interface Ledger {
  /** New connections that were answered, and those that were not. */
  made: number;
  failed: number;
  /** Long-lived connections that are open, and those that ended though nobody ended them. */
  open: number;
  cut: number;
  /** Answers that came over long-lived connections. */
  answers: number;
  /** Connections whose peer's address, as the app sees it, was not the one that it asked for. */
  wrongPeer: number;
  /** Queries for the service's name that were answered rightly, and those that were not. */
  resolved: number;
  unresolved: number;
  /** Answered new connections by the upstream that answered. */
  byUpstream: Record<string, number>;
  /** Why connections failed or were cut, with counts. */
  reasons: Record<string, number>;
}

export function emptyLedger(): Ledger {
  return {
    made: 0,
    failed: 0,
    open: 0,
    cut: 0,
    answers: 0,
    wrongPeer: 0,
    resolved: 0,
    unresolved: 0,
    byUpstream: {},
    reasons: {},
  };
}

/** The share of each upstream in the new connections between two counts: 0 to 1, by name, in the names' order. */
export function spreadBetween(
  before: Ledger,
  after: Ledger,
  upstreams: readonly string[],
): { upstream: string; connections: number; share: number }[] {
  const counts = upstreams.map(
    (upstream) => (after.byUpstream[upstream] ?? 0) - (before.byUpstream[upstream] ?? 0),
  );
  const total = counts.reduce((sum, count) => sum + count, 0);
  return upstreams.map((upstream, i) => {
    const connections = counts[i] ?? 0;
    return { upstream, connections, share: total === 0 ? 0 : connections / total };
  });
}
