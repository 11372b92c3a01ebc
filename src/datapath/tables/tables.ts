/** All tables of the data path, opened: one generation's and those that every generation keeps. */
import type { BpfMap } from "../../kernel/maps.ts";
import { ChunkedTable, reserveAll } from "./chunked-table.ts";
import { EnrolmentCache } from "./enrolment-cache.ts";
import { ExactTable, PrefixTable } from "./frontends.ts";
import * as layout from "./layout.gen.ts";
import { Settings } from "./settings.ts";

/** Maps of bpf/maps/tables.h: one set for each generation. */
export const GENERATION_MAPS = [
  "settings",
  "frontends",
  "prefixes",
  "exclusions",
  "targets",
  "clusters",
  "descriptors",
  "slots",
] as const;

/** Maps of bpf/maps/traffic.h: one set for all generations. */
export const TRAFFIC_MAPS = [
  "traffic",
  "served_ports",
  "flow_rows",
  "caller_rows",
  "accepted",
  "traffic_other",
  "latency_rows",
  "latency_blank",
  "traffic_log",
  "source_cache",
  "source_names",
  "flow_labels",
  "retired_rows",
  "retirement",
] as const;

/** Maps of bpf/maps/tunnel.h: one set for all generations. */
export const TUNNEL_MAPS = ["tunnel_targets", "transports", "transport_lines"] as const;

/** Kept maps for agents and the tunnel. No program uses them, and not every version has them. */
export const AGENT_MAPS = ["flow_labels", "retired_rows", "retirement", "peers", ...TUNNEL_MAPS] as const;

/** Maps of bpf/include/recent.h: one set for all generations. */
export const RECENT_MAPS = ["recent", "recent_number"] as const;

/** Maps of bpf/maps/caller.h: one set for all generations. */
export const CALLER_MAPS = ["callers", "carried", "peers", "tunnel_sockets"] as const;

/** Maps of bpf/maps/keep.h: one set for all generations. */
export const KEPT_MAPS = [
  "sockets",
  "endpoints",
  "endpoint_loads",
  "cluster_loads",
  "service_counts",
  "agents",
  "enrolled",
  "units",
  "enrolment",
  "verdicts",
  "name_lines",
  "cluster_names",
  "service_names",
  ...TRAFFIC_MAPS,
  ...RECENT_MAPS,
  ...TUNNEL_MAPS,
  ...CALLER_MAPS,
] as const;

/** The kept maps with names, for agents; no program uses them. */
export const NAME_MAPS = ["name_lines", "cluster_names", "service_names"] as const;

export type MapName = (typeof GENERATION_MAPS)[number] | (typeof KEPT_MAPS)[number];
export type Maps = Record<MapName, BpfMap>;

/** Whether a map is one of NAME_MAPS. */
export function isNameMap(name: MapName): boolean {
  return (NAME_MAPS as readonly MapName[]).includes(name);
}

/** Ids that a mesh needs, by kind. */
export interface Room {
  targets: number;
  clusters: number;
  descriptors: number;
  slots: number;
  endpoints: number;
  nameLines: number;
  services: number;
}

/** Puts empty inner maps into those `wanted` tables that have none. Each waits for the kernel. */
export function installEmpty(maps: ReadonlyMap<MapName, BpfMap>, wanted: (name: MapName) => boolean): void {
  const frontends = maps.get("frontends");
  if (frontends && wanted("frontends")) new ExactTable(frontends).close();
  for (const name of ["prefixes", "exclusions"] as const) {
    const outer = maps.get(name);
    if (outer && wanted(name)) new PrefixTable(outer, name).close();
  }
}

/** Called before an id is reused: false while something that carries it is not counted yet. */
export type MayReuse = (kind: "service" | "cluster" | "endpoint", id: number) => boolean;

