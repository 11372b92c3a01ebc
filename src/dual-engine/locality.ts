/** Which workloads of a service are near: the scopes of its load balancing, in order. */
import type { Place, Scope, ServiceRecord } from "./records.ts";

/**
 * How near `there` is to `here` by the service's scopes: the number of scopes that match, up to the first that does not, as in
 * ztunnel. The nearest rank is `scopes.length`. Undefined when the service's mode is STRICT and a scope does not match.
 */
export function rankOf(
  { mode, scopes }: Pick<ServiceRecord, "mode" | "scopes">,
  here: Place,
  there: Place,
): number | undefined {
  let rank = 0;
  for (const scope of scopes) {
    if (!matches(scope, here, there)) break;
    rank++;
  }
  return mode === "strict" && rank < scopes.length ? undefined : rank;
}

function matches(scope: Scope, here: Place, there: Place): boolean {
  // A scope that istiod did not name excludes nobody.
  return scope === "unspecified" || here[scope] === there[scope];
}

/** Priority in the model (0 is the first choice) of a rank. Without failover all are one. */
export function priorityOf({ mode, scopes }: Pick<ServiceRecord, "mode" | "scopes">, rank: number): number {
  return mode === "failover" ? scopes.length - rank : 0;
}
