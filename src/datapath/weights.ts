/**
 * From a cluster's localities to one list of weighted endpoints: priorities, overprovisioning, panic and locality
 * weights are worked out here, so that the kernel only has to walk slots.
 *
 * Follows Envoy's "Priority levels", "Panic threshold" and "Locality weighted load balancing".
 */
import type { EndpointList } from "../mesh/endpoint-list.ts";
import type { Cluster, Locality } from "../mesh/model.ts";

export type Family = "v4" | "v6";

/** An endpoint, by its place in a list, and its weight. */
export interface Weighted {
  list: EndpointList;
  index: number;
  /** Positive. Integers unless several priorities or locality weights make it a fraction. */
  weight: number;
}

/** One locality's endpoints of one family. */
interface Group {
  locality: Locality;
  list: EndpointList;
  healthy: number;
  total: number;
}

interface Level {
  groups: Group[];
  healthy: number;
  total: number;
}

/**
 * The cluster's endpoints of one family that get connections, with their weights. Empty when none is healthy and
 * the panic threshold doesn't say to use them all the same.
 */
export function weighEndpoints(cluster: Cluster, family: Family): Weighted[] {
  const levels = prioritiesOf(cluster, family);
  const used = loads(levels, cluster).filter(({ load }) => load > 0);
  const [only] = used;
  if (only && used.length === 1 && !cluster.localityWeighted) return plainMembers(only, family);
  return used.flatMap((load) =>
    scale(
      cluster.localityWeighted ? localityMembers(load, family, cluster) : plainMembers(load, family),
      load.load,
    ),
  );
}

function prioritiesOf(cluster: Cluster, family: Family): Level[] {
  const byPriority = new Map<number, Level>();
  for (const locality of cluster.localities) {
    const group = groupOf(locality, family);
    if (group.total === 0) continue;
    const level = byPriority.get(locality.priority) ?? { groups: [], healthy: 0, total: 0 };
    byPriority.set(locality.priority, level);
    level.groups.push(group);
    level.total += group.total;
    level.healthy += group.healthy;
  }
  return [...byPriority].sort(([a], [b]) => a - b).map(([, level]) => level);
}

function groupOf(locality: Locality, family: Family): Group {
  const list = locality.endpoints;
  const group: Group = { locality, list, healthy: 0, total: 0 };
  for (let i = 0; i < list.length; i++) {
    if (list.isV4(i) !== (family === "v4")) continue;
    group.total++;
    if (list.healthy(i)) group.healthy++;
  }
  return group;
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

function plainMembers({ level, panic }: Load, family: Family): Weighted[] {
  const members: Weighted[] = [];
  for (const group of level.groups) addMembers(members, group, family, panic);
  return members;
}

function localityMembers({ level, panic }: Load, family: Family, cluster: Cluster): Weighted[] {
  return level.groups.flatMap((group) => {
    const health = panic ? 100 : availability(group.healthy, group.total, cluster);
    const members: Weighted[] = [];
    addMembers(members, group, family, panic);
    return scale(members, group.locality.weight * health);
  });
}

function addMembers(members: Weighted[], { list }: Group, family: Family, panic: boolean): void {
  for (let index = 0; index < list.length; index++) {
    if (list.isV4(index) !== (family === "v4") || !(panic || list.healthy(index))) continue;
    members.push({ list, index, weight: list.weight(index) });
  }
}

/** The same proportions, summing up to `sum`. */
function scale(members: Weighted[], sum: number): Weighted[] {
  const total = members.reduce((all, member) => all + member.weight, 0);
  if (total === 0 || sum === 0) return [];
  return members.map((member) => ({ ...member, weight: (member.weight * sum) / total }));
}
