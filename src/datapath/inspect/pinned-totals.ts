/** The connection counts of what is pinned, read without an agent. */
import { readableMap } from "../generation/map-owners.ts";
import { ChunkedTable } from "../tables/chunked-table.ts";
import * as layout from "../tables/layout.gen.ts";
import { type Totals, totalsOf } from "../tables/totals.ts";

/** The counts of the pins below `bpffs`, of any version. Throws KernelError when nothing is pinned. */
export function pinnedTotals(bpffs: string): Totals {
  const map = readableMap(bpffs, "service_counts");
  const table = new ChunkedTable(map, "svc_counts", layout.service_counters.size);
  try {
    return totalsOf(table);
  } finally {
    table.unmap();
    map.close();
  }
}
