/** Which workloads of a service are near: the scopes of its load balancing, in order. */
import type { Place, Scope, ServiceRecord } from "./records/records.ts";

/**
 * How near `there` is to `here` by the service's scopes: the number of scopes that match, up to the first that does not, as in
 * ztunnel. Where the first scope is the network, each workload of this network is nearer than any of another one, and those of
 * other networks are compared by the scopes after it. Undefined when the service's mode is STRICT and a scope does not match.
 */
export function rankOf(
  { mode, scopes }: Pick<ServiceRecord, "mode" | "scopes">,
  here: Place,
  there: Place,
): number | undefined {
  const [first] = scopes;
  const apart = first === "network" && !matches(first, here, there);
  let rank = 0;
  for (const scope of apart ? scopes.slice(1) : scopes) {
    if (!matches(scope, here, there)) break;
    rank++;
  }
  if (mode === "strict" && rank < scopes.length) return undefined;
  return first === "network" && !apart ? rank + scopes.length - 1 : rank;
}

function matches(scope: Scope, here: Place, there: Place): boolean {
  // A scope that istiod did not name excludes nobody.
  return scope === "unspecified" || here[scope] === there[scope];
}

/** Priority in the model (0 is the first choice) of a rank. Without failover all are one. */
export function priorityOf({ mode, scopes }: Pick<ServiceRecord, "mode" | "scopes">, rank: number): number {
  const nearest = scopes[0] === "network" ? 2 * scopes.length - 1 : scopes.length;
  return mode === "failover" ? nearest - rank : 0;
}
