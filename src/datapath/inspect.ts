/** What the kernel holds, read back in words. Works on pinned state, with no agent alive. */
import { existsSync } from "node:fs";
import { listPins, unpin } from "../kernel/bpffs.ts";
import { cgroupPath } from "../kernel/cgroup.ts";
import { monotonic } from "../kernel/clock.ts";
import { HOOKS, type Hook } from "../kernel/link.ts";
import { formatMatch } from "../mesh/frontend.ts";
import { REASONS, type Reason } from "../mesh/model.ts";
import { splitOf } from "./clusters.ts";
import { type Descriptor, readDescriptor, readSlots, SLOT_REFUSE } from "./descriptor.ts";
import { readEndpoint } from "./endpoints.ts";
import { complete, isAlive, pinnedLink, pinnedMaps, rejectForeign } from "./generation.ts";
import * as layout from "./layout.gen.ts";
import { readNames } from "./names.ts";
import { HOOK_ORDER } from "./pins.ts";
import { Tables } from "./tables.ts";
import { decodeTarget, reasonName } from "./target.ts";

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
  /** Only reasons that occurred. */
  refused: Partial<Record<Reason, number>>;
  /** Redirected ones whose endpoint refused or did not answer. */
  failed: number;
}

export interface FrontendState {
  /** `10.0.0.1:80`, `10.1.0.0/16:80`, `*:80` */
  match: string;
  service: string;
  action: "cluster" | "split" | "pass" | "refuse";
  /** Name of a cluster or split, or the reason. */
  target: string;
}

export interface EndpointState {
  address: string;
  port: number;
  /** Of the connections that its cluster gets, 0 to 1. */
  share: number;
  live: number;
  /** Connects that failed: ever, and in the present row. */
  failed: number;
  failures: number;
  /** Milliseconds until it gets connections again; 0 when it is not ejected. */
  ejectedFor: number;
}

export interface EjectedEndpoint {
  cluster: string;
  address: string;
  port: number;
  /** Milliseconds until it gets connections again. */
  forMs: number;
}

export interface ClusterState {
  name: string;
  kind: Descriptor["kind"];
  policy: Descriptor["policy"];
  reason?: Reason;
  maxConnections: number;
  live: number;
  endpoints: EndpointState[];
  /** Of a split: clusters and their share, 0 to 1. */
  shares: { cluster: string; share: number }[];
}

export interface TableState {
  name: string;
  /** Records there is room for. */
  capacity: number;
  bytes: number;
}

/** What the kernel holds, without the long lists. */
export interface Summary {
  bpffs: string;
  abi: string;
  hooks: HookState[];
  settings: {
    shadow: boolean;
    netns: "all" | "initial" | string;
    cgroups: string[];
    exclusions: string[];
    fallback: string;
  };
  services: ServiceCounters[];
  /** Endpoints that get no connections, since their connects failed in a row. */
  ejections: {
    now: EjectedEndpoint[];
    /** How often that came about. */
    ever: number;
    /** Nobody keeps the tables up to date: clusters without outlier detection eject, too. */
    stale: boolean;
  };
  tables: TableState[];
}

export interface Inspection extends Summary {
  frontends: FrontendState[];
  clusters: ClusterState[];
}

/** Nothing is pinned there. */
export class NothingPinned extends Error {
  constructor(bpffs: string) {
    super(
      `no kmesh tables are pinned at ${bpffs}. Start one with \`kmesh run\`, or name its folder with --bpffs.`,
    );
    this.name = "NothingPinned";
  }
}

/** Opens what is pinned below `bpffs`, for reading. The caller closes it. Throws NothingPinned and ForeignGeneration. */
export function openPinned(bpffs: string): Tables {
  rejectForeign(bpffs);
  const maps = pinnedMaps(bpffs);
  if (maps.size === 0) throw new NothingPinned(bpffs);
  return new Tables(complete(maps));
}

/** Reads all that is pinned below `bpffs`. Throws NothingPinned and KernelError. */
export function inspectPinned(bpffs: string): Inspection {
  return readPinned(bpffs, inspectTables);
}

