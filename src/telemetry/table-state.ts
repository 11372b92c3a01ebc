/** Live connections and ejections of a cluster, by its name. */
import * as layout from "../datapath/tables/layout.gen.ts";
import { readNames } from "../datapath/tables/names.ts";
import type { Tables } from "../datapath/tables/tables.ts";

const { live: LIVE, ejected_until_ns: UNTIL, ejected: EJECTED } = layout.cluster_load.fields;

/** Ids by name, cached: a cluster keeps its id as long as its name. */
const known = new WeakMap<Tables, { at: number; ids: Map<string, number> }>();
const FRESH = 5_000;

export function clusterState(
  tables: Tables,
  cluster: string,
  now: number,
): { live: number; ejected: number } {
  let names = known.get(tables);
  if (!names || performance.now() - names.at > FRESH) {
    names = { at: performance.now(), ids: readNames(tables.clusterNames, tables.nameLines) };
    known.set(tables, names);
  }
  const id = names.ids.get(cluster);
  if (id === undefined || !tables.clusterLoads.has(id)) return { live: 0, ejected: 0 };
  const ejecting = tables.clusterLoads.count(id, UNTIL.offset) > now;
  return {
    live: Math.max(0, tables.clusterLoads.count(id, LIVE.offset)),
    ejected: ejecting ? tables.clusterLoads.word(id, EJECTED.offset) : 0,
  };
}
