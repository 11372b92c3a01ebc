/** Questions about the filter chains of a listener and the destinations of their actions. */
import { contains } from "../mesh/address.ts";
import type { Action, Chain, ListenerRecord } from "./resources/listener.ts";
import type { Destination } from "./resources/route.ts";
import { BLACK_HOLE, PASSTHROUGH, type ServiceId, serviceOfCluster } from "./resources/service.ts";

/** The server names of the chains as text: the first three, and how many more there are. */
export function namesOf(chains: readonly Chain[]): string {
  const names = [...new Set(chains.flatMap(({ serverNames }) => serverNames))].sort();
  const some = names.slice(0, 3).join(", ");
  return names.length > 3 ? `${some} and ${names.length - 3} more` : some;
}

/** The chains that match an address and port: those with the most specific prefix. */
export function fittingChains(listener: ListenerRecord, address: string, port: number): readonly Chain[] {
  const [only] = listener.chains;
  if (listener.chains.length === 1 && only?.port === 0 && only.prefixes.length === 0) return listener.chains;
  const fitting = listener.chains.filter(
    (chain) => (chain.port === 0 || chain.port === port) && specificity(chain, address) >= 0,
  );
  const best = Math.max(...fitting.map((chain) => specificity(chain, address)));
  return fitting.filter((chain) => specificity(chain, address) === best);
}

/**
 * How specific a chain's match of an address is: 1 + the longest matching prefix length, 0 without prefixes, -1 when
 * none matches.
 */
function specificity(chain: Chain, address: string): number {
  if (chain.prefixes.length === 0) return 0;
  let best = -1;
  for (const prefix of chain.prefixes) {
    // A prefix of length 0 is more specific than no prefix.
    if (contains(prefix, address)) best = Math.max(best, prefix.length + 1);
  }
  return best;
}

/** The only family that a wildcard listener accepts on a port; undefined when it accepts both. */
export function familyOf(listener: ListenerRecord, port: number): "IPv4" | "IPv6" | undefined {
  const addresses = listener.addresses.filter((one) => one.port === port).map(({ address }) => address);
  if (addresses.includes("0.0.0.0") && addresses.includes("::")) return undefined;
  return addresses.includes("::") ? "IPv6" : "IPv4";
}

/** Whether an action needs HTTP routes. */
export function isRouted(action: Action): boolean {
  return action.kind === "routes" || action.kind === "inline-routes";
}

/** The name under which the routes of an action are configured: the RDS name, or the listener's. */
export function routesName(listener: ListenerRecord, action: Action): string {
  return action.kind === "routes" ? action.routes : listener.name;
}

/** The destination of a TCP action; undefined for other actions. */
export function destinationOf(action: Action | undefined): Destination | undefined {
  return action?.kind === "tcp" ? action.destination : undefined;
}

/**
 * Whether an action refuses connections or leads to a cluster other than istiod's PassthroughCluster and
 * BlackHoleCluster.
 */
export function leadsOn(action: Action | undefined): boolean {
  if (action?.kind === "refuse") return true;
  const destination = destinationOf(action);
  if (destination === undefined) return false;
  return (
    destination.kind === "shares" ||
    (destination.cluster !== PASSTHROUGH && destination.cluster !== BLACK_HOLE)
  );
}

/** The service of the first cluster of an action's destination. */
export function serviceOfAction(action: Action): ServiceId {
  const [cluster] = clustersOf(destinationOf(action));
  return serviceOfCluster(cluster ?? "*");
}

/** The clusters of a destination; [] without one. */
export function clustersOf(destination: Destination | undefined): string[] {
  if (destination === undefined) return [];
  if (destination.kind === "cluster") return [destination.cluster];
  return destination.shares.map(({ cluster }) => cluster);
}

/** Whether two destinations name the same clusters with the same weights, in the same order. */
export function sameDestination(a: Destination | undefined, b: Destination | undefined): boolean {
  if (a === undefined || b === undefined) return a === b;
  if (a.kind === "cluster" || b.kind === "cluster") {
    return a.kind === "cluster" && b.kind === "cluster" && a.cluster === b.cluster;
  }
  return (
    a.shares.length === b.shares.length &&
    a.shares.every((share, i) => {
      const other = b.shares[i];
      return share.cluster === other?.cluster && share.weight === other.weight;
    })
  );
}
