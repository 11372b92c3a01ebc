/** Reads the pinned tables back, with names instead of ids. Needs no agent. */
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { ActionableError } from "../../errors/actionable-error.ts";
import { listPins, unpin } from "../../kernel/bpffs.ts";

import { cgroup2Root, cgroupPath } from "../../kernel/cgroup.ts";
import { monotonic } from "../../kernel/clock.ts";
import { kernelLimits } from "../../kernel/features.ts";
import type { Hook } from "../../kernel/link.ts";
import { BpfMap, FLAG } from "../../kernel/maps.ts";

import { formatMatch } from "../../mesh/frontend.ts";
import { REASONS, type Reason } from "../../mesh/model.ts";
import { ForeignGeneration, foreignGovernor, isAlive, pinnedLink } from "../generation/generations.ts";
import { readableMaps } from "../generation/map-owners.ts";
import { ownLink } from "../generation/pin-ownership.ts";
import { complete } from "../generation/pinned.ts";
import { ASIDE, HOOK_ORDER, linkPin } from "../generation/pins.ts";
import { splitOf } from "../mesh-tables/cluster-table.ts";
import {
  chainOf,
  type Descriptor,
  readDescriptor,
  readSlots,
  SLOT_REFUSE,
} from "../mesh-tables/descriptor.ts";
import { readEndpoint } from "../mesh-tables/endpoint-table.ts";
import { decodeTarget, reasonName } from "../mesh-tables/target.ts";
import { readPeer, readTransport } from "../mesh-tables/tunnel-targets.ts";
import { BROADCAST_ID } from "../tables/broadcast.ts";
import { ChunkedTable } from "../tables/chunked-table.ts";
import { enrolledIds, enrolledUnits } from "../tables/enrolment.ts";
import * as layout from "../tables/layout.gen.ts";
import { nameOf, readNames } from "../tables/names.ts";
import { GENERATION_MAPS, KEPT_MAPS, type MapName, type Maps, NAME_MAPS, Tables } from "../tables/tables.ts";
import { findUnits, type UnitState } from "../tables/unit.ts";
import { type RecentConnection, recentConnections } from "./recent.ts";

export interface HookState {
  hook: Hook;
  attached: boolean;
  programId?: number;
}

export interface ServiceCounters {
  service: string;
  redirected: number;
  passed: number;
  wouldRedirect: number;
  wouldRefuse: number;
  /** Reasons with at least one refusal. */
  refused: Partial<Record<Reason, number>>;
  /** Redirected connections whose endpoint refused or did not answer. */
  failed: number;
}

export interface FrontendState {
  /** `10.0.0.1:80`, `10.1.0.0/16:80`, `*:80` */
  match: string;
  service: string;
  action: "cluster" | "split" | "pass" | "refuse";
  /** The name of a cluster or split, or the reason of a refusal. */
  target: string;
}

export interface EndpointState {
  address: string;
  port: number;
  /** The share of its cluster's connections, 0 to 1. */
  share: number;
  live: number;
  /** Failed connects: all, and consecutive ones now. */
  failed: number;
  failures: number;
  /** Milliseconds until its ejection from this cluster ends; 0 without one. */
  ejectedFor: number;
}

export interface EjectedEndpoint {
  cluster: string;
  address: string;
  port: number;
  /** Milliseconds until the ejection ends. */
  forMs: number;
}

export interface ClusterState {
  name: string;
  kind: Descriptor["kind"];
  policy: Descriptor["policy"];
  reason?: Reason;
  /** The destination port at the address that the app asked for; present for kind port. */
  port?: number;
  maxConnections: number;
  live: number;
  endpoints: EndpointState[];
  /** Endpoints of further priorities, used when all earlier ones are ejected. Absent if there are none. */
  fallbacks?: EndpointState[][];
  /** The clusters of a split and their shares, 0 to 1. */
  shares: { cluster: string; share: number }[];
}

export interface TableState {
  name: string;
  /** The capacity in records. */
  capacity: number;
  bytes: number;
}

