/** The kernel's own count of connections, over all services: it goes on whichever agent and generation there is. */

import type { ChunkedTable } from "./chunked-table.ts";
import * as layout from "./layout.gen.ts";

/** Since the counters began. */
export interface Totals {
  /** That the kernel decided and let go on: redirected or passed. */
  connections: number;
  /** Redirected, and the endpoint did not answer or refused. */
  failed: number;
  /** On purpose, for any reason. */
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

/** What was added from one to the other. A counter that began anew meanwhile, with another service, counts as nothing. */
export function since(before: Totals, after: Totals): Totals {
  const difference = (name: keyof Totals) => Math.max(0, after[name] - before[name]);
  return {
    connections: difference("connections"),
    failed: difference("failed"),
    refused: difference("refused"),
  };
}