export class Tables {
  /** Set by an owner of records by these ids; absent without one. */
  mayReuse: MayReuse | undefined;
  readonly maps: Maps;
  readonly settings: Settings;
  readonly enrolmentCache: EnrolmentCache;
  readonly exact: ExactTable;
  readonly prefixes: PrefixTable;
  readonly exclusions: PrefixTable;
  /** Frontend id -> target word. */
  readonly targets: ChunkedTable;
  /** Cluster id -> descriptor id. */
  readonly clusters: ChunkedTable;
  readonly descriptors: ChunkedTable;
  readonly slots: ChunkedTable;
  readonly endpoints: ChunkedTable;
  readonly nameLines: ChunkedTable;
  readonly clusterNames: ChunkedTable;
  readonly serviceNames: ChunkedTable;
  readonly endpointLoads: ChunkedTable;
  readonly clusterLoads: ChunkedTable;
  readonly serviceCounts: ChunkedTable;
  /** Endpoint id -> tunnel target. May be shorter than `endpoints`: it grows with the first target. */
  readonly tunnelTargets: ChunkedTable;
  readonly transports: ChunkedTable;
  readonly transportLines: ChunkedTable;

  /** Owns the maps; `close` closes them. */
  constructor(maps: Maps) {
    this.maps = maps;
    this.settings = new Settings(maps.settings);
    this.enrolmentCache = new EnrolmentCache(maps.enrolment, maps.verdicts);
    this.exact = new ExactTable(maps.frontends);
    this.prefixes = new PrefixTable(maps.prefixes, "prefixes");
    this.exclusions = new PrefixTable(maps.exclusions, "exclusions");
    try {
      this.targets = new ChunkedTable(maps.targets, "targets", 8);
      this.clusters = new ChunkedTable(maps.clusters, "clusters", 8);
      this.descriptors = new ChunkedTable(maps.descriptors, "descriptors", layout.descriptor.size);
      this.slots = new ChunkedTable(maps.slots, "slots", layout.slot_line.size);
      this.endpoints = new ChunkedTable(maps.endpoints, "endpoints", layout.endpoint.size);
      this.nameLines = new ChunkedTable(maps.name_lines, "name_lines", layout.name_line.size);
      this.clusterNames = new ChunkedTable(maps.cluster_names, "cl_names", layout.name_ref.size);
      this.serviceNames = new ChunkedTable(maps.service_names, "svc_names", layout.name_ref.size);
      this.endpointLoads = new ChunkedTable(maps.endpoint_loads, "ep_loads", layout.endpoint_load.size);
      this.clusterLoads = new ChunkedTable(maps.cluster_loads, "cl_loads", layout.cluster_load.size);
      this.serviceCounts = new ChunkedTable(maps.service_counts, "svc_counts", layout.service_counters.size);
      this.tunnelTargets = new ChunkedTable(maps.tunnel_targets, "tun_targets", layout.tunnel_target.size);
      this.transports = new ChunkedTable(maps.transports, "transports", layout.name_ref.size);
      this.transportLines = new ChunkedTable(maps.transport_lines, "tp_lines", layout.name_line.size);
    } catch (error) {
      for (const table of [this.exact, this.prefixes, this.exclusions]) table.close();
      throw error;
    }
  }

  /** Makes room for this number of ids of each kind. */
  reserve(room: Room): void {
    reserveAll([
      [this.targets, room.targets],
      [this.clusters, room.clusters],
      [this.clusterNames, room.clusters],
      [this.clusterLoads, room.clusters],
      [this.descriptors, room.descriptors],
      [this.slots, room.slots],
      [this.endpoints, room.endpoints],
      [this.endpointLoads, room.endpoints],
      [this.nameLines, room.nameLines],
      [this.serviceNames, room.services],
      [this.serviceCounts, room.services],
    ]);
  }

  /** Drops cached knowledge of the frontends' tables, after a failed write. */
  reread(): void {
    for (const table of [this.exact, this.prefixes, this.exclusions]) table.reread();
  }

  /** Closes the maps and unmaps the memory. Unpinned maps end. The object must not be used afterwards. */
  discard(): void {
    this.close();
    this.settings.unmap();
    this.enrolmentCache.unmap();
    const chunked = [
      ...[this.targets, this.clusters, this.descriptors, this.slots, this.endpoints, this.nameLines],
      ...[this.clusterNames, this.serviceNames, this.endpointLoads, this.clusterLoads, this.serviceCounts],
      ...[this.tunnelTargets, this.transports, this.transportLines],
    ];
    for (const table of chunked) table.unmap();
  }

  close(): void {
    for (const table of [this.exact, this.prefixes, this.exclusions]) table.close();
    for (const map of Object.values(this.maps)) map.close();
  }
}
