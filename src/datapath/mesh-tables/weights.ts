/**
 * From a cluster's localities to one list of weighted endpoints: priorities, overprovisioning, panic and locality
 * weights are worked out here, so that the kernel only has to walk slots.
 *
 * Follows Envoy's "Priority levels", "Panic threshold" and "Locality weighted load balancing".
 */
import type { EndpointList } from "../../mesh/endpoint-list.ts";
import type { Cluster, Locality } from "../../mesh/model.ts";

/** As sockets need it: endpoints that the tunnel reaches are IPv4 ones, whatever they are to the tunnel. */
export type Family = "v4" | "v6";

/** Endpoints, each by its place in a list, and their weights; the arrays go side by side. */
export interface Selection {
  lists: EndpointList[];
  places: number[];
  /** Positive. Integers unless several priorities or locality weights make them fractions. */
  weights: number[];
}

/** One locality's endpoints of one family. */
interface Group {
  locality: Locality;
  list: EndpointList;
  healthy: number;
  total: number;
}

interface Level {
  priority: number;
  groups: Group[];
  healthy: number;
  total: number;
}

/**
 * The cluster's endpoints of one family that get connections, with their weights. Nobody when none is healthy and
 * the panic threshold doesn't say to use them all the same.
 */
export function weighEndpoints(cluster: Cluster, family: Family): Selection {
  return weighLevels(prioritiesOf(cluster, family), cluster, family);
}

/**
 * The endpoints of one family by further priorities, those that get connections when all before are ejected: one selection
 * a priority with a healthy endpoint, `most` at most, the last one over all that are left. [] for a cluster without any.
 */
export function weighFallbacks(cluster: Cluster, family: Family, most: number): Selection[] {
  if (cluster.localities.length < 2) return [];
  const levels = prioritiesOf(cluster, family);
  if (levels.length < 2) return [];
  const used = new Set(loads(levels, cluster).flatMap(({ level, load }) => (load > 0 ? [level] : [])));
  const left = levels.filter((level) => level.healthy > 0 && !used.has(level));
  const levelled = left.slice(0, most - 1);
  if (left.length >= most) levelled.push(merged(left.slice(most - 1)));
  return levelled.map((level) => weighLevels([level], cluster, family));
}

/** Levels as one. */
function merged(levels: Level[]): Level {
  return levels.reduce((all, { groups, healthy, total }) => ({
    priority: all.priority,
    groups: [...all.groups, ...groups],
    healthy: all.healthy + healthy,
    total: all.total + total,
  }));
}

function weighLevels(levels: Level[], cluster: Cluster, family: Family): Selection {
  const selection: Selection = { lists: [], places: [], weights: [] };
  if (levels.length === 0) return selection;
  const used = loads(levels, cluster).filter(({ load }) => load > 0);
  const whole = used.length === 1 && !cluster.localityWeighted;
  for (const load of used) {
    if (cluster.localityWeighted) selectByLocality(selection, load, family, cluster);
    else selectByWeight(selection, load, family, whole ? undefined : load.load);
  }
  return selection;
}

function prioritiesOf(cluster: Cluster, family: Family): Level[] {
  const levels: Level[] = [];
  for (const locality of cluster.localities) {
    const group = groupOf(locality, family);
    if (group.total === 0) continue;
    const { priority } = locality;
    let level = levels.find((one) => one.priority === priority);
    if (level === undefined) {
      level = { priority, groups: [], healthy: 0, total: 0 };
      levels.push(level);
    }
    level.groups.push(group);
    level.total += group.total;
    level.healthy += group.healthy;
  }
  return levels.length > 1 ? levels.sort((a, b) => a.priority - b.priority) : levels;
}

function groupOf(locality: Locality, family: Family): Group {
  const list = locality.endpoints;
  const group: Group = { locality, list, healthy: 0, total: 0 };
  for (let i = 0; i < list.length; i++) {
    if (!isOf(list, i, family)) continue;
    group.total++;
    if (list.healthy(i)) group.healthy++;
  }
  return group;
}

function isOf(list: EndpointList, place: number, family: Family): boolean {
  return (list.isV4(place) || list.transport(place) > 0) === (family === "v4");
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

/** Adds a level's endpoints by their own weights; with `sum`, scaled to that sum. */
function selectByWeight(
  selection: Selection,
  { level, panic }: Load,
  family: Family,
  sum: number | undefined,
): void {
  const first = selection.weights.length;
  for (const group of level.groups) addMembers(selection, group, family, panic);
  if (sum !== undefined) scale(selection, first, sum);
}

/** Adds a level's endpoints; each locality's sum follows its weight and health, the level's its load. */
function selectByLocality(
  selection: Selection,
  { level, load, panic }: Load,
  family: Family,
  cluster: Cluster,
): void {
  const first = selection.weights.length;
  for (const group of level.groups) {
    const health = panic ? 100 : availability(group.healthy, group.total, cluster);
    const own = selection.weights.length;
    addMembers(selection, group, family, panic);
    scale(selection, own, group.locality.weight * health);
  }
  scale(selection, first, load);
}

function addMembers(selection: Selection, { list }: Group, family: Family, panic: boolean): void {
  for (let place = 0; place < list.length; place++) {
    if (!isOf(list, place, family) || !(panic || list.healthy(place))) continue;
    selection.lists.push(list);
    selection.places.push(place);
    selection.weights.push(list.weight(place));
  }
}

/** Keeps the proportions from `first` on and makes their sum `sum`; nothing of them is left when that is 0. */
function scale({ lists, places, weights }: Selection, first: number, sum: number): void {
  let total = 0;
  for (let i = first; i < weights.length; i++) total += weights[i] ?? 0;
  if (total === 0 || sum === 0) {
    lists.length = first;
    places.length = first;
    weights.length = first;
    return;
  }
  for (let i = first; i < weights.length; i++) weights[i] = ((weights[i] ?? 0) * sum) / total;
}
