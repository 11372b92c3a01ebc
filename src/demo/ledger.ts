/** The counters of the load, and their differences. */
export interface Ledger {
  /** New connections with and without an answer. */
  made: number;
  failed: number;
  /** Long-lived connections that are open, and those that were cut. */
  open: number;
  cut: number;
  /** Answers over long-lived connections. */
  answers: number;
  /** Connections whose peer address, as the app sees it, differs from the requested one. */
  wrongPeer: number;
  /** Queries for the service's name with and without the right answer. */
  resolved: number;
  unresolved: number;
  /** Answered new connections, by upstream. */
  byUpstream: Record<string, number>;
  /** Reasons of failed and cut connections, with counts. */
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

/** The share of each upstream in the new connections between two counts, 0 to 1, sorted by name. */
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
