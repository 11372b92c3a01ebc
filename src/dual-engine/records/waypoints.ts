import type { Gateway, ServiceRecord } from "./records.ts";

/** The waypoints of a service with their weights; none for the service of a waypoint itself. */
export function waypointsOf(record: ServiceRecord): { gateway: Gateway; weight: number }[] {
  const { waypoint, weightedWaypoints, key, addresses } = record;
  const all =
    weightedWaypoints.length > 0
      ? [...weightedWaypoints]
      : waypoint
        ? [{ gateway: waypoint, weight: 1 }]
        : [];
  return all.filter(({ gateway: { destination } }) => {
    if (typeof destination === "string") return destination !== key;
    return !addresses.some(
      ({ network, address }) => network === destination.network && address === destination.address,
    );
  });
}