/** The same without the long lists. */
export function summarizePinned(bpffs: string): Summary {
  return readPinned(bpffs, summarizeTables);
}

function readPinned<T>(bpffs: string, read: (bpffs: string, tables: Tables) => T): T {
  const tables = openPinned(bpffs);
  try {
    return read(bpffs, tables);
  } finally {
    tables.close();
  }
}

/** Detaches and removes everything below `bpffs`: the decision of `kmesh down`. Links go first. */
export function removePinned(bpffs: string): { removed: string[] } {
  if (!existsSync(bpffs)) return { removed: [] };
  const removed = listPins(bpffs);
  for (const hook of [...HOOK_ORDER].reverse()) {
    const link = pinnedLink(bpffs, hook);
    link?.detach();
    link?.close();
  }
  unpin(bpffs);
  return { removed };
}

export function inspectTables(bpffs: string, tables: Tables): Inspection {
  const view = new TableView(tables);
  return { ...summaryOf(bpffs, tables, view), frontends: view.frontends(), clusters: view.clusters() };
}

export function summarizeTables(bpffs: string, tables: Tables): Summary {
  return summaryOf(bpffs, tables, new TableView(tables));
}

function summaryOf(bpffs: string, tables: Tables, view: TableView): Summary {
  return {
    bpffs,
    abi: layout.ABI_ID,
    hooks: HOOK_ORDER.map((hook) => hookState(bpffs, hook)),
    settings: settingsOf(tables, view),
    services: view.services(),
    ejections: view.ejections(),
    tables: sizes(tables),
  };
}

/** The tables with ids turned into names. */
export class TableView {
  readonly tables: Tables;
  readonly #clusterNames: Map<number, string>;
  readonly #serviceNames: Map<number, string>;
  readonly #now = monotonic();

  constructor(tables: Tables) {
    this.tables = tables;
    this.#clusterNames = byId(readNames(tables.clusterNames, tables.nameLines));
    this.#serviceNames = byId(readNames(tables.serviceNames, tables.nameLines));
  }

  clusterName(id: number): string {
    return this.#clusterNames.get(id) ?? `cluster ${id}`;
  }

  serviceName(id: number): string {
    return this.#serviceNames.get(id) ?? "";
  }

