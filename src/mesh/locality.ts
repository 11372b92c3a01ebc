/** The order of a cluster's localities. */
import type { Locality } from "./model.ts";

/** By priority, region, zone and subzone, as Cluster.localities has them; 0 for the same place. */
export function compareLocalities(
  a: Omit<Locality, "endpoints" | "weight">,
  b: Omit<Locality, "endpoints" | "weight">,
): number {
  return (
    a.priority - b.priority ||
    compareText(a.region, b.region) ||
    compareText(a.zone, b.zone) ||
    compareText(a.subzone, b.subzone)
  );
}

function compareText(a: string, b: string): number {
  return a === b ? 0 : a < b ? -1 : 1;
}
