/**
 * From a cluster's localities to one list of weighted endpoints: priorities, overprovisioning, panic and locality
 * weights are worked out here, so that the kernel only has to walk slots.
 *
 * Follows Envoy's "Priority levels", "Panic threshold" and "Locality weighted load balancing".
 */
import type { Cluster, Endpoint, Locality } from "../mesh/model.ts";

export interface Weighted {
  endpoint: Endpoint;
  /** Positive. Integers unless `exact` is false. */
  weight: number;
}

export interface WeightedEndpoints {
  members: Weighted[];
  /** The weights are the configuration's own integers; otherwise they are fractions of 1. */
  exact: boolean;
}

interface Level {
  localities: Locality[];
  healthy: number;
  total: number;
}

/**
 * The endpoints that get connections, of those that `reachable` admits, with their share.
 * Empty when none is healthy and the panic threshold doesn't say to use them all the same.
 */
export function weighEndpoints(
  cluster: Cluster,
  reachable: (endpoint: Endpoint) => boolean,
): WeightedEndpoints {
  const levels = prioritiesOf(cluster, reachable);
  const used = loads(levels, cluster).filter(({ load }) => load > 0);
  if (used.length === 1 && !cluster.localityWeighted) {
    const [only] = used;
    return only
      ? { members: plainMembers(only.level, only.panic), exact: true }
      : { members: [], exact: true };
  }
  const members = used.flatMap(({ level, load, panic }) =>
    scale(
      cluster.localityWeighted ? localityMembers(level, panic, cluster) : plainMembers(level, panic),
      load,
    ),
  );
  return { members, exact: members.length === 0 };
}

function prioritiesOf(cluster: Cluster, reachable: (endpoint: Endpoint) => boolean): Level[] {
  const byPriority = new Map<number, Level>();
  for (const locality of cluster.localities) {
    const all = locality.endpoints.every(reachable);
    const endpoints = all ? locality.endpoints : locality.endpoints.filter(reachable);
    if (endpoints.length === 0) continue;
    const level = byPriority.get(locality.priority) ?? { localities: [], healthy: 0, total: 0 };
    byPriority.set(locality.priority, level);
    level.localities.push(all ? locality : { ...locality, endpoints });
    level.total += endpoints.length;
    level.healthy += countHealthy(endpoints);
  }
  return [...byPriority].sort(([a], [b]) => a - b).map(([, level]) => level);
}

interface Load {
  level: Level;
  /** Share of all connections, 0 to 1. */
  load: number;
  /** Health is ignored: too few healthy endpoints to bear the load. */
  panic: boolean;
}

function loads(levels: Level[], cluster: Cluster): Load[] {
  const available = levels.map((level) => availability(level.healthy, level.total, cluster));
  const total = Math.min(
    100,
    available.reduce((sum, value) => sum + value, 0),
  );
  if (total === 0) return panicLoads(levels, cluster);
  let left = 100;
  return levels.map((level, i) => {
    const load = Math.min(left, ((available[i] ?? 0) * 100) / total);
    left -= load;
    const panic = total < 100 && (level.healthy * 100) / level.total < cluster.panicThreshold;
    return { level, load: load / 100, panic };
  });
}

/** Nobody is healthy: all or none. */
function panicLoads(levels: Level[], cluster: Cluster): Load[] {
  if (cluster.panicThreshold === 0) return [];
  const total = levels.reduce((sum, level) => sum + level.total, 0);
  return levels.map((level) => ({ level, load: level.total / total, panic: true }));
}

function availability(healthy: number, total: number, cluster: Cluster): number {
  return total === 0 ? 0 : Math.min(100, (cluster.overprovisioning * healthy) / total);
}

function plainMembers(level: Level, panic: boolean): Weighted[] {
  return level.localities.flatMap((locality) =>
    usable(locality.endpoints, panic).map((endpoint) => ({ endpoint, weight: endpoint.weight })),
  );
}

function localityMembers(level: Level, panic: boolean, cluster: Cluster): Weighted[] {
  return level.localities.flatMap((locality) => {
    const { endpoints } = locality;
    const health = panic ? 100 : availability(countHealthy(endpoints), endpoints.length, cluster);
    const members = usable(endpoints, panic).map((endpoint) => ({ endpoint, weight: endpoint.weight }));
    return scale(members, locality.weight * health);
  });
}

/** The same proportions, summing up to `sum`. */
function scale(members: Weighted[], sum: number): Weighted[] {
  const total = members.reduce((all, member) => all + member.weight, 0);
  if (total === 0 || sum === 0) return [];
  return members.map(({ endpoint, weight }) => ({ endpoint, weight: (weight * sum) / total }));
}

function usable(endpoints: Endpoint[], panic: boolean): Endpoint[] {
  return panic || countHealthy(endpoints) === endpoints.length
    ? endpoints
    : endpoints.filter((endpoint) => endpoint.healthy);
}

function countHealthy(endpoints: Endpoint[]): number {
  let healthy = 0;
  for (const endpoint of endpoints) if (endpoint.healthy) healthy++;
  return healthy;
}
