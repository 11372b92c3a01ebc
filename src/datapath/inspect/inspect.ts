/** Reads the pinned tables back, with or without an agent. */
import { ActionableError } from "../../errors/actionable-error.ts";
import { cgroup2Root, cgroupPath } from "../../kernel/cgroup.ts";
import { kernelLimits } from "../../kernel/features.ts";
import type { Hook } from "../../kernel/link.ts";
import { BpfMap, FLAG } from "../../kernel/maps.ts";
import { formatMatch } from "../../mesh/frontend.ts";
import { ForeignGeneration, foreignGovernor, isAlive, pinnedLink } from "../generation/generations.ts";
import { readableMaps } from "../generation/map-owners.ts";
import { complete } from "../generation/pinned.ts";
import { HOOK_ORDER } from "../generation/pins.ts";
import { readPeer, readTransport } from "../mesh-tables/tunnel-targets.ts";
import { BROADCAST_ID } from "../tables/broadcast.ts";
import { ChunkedTable } from "../tables/chunked-table.ts";
import { enrolledIds, enrolledUnits } from "../tables/enrolment.ts";
import * as layout from "../tables/layout.gen.ts";
import { readNames } from "../tables/names.ts";
import { GENERATION_MAPS, KEPT_MAPS, type MapName, type Maps, NAME_MAPS, Tables } from "../tables/tables.ts";
import { findUnits } from "../tables/unit.ts";
import { recentConnections } from "./recent.ts";
import type { HookState, Inspection, ServiceCounters, Summary, TableState, Vitals } from "./state.ts";
import { countersOf, idsToNames, TableView } from "./table-view.ts";

/** Nothing is pinned below the folder. */
export class NothingPinned extends ActionableError {
  constructor(bpffs: string) {
    super(
      `no kmesh tables are pinned at ${bpffs}`,
      "Start an agent (systemctl start kmesh, or kmesh run), or name another folder with --bpffs.",
    );
    // A literal, because commands compare it and the bundler renames classes.
    this.name = "NothingPinned";
  }
}

/** Opens the pins below `bpffs` for reading. The caller closes them. Throws NothingPinned and ForeignGeneration. */
export function openPinned(bpffs: string): Tables {
  const foreign = foreignGovernor(bpffs);
  if (foreign !== undefined) throw new ForeignGeneration(bpffs, foreign);
  const maps = readableMaps(bpffs);
  if (maps.size === 0) throw new NothingPinned(bpffs);
  return new Tables(complete(maps));
}

/** Reads everything below `bpffs`. Throws NothingPinned, ForeignGeneration and KernelError. */
export function inspectPinned(bpffs: string): Inspection {
  return readPinned(bpffs, inspectTables);
}

/**
 * The same without the long lists. For another version's tables it has the parts that all versions share; for damaged
 * ones, the readable parts. Throws NothingPinned and KernelError.
 */
export function summarizePinned(bpffs: string): Summary {
  const foreign = foreignGovernor(bpffs);
  const maps = readableMaps(bpffs);
  if (maps.size === 0) throw new NothingPinned(bpffs);
  const nameless = NAME_MAPS.filter((name) => !maps.has(name));
  for (const name of nameless) maps.set(name, standIn(name));
  if (foreign !== undefined) return summarizeKept(bpffs, foreign, maps);
  const missing = [...GENERATION_MAPS, ...KEPT_MAPS].some((name) => !maps.has(name));
  if (missing) return summarizeKept(bpffs, undefined, maps);
  const tables = new Tables(complete(maps));
  try {
    const summary = summarizeTables(bpffs, tables);
    return nameless.length > 0 ? { ...summary, services: namelessCounters(tables.serviceCounts) } : summary;
  } finally {
    tables.close();
  }
}

/** Owns the maps. */
function summarizeKept(bpffs: string, foreign: string | undefined, maps: Map<MapName, BpfMap>): Summary {
  const base: Summary = {
    bpffs,
    abi: layout.ABI_ID,
    ...(foreign === undefined ? {} : { foreign }),
    hooks: HOOK_ORDER.map((hook) => hookState(bpffs, hook)),
    services: [],
    tables: [],
  };
  const { service_names, name_lines, service_counts } = Object.fromEntries(maps) as Partial<Maps>;
  try {
    if (!service_names || !name_lines || !service_counts) return base;
    const names = readNames(
      new ChunkedTable(service_names, "svc_names", layout.name_ref.size),
      new ChunkedTable(name_lines, "name_lines", layout.name_line.size),
    );
    const counts = new ChunkedTable(service_counts, "svc_counts", layout.service_counters.size);
    return { ...base, services: countersOf(counts, idsToNames(names)) };
  } finally {
    for (const map of maps.values()) map.close();
  }
}

/** An empty name table in place of a lost one, for readers. */
function standIn(name: MapName): BpfMap {
  const { type, keySize, valueSize, maxEntries } = layout.maps[name];
  const flags = FLAG.mmapable | FLAG.innerMap;
  using inner = BpfMap.create({
    name: "empty",
    type: "array",
    keySize: 4,
    valueSize: 8,
    maxEntries: 1,
    flags,
  });
  return BpfMap.create({ name, type, keySize, valueSize, maxEntries, inner });
}