  /** Counters by service; the first are those of connections to no service. */
  services(): ServiceCounters[] {
    return [[0, ""] as const, ...this.#serviceNames].map(([id, name]) => this.#counters(id, name));
  }

  frontends(): FrontendState[] {
    const { exact, prefixes, targets } = this.tables;
    return [...exact.list(), ...prefixes.list()].map(({ match, id }) =>
      this.frontend(formatMatch(match), targets.long(id)),
    );
  }

  /** What a target word says. */
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

  /** The cluster as it is walked now; undefined when nothing is published under the id. */
  cluster(id: number): ClusterState | undefined {
    const { clusters, clusterLoads } = this.tables;
    const descriptor = this.descriptor(id);
    if (!descriptor || !clusters.has(id)) return undefined;
    const name = this.clusterName(id);
    return {
      name: splitOf(name) ?? name,
      kind: descriptor.kind,
      policy: descriptor.policy,
      ...(descriptor.kind === "refuse" ? { reason: reasonName(descriptor.reason) } : {}),
      maxConnections: descriptor.maxConnections,
      live: clusterLoads.count(id, layout.cluster_load.fields.live.offset),
      endpoints: descriptor.kind === "endpoints" ? this.#endpoints(descriptor) : [],
      shares: descriptor.kind === "split" ? this.#shares(descriptor) : [],
    };
  }

  ejections(): Summary["ejections"] {
    const { clusterLoads, settings } = this.tables;
    const { fields } = layout.cluster_load;
    const state: Summary["ejections"] = { now: [], ever: 0, stale: settings.isStale(this.#now) };
    for (const [id, cluster] of this.#clusterNames) {
      if (!clusterLoads.has(id)) continue;
      state.ever += Number(clusterLoads.long(id, fields.ejections.offset));
      if (this.#left(clusterLoads.long(id, fields.ejected_until_ns.offset)) === 0) continue;
      const descriptor = this.descriptor(id);
      // What a cluster without outlier detection ejected counts no more when an agent is back.
      if (descriptor?.kind !== "endpoints" || (descriptor.ejection.after === 0 && !state.stale)) continue;
      for (const { address, port, ejectedFor: forMs } of this.#endpoints(descriptor)) {
        if (forMs > 0) state.now.push({ cluster, address, port, forMs });
      }
    }
    return state;
  }

  descriptor(cluster: number): Descriptor | undefined {
    const { clusters, descriptors } = this.tables;
    const id = clusters.has(cluster) ? Number(clusters.long(cluster)) : 0;
    return id ? readDescriptor(descriptors, id) : undefined;
  }

  #endpoints(descriptor: Descriptor): EndpointState[] {
    return [descriptor.v4, descriptor.v6].flatMap((run) => {
      const times = occurrences(readSlots(this.tables.slots, run));
      const states = [...times].map(([id, count]) => ({
        ...readEndpoint(this.tables.endpoints, id),
        share: count / run.count,
        ...this.#load(id),
      }));
      return states.sort((a, b) =>
        a.address < b.address ? -1 : a.address > b.address ? 1 : a.port - b.port,
      );
    });
  }

  #load(endpoint: number): Omit<EndpointState, "address" | "port" | "share"> {
    const { endpointLoads } = this.tables;
    const { fields } = layout.endpoint_load;
    return {
      live: endpointLoads.count(endpoint, fields.live.offset),
      failed: Number(endpointLoads.long(endpoint, fields.failed.offset)),
      failures: endpointLoads.word(endpoint, fields.failures.offset),
      ejectedFor: this.#left(endpointLoads.long(endpoint, fields.ejected_until_ns.offset)),
    };
  }

  /** Milliseconds until then, 0 when it is over. */
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

  #counters(id: number, service: string): ServiceCounters {
    const { serviceCounts } = this.tables;
    const { fields } = layout.service_counters;
    const at = (offset: number) => (serviceCounts.has(id) ? Number(serviceCounts.long(id, offset)) : 0);
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
}

function hookState(bpffs: string, hook: Hook): HookState {
  const link = pinnedLink(bpffs, hook);
  if (!link) return { hook, attached: false };
  const info = link.info();
  link.close();
  return { hook, attached: isAlive(info) && info.attachType === HOOKS[hook], programId: info.programId };
}

function settingsOf(tables: Tables, view: TableView): Inspection["settings"] {
  const { flags } = tables.settings;
  const cookie = tables.settings.get("netns");
  const fallback = view.frontend("", tables.settings.get("fallback"));
  return {
    shadow: flags.shadow,
    netns: flags.everyNetns ? "all" : cookie === 0n ? "initial" : `cookie ${cookie}`,
    cgroups: enrolledCgroups(tables),
    exclusions: tables.exclusions.list().map(({ match }) => formatMatch(match)),
    fallback: fallback.action === "pass" ? "pass" : `${fallback.action} ${fallback.target}`,
  };
}

function enrolledCgroups(tables: Tables): string[] {
  const { keys, count } = tables.maps.enrolled.entries();
  const ids = new BigUint64Array(keys.slice().buffer).subarray(0, count);
  return [...ids].map((id) => cgroupPath(id) ?? `cgroup ${id}, whose folder is not found`);
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
  };
  return Object.entries(chunked).map(([name, { capacity, bytes }]) => ({ name, capacity, bytes }));
}

function occurrences(slots: Uint32Array): Map<number, number> {
  const times = new Map<number, number>();
  for (const slot of slots) times.set(slot, (times.get(slot) ?? 0) + 1);
  return times;
}

function byId(names: Map<string, number>): Map<number, string> {
  return new Map([...names].map(([name, id]) => [id, name]));
}