/** The kernel's state without the long lists. */
export interface Summary {
  bpffs: string;
  /** The layout of this version's tables. */
  abi: string;
  /** The layout of the live tables if another version made them. Settings and tables below are then not theirs. */
  foreign?: string;
  hooks: HookState[];
  /** Absent when this version has no tables. */
  settings?: {
    shadow: boolean;
    netns: "all" | "initial" | string;
    cgroups: string[];
    /** Units that are enrolled by name, with their present cgroups. */
    units: UnitState[];
    exclusions: string[];
    fallback: string;
  };
  services: ServiceCounters[];
  /** Ejected endpoints. Absent as the settings. */
  ejections?: {
    now: EjectedEndpoint[];
    /** The number of ejections. */
    ever: number;
    /** Whether the tables are stale, so that clusters without outlier detection eject, too. */
    stale: boolean;
  };
  /** The number of endpoints behind the tunnel, by kind of transport. Absent as the settings. */
  tunnel?: Record<string, number>;
  /** The same by service: the encryption of connections to it. Services without such an endpoint are absent. */
  encrypted?: Record<string, Record<string, number>>;
  tables: TableState[];
  /** Functions that this kernel does not support, one line each. Absent as the settings. */
  limits?: string[];
  /** The last refused and failed connections, the newest first. Absent as the settings. */
  recent?: RecentConnection[];
}

/** The part of a summary that changes with traffic. */
export type Vitals = Pick<Summary, "hooks" | "tables"> & Required<Pick<Summary, "ejections">>;

export interface Inspection extends Summary {
  frontends: FrontendState[];
  clusters: ClusterState[];
}