/** Services with connections whose names are lost. */
function namelessCounters(counts: ChunkedTable): ServiceCounters[] {
  const names = new Map<number, string>();
  for (let id = 1; id < counts.capacity; id++) names.set(id, `service ${id}, whose name is lost`);
  return countersOf(counts, names).filter(
    ({ service, refused, ...numbers }) =>
      service === "" || Object.keys(refused).length > 0 || Object.values(numbers).some((count) => count > 0),
  );
}

function readPinned<T>(bpffs: string, read: (bpffs: string, tables: Tables) => T): T {
  const tables = openPinned(bpffs);
  try {
    return read(bpffs, tables);
  } finally {
    tables.close();
  }
}

export function inspectTables(bpffs: string, tables: Tables): Inspection {
  const view = new TableView(tables);
  return { ...summaryOf(bpffs, tables, view), frontends: view.frontends(), clusters: view.clusters() };
}

export function summarizeTables(bpffs: string, tables: Tables): Summary {
  return summaryOf(bpffs, tables, new TableView(tables));
}

function summaryOf(bpffs: string, tables: Tables, view: TableView): Summary {
  const foreign = foreignGovernor(bpffs);
  return {
    bpffs,
    abi: layout.ABI_ID,
    ...(foreign === undefined ? {} : { foreign }),
    hooks: HOOK_ORDER.map((hook) => hookState(bpffs, hook)),
    settings: settingsOf(tables, view),
    services: view.services(),
    ejections: view.ejections(),
    ...targetsOf(tables, (id) => view.serviceName(id)),
    tables: sizes(tables),
    limits: kernelLimits(),
    recent: recentConnections(tables, (id) => view.serviceName(id)),
  };
}

/** The tables' values for metrics: no lists, and only the names of clusters that eject. Throws KernelError. */
export function vitalsOf(bpffs: string, tables: Tables): Vitals {
  return {
    hooks: HOOK_ORDER.map((hook) => hookState(bpffs, hook)),
    ejections: new TableView(tables).ejections(),
    tables: sizes(tables),
  };
}

/** Whether programs of any version decide connections. Hooks are attached last, over tables that hold a mesh. */
export function governsPinned(bpffs: string): boolean {
  return HOOK_ORDER.every((hook) => hookState(bpffs, hook).attached);
}

function hookState(bpffs: string, hook: Hook): HookState {
  const link = pinnedLink(bpffs, hook);
  if (!link) return { hook, attached: false };
  const info = link.info();
  link.close();
  return { hook, attached: isAlive(info), programId: info.programId };
}

function settingsOf(tables: Tables, view: TableView): NonNullable<Summary["settings"]> {
  const { flags } = tables.settings;
  const cookie = tables.settings.get("netns");
  const fallback = view.frontend("", tables.settings.get("fallback"));
  return {
    shadow: flags.shadow,
    netns: flags.everyNetns ? "all" : cookie === 0n ? "initial" : `cookie ${cookie}`,
    cgroups: enrolledCgroups(tables),
    units: findUnits(cgroup2Root(), enrolledUnits(tables)),
    exclusions: tables.exclusions
      .list()
      .filter(({ id }) => id !== BROADCAST_ID)
      .map(({ match }) => formatMatch(match)),
    fallback: fallback.action === "pass" ? "pass" : `${fallback.action} ${fallback.target}`,
  };
}

function enrolledCgroups(tables: Tables): string[] {
  return enrolledIds(tables).map((id) => cgroupPath(id) ?? `cgroup ${id}, whose folder is not found`);
}

/** Includes unused targets while their numbers are in quarantine. */
function targetsOf(
  tables: Tables,
  nameOf: (service: number) => string | undefined,
): Required<Pick<Summary, "tunnel" | "encrypted">> {
  const tunnel: Record<string, number> = {};
  const encrypted: Record<string, Record<string, number>> = {};
  const kinds = new Map<number, string | undefined>();
  for (let id = 0; id < tables.tunnelTargets.capacity; id++) {
    const peer = readPeer(tables, id);
    if (!peer) continue;
    if (!kinds.has(peer.transport)) kinds.set(peer.transport, readTransport(tables, peer.transport)?.kind);
    const kind = kinds.get(peer.transport);
    if (!kind) continue;
    tunnel[kind] = (tunnel[kind] ?? 0) + 1;
    const service = nameOf(peer.service);
    if (service === undefined) continue;
    encrypted[service] ??= {};
    const row = encrypted[service];
    row[kind] = (row[kind] ?? 0) + 1;
  }
  return { tunnel, encrypted };
}

function sizes(tables: Tables): TableState[] {
  const chunked = {
    targets: tables.targets,
    clusters: tables.clusters,
    descriptors: tables.descriptors,
    slots: tables.slots,
    endpoints: tables.endpoints,
    name_lines: tables.nameLines,
    cluster_names: tables.clusterNames,
    service_names: tables.serviceNames,
    endpoint_loads: tables.endpointLoads,
    cluster_loads: tables.clusterLoads,
    service_counts: tables.serviceCounts,
    tunnel_targets: tables.tunnelTargets,
    transports: tables.transports,
    transport_lines: tables.transportLines,
  };
  return Object.entries(chunked).map(([name, { capacity, bytes }]) => ({ name, capacity, bytes }));
}
