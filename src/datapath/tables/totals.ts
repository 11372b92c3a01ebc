/** The kernel's counts of connections over all services, independent of agents and generations. */

import type { ChunkedTable } from "./chunked-table.ts";
import * as layout from "./layout.gen.ts";

/** Since the counters began. */
export interface Totals {
  /** Redirected or passed. */
  connections: number;
  /** Redirected connections whose endpoint refused or did not answer. */
  failed: number;
  /** Refused on purpose, for any reason. */
  refused: number;
}

const { fields } = layout.service_counters;
const REFUSED = Array.from({ length: fields.refused.count }, (_, i) => fields.refused.offset + i * 8);

export function totalsOf(counts: ChunkedTable): Totals {
  const totals: Totals = { connections: 0, failed: 0, refused: 0 };
  const sum = (id: number, offsets: readonly number[]) =>
    offsets.reduce((all, offset) => all + Number(counts.long(id, offset)), 0);
  for (let id = 0; id < counts.capacity; id++) {
    totals.connections += sum(id, [fields.redirected.offset, fields.passed.offset]);
    totals.failed += sum(id, [fields.failed.offset]);
    totals.refused += sum(id, REFUSED);
  }
  return totals;
}

/** The difference of two counts. A counter that restarted for another service adds nothing. */
export function since(before: Totals, after: Totals): Totals {
  const difference = (name: keyof Totals) => Math.max(0, after[name] - before[name]);
  return {
    connections: difference("connections"),
    failed: difference("failed"),
    refused: difference("refused"),
  };
}