/** Nothing is pinned below the folder. */
export class NothingPinned extends ActionableError {
  constructor(bpffs: string) {
    super(
      `no kmesh tables are pinned at ${bpffs}`,
      "Start an agent with kmesh run, or name the folder with --bpffs.",
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
    return { ...base, services: countersOf(counts, byId(names)) };
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

/**
 * Detaches and removes everything below `bpffs`, of all versions, except foreign objects in aside/. Only `kmesh down` calls
 * it. Removes links first, those that decide before those that read. Throws KernelError before any change when the owner
 * of a link can't be determined.
 */
export function removePinned(bpffs: string): { removed: string[] } {
  if (!existsSync(bpffs)) return { removed: [] };
  const removed = ownPins(bpffs);
  // Foreign objects among them lose their pins, too.
  const aside = linksAside(bpffs);
  const links = [...linkPins(bpffs), ...aside].flatMap((path) => ownLink(path) ?? []);
  for (const link of links) {
    link.detach();
    link.close();
  }
  for (const path of aside) unpin(path);
  for (const name of readdirSync(bpffs)) if (name !== ASIDE) unpin(join(bpffs, name));
  if (listPins(bpffs).length === 0) unpin(bpffs);
  return { removed };
}

/** The paths that `removePinned` removes, without foreign objects in aside/. Throws KernelError. */
export function ownPins(bpffs: string): string[] {
  const own = linksAside(bpffs);
  const others = listPins(join(bpffs, ASIDE)).filter((path) => !own.includes(path));
  return listPins(bpffs).filter((path) => !others.includes(path));
}

/** kmesh's links in aside/, such as renamed links that were moved there. */
function linksAside(bpffs: string): string[] {
  return listPins(join(bpffs, ASIDE)).filter((path) => {
    using link = ownLink(path);
    return link !== undefined;
  });
}

/** Pinned links of all versions, first those of hooks that this version does not know. */
function linkPins(bpffs: string): string[] {
  const known = [...HOOK_ORDER].reverse().map((hook) => linkPin(bpffs, hook));
  const all = listPins(join(bpffs, "links"));
  return [...all.filter((path) => !known.includes(path)), ...known.filter((path) => all.includes(path))];
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

/** The tables with names instead of ids. Names are read at the first use. */
export class TableView {
  readonly tables: Tables;
  readonly #now = monotonic();
  #readClusterNames: Map<number, string> | undefined;
  #readServiceNames: Map<number, string> | undefined;

  constructor(tables: Tables) {
    this.tables = tables;
  }

  get #clusterNames(): Map<number, string> {
    this.#readClusterNames ??= byId(readNames(this.tables.clusterNames, this.tables.nameLines));
    return this.#readClusterNames;
  }

  get #serviceNames(): Map<number, string> {
    this.#readServiceNames ??= byId(readNames(this.tables.serviceNames, this.tables.nameLines));
    return this.#readServiceNames;
  }

  clusterName(id: number): string {
    return this.#clusterNames.get(id) ?? `cluster ${id}`;
  }

  serviceName(id: number): string {
    return this.#serviceNames.get(id) ?? "";
  }

  /** Counters by service; the first are those of connections to no service. */
  services(): ServiceCounters[] {
    return countersOf(this.tables.serviceCounts, this.#serviceNames);
  }

  frontends(): FrontendState[] {
    const { exact, prefixes, targets } = this.tables;
    return [...exact.list(), ...prefixes.list()].map(({ match, id }) =>
      this.frontend(formatMatch(match), targets.long(id)),
    );
  }

  /** Decodes a target word. */
  frontend(match: string, word: bigint): FrontendState {
    const { action, service, value } = decodeTarget(word);
    const base = { match, service: this.serviceName(service) };
    if (action === "refuse") return { ...base, action, target: reasonName(value) };
    if (action !== "cluster") return { ...base, action: "pass", target: "" };
    const name = this.clusterName(value);
    const split = splitOf(name);
    return split === undefined
      ? { ...base, action: "cluster", target: name }
      : { ...base, action: "split", target: split };
  }

  clusters(): ClusterState[] {
    return [...this.#clusterNames.keys()]
      .map((id) => this.cluster(id))
      .filter((state) => state !== undefined);
  }

  /** The published cluster of an id; undefined without one. */
  cluster(id: number): ClusterState | undefined {
    const { clusters, clusterLoads } = this.tables;
    const descriptor = this.descriptor(id);
    if (!descriptor || !clusters.has(id)) return undefined;
    const name = this.clusterName(id);
    const fallbacks = this.#fallbacks(id, descriptor);
    return {
      name: splitOf(name) ?? name,
      kind: descriptor.kind,
      policy: descriptor.policy,
      ...(descriptor.kind === "refuse" ? { reason: reasonName(descriptor.reason) } : {}),
      ...(descriptor.kind === "port" ? { port: descriptor.port } : {}),
      maxConnections: descriptor.maxConnections,
      live: clusterLoads.count(id, layout.cluster_load.fields.live.offset),
      endpoints: descriptor.kind === "endpoints" ? this.#endpoints(id, descriptor) : [],
      ...(fallbacks.length > 0 ? { fallbacks } : {}),
      shares: descriptor.kind === "split" ? this.#shares(descriptor) : [],
    };
  }

  /** All ejections ever count, those of removed clusters too. Only clusters that eject now are looked at closely. */
  ejections(): NonNullable<Summary["ejections"]> {
    const { clusterLoads, clusterNames, nameLines, settings } = this.tables;
    const { ejections, ejected_until_ns: until } = layout.cluster_load.fields;
    const now = Number(this.#now);
    const state: ReturnType<TableView["ejections"]> = {
      now: [],
      ever: 0,
      stale: settings.isStale(this.#now),
    };
    for (const { first, count, words, step } of clusterLoads.spans()) {
      for (let i = 0; i < count; i++) {
        state.ever += longOf(words, i * step + (ejections.offset >> 2));
        if (longOf(words, i * step + (until.offset >> 2)) <= now) continue;
        const id = first + i;
        const cluster = nameOf(clusterNames, nameLines, id);
        const descriptor = this.descriptor(id);
        if (cluster === undefined || descriptor?.kind !== "endpoints" || !this.#leavesOut(id, descriptor))
          continue;
        const all = [this.#endpoints(id, descriptor), ...this.#fallbacks(id, descriptor)].flat();
        for (const { address, port, ejectedFor: forMs } of all) {
          if (forMs > 0) state.now.push({ cluster, address, port, forMs });
        }
      }
    }
    return state;
  }

  descriptor(cluster: number): Descriptor | undefined {
    const { clusters, descriptors } = this.tables;
    const id = clusters.has(cluster) ? Number(clusters.long(cluster)) : 0;
    return id ? readDescriptor(descriptors, id) : undefined;
  }

  /** Like leaves_out() in connect.bpf.c: a cluster without outlier detection ejects only while the tables are stale. */
  #leavesOut(id: number, { ejection }: Descriptor): boolean {
    const { clusterLoads, settings } = this.tables;
    if (!clusterLoads.has(id) || (ejection.after === 0 && !settings.isStale(this.#now))) return false;
    return this.#left(clusterLoads.long(id, layout.cluster_load.fields.ejected_until_ns.offset)) > 0;
  }

  #fallbacks(id: number, descriptor: Descriptor): EndpointState[][] {
    const { descriptors } = this.tables;
    return chainOf(descriptors, descriptor.fallback).map((each) =>
      this.#endpoints(id, readDescriptor(descriptors, each)),
    );
  }

  #endpoints(id: number, descriptor: Descriptor): EndpointState[] {
    const leavesOut = this.#leavesOut(id, descriptor);
    return [descriptor.v4, descriptor.v6].flatMap((run) => {
      const times = occurrences(readSlots(this.tables.slots, run));
      const states = [...times].map(([endpoint, count]) => ({
        ...readEndpoint(this.tables, endpoint),
        share: count / run.count,
        ...this.#load(endpoint, leavesOut),
      }));
      return states.sort((a, b) =>
        a.address < b.address ? -1 : a.address > b.address ? 1 : a.port - b.port,
      );
    });
  }

  #load(endpoint: number, leavesOut: boolean): Omit<EndpointState, "address" | "port" | "share"> {
    const { endpointLoads } = this.tables;
    const { fields } = layout.endpoint_load;
    return {
      live: endpointLoads.count(endpoint, fields.live.offset),
      failed: Number(endpointLoads.long(endpoint, fields.failed.offset)),
      failures: endpointLoads.word(endpoint, fields.failures.offset),
      ejectedFor: leavesOut ? this.#left(endpointLoads.long(endpoint, fields.ejected_until_ns.offset)) : 0,
    };
  }

  /** Milliseconds until a time; 0 when it has passed. */
  #left(until: bigint): number {
    return Math.max(0, Number((until - this.#now) / 1_000_000n));
  }

  #shares(descriptor: Descriptor): { cluster: string; share: number }[] {
    const times = occurrences(readSlots(this.tables.slots, descriptor.v4));
    return [...times].map(([id, count]) => ({
      cluster: id >= SLOT_REFUSE ? reasonName(id - SLOT_REFUSE) : this.clusterName(id),
      share: count / descriptor.v4.count,
    }));
  }
}

/** Counters by service; the first are those of connections to no service. */
function countersOf(counts: ChunkedTable, names: Map<number, string>): ServiceCounters[] {
  return [[0, ""] as const, ...names].map(([id, name]) => counters(counts, id, name));
}

function counters(counts: ChunkedTable, id: number, service: string): ServiceCounters {
  const { fields } = layout.service_counters;
  const at = (offset: number) => (counts.has(id) ? Number(counts.long(id, offset)) : 0);
  const refused: Partial<Record<Reason, number>> = {};
  REASONS.forEach((reason, i) => {
    const count = at(fields.refused.offset + i * 8);
    if (count > 0) refused[reason] = count;
  });
  return {
    service,
    redirected: at(fields.redirected.offset),
    passed: at(fields.passed.offset),
    wouldRedirect: at(fields.would_redirect.offset),
    wouldRefuse: at(fields.would_refuse.offset),
    refused,
    failed: at(fields.failed.offset),
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

function occurrences(slots: Uint32Array): Map<number, number> {
  const times = new Map<number, number>();
  for (const slot of slots) times.set(slot, (times.get(slot) ?? 0) + 1);
  return times;
}

/** Two words as a number, exact up to 2^53. */
function longOf(words: Uint32Array, at: number): number {
  return (words[at + 1] ?? 0) * 2 ** 32 + (words[at] ?? 0);
}

function byId(names: Map<string, number>): Map<number, string> {
  return new Map([...names].map(([name, id]) => [id, name]));
}
