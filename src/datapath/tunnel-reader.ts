/** Reads the pinned tables for the tunnel: its targets, and how their endpoints are. It also works while no agent runs. */
import { statSync } from "node:fs";
import { monotonic } from "../kernel/clock.ts";
import type { BpfMap } from "../kernel/maps.ts";
import { BpfProgram } from "../kernel/object.ts";
import type { Transport } from "../mesh/transport.ts";
import { foreignGovernor, runningProgram } from "./generation/generations.ts";
import { readableMaps } from "./generation/map-owners.ts";
import { keptPin } from "./generation/pins.ts";
import { idOfNumber, numberOf, readPeer } from "./mesh-tables/tunnel-targets.ts";
import { ChunkedTable } from "./tables/chunked-table.ts";
import * as layout from "./tables/layout.gen.ts";
import { nameOf } from "./tables/names.ts";
import { Settings } from "./tables/settings.ts";
import type { MapName } from "./tables/tables.ts";
import {
  anotherEndpoint,
  type BalanceTables,
  countFailure,
  recordFailure,
  recordSuccess,
} from "./tunnel-outcomes.ts";

/** An endpoint behind the tunnel, by the number in its address 127.a.b.c. */
export interface ReadTunnelTarget {
  number: number;
  peer: { address: string; port: number };
  transport: Transport;
  service: string;
  cluster: string;
}

/** Record sizes of the tables. */
const SIZES = {
  endpoints: layout.endpoint.size,
  tunnel_targets: layout.tunnel_target.size,
  transports: layout.name_ref.size,
  transport_lines: layout.name_line.size,
  cluster_names: layout.name_ref.size,
  service_names: layout.name_ref.size,
  name_lines: layout.name_line.size,
  endpoint_loads: layout.endpoint_load.size,
  service_counts: layout.service_counters.size,
} as const;
type Name = keyof typeof SIZES;

/** Those by which the kernel balances. Without them (another version's tables) targets are reached all the same. */
const BALANCE_SIZES = {
  clusters: 8,
  descriptors: layout.descriptor.size,
  slots: layout.slot_line.size,
  cluster_loads: layout.cluster_load.size,
} as const;

/** Number of decoded transports in the cache. */
const KEPT_TRANSPORTS = 20_000;
/**
 * Pause between attempts to open the tables, milliseconds. Tables that were opened so long ago are opened again when a connection
 * fails: they grow, and after an upgrade the kernel balances by other ones.
 */
const REOPEN_MS = 500;
/** Pause between looks for maps that an upgraded agent adds, milliseconds: longer, since an old agent may stay. */
const ADDED_MS = 10_000;
/** Pause between looks for the programs that guard the tunnel's port, milliseconds: two syscalls. */
const GUARD_MS = 500;

/** The hooks at which apps could enter the tunnel. */
const GUARDED = ["connect4", "connect6"] as const;

/** Whether a program is loaded: attached, or pinned. */
function lives(id: number): boolean {
  try {
    BpfProgram.fromId(id).close();
    return true;
  } catch {
    return false;
  }
}

export interface CallerMaps {
  callers: BpfMap;
  /** Absent in tables of an earlier version: traffic is then not counted for callers. */
  counted?: { carried: BpfMap; peers: BpfMap; sockets: BpfMap; served: BpfMap };
}

function callerMaps(maps: ReadonlyMap<MapName, BpfMap>): CallerMaps | undefined {
  const callers = maps.get("callers");
  const carried = maps.get("carried");
  const peers = maps.get("peers");
  const sockets = maps.get("tunnel_sockets");
  const served = maps.get("served_ports");
  if (!callers) return undefined;
  const isWhole = carried && peers && sockets && served;
  return { callers, ...(isWhole && { counted: { carried, peers, sockets, served } }) };
}

export class TunnelTargetReader {
  readonly #bpffs: string;
  #tables: Record<Name, ChunkedTable> | undefined;
  #balance: BalanceTables | undefined;
  #callers: CallerMaps | undefined;
  #maps: BpfMap[] = [];
  /** Identifies the pin of `tunnel_targets`. Another value means other tables. */
  #inode: number | undefined;
  #triedAt = Number.NEGATIVE_INFINITY;
  readonly #transports = new Map<string, Transport>();
  /** Ids of the programs that refuse connections of apps to the tunnel's own port. */
  #guards: number[] = [];
  #guardSeenAt = Number.NEGATIVE_INFINITY;

  readonly #opened: () => void;

  /** Opens nothing yet: the tables below `bpffs` may appear later and be replaced. `opened` is called for each new set. */
  constructor(bpffs: string, opened: () => void = () => {}) {
    this.#bpffs = bpffs;
    this.#opened = opened;
  }

  /**
   * The target of a number; undefined if there is none, if the tables can't be read now, or if nothing guards the tunnel's port
   * any more (after `kmesh down`): any local user could choose a target then.
   */
  read(number: number): ReadTunnelTarget | undefined {
    const id = idOfNumber(number);
    if (id === undefined) return undefined;
    this.#follow();
    if (!this.#isGuarded()) return undefined;
    const found = this.#find(number, id);
    if (found || !this.#tables) return found;
    // Tables grow by further chunks, which are not mapped here yet.
    this.#open();
    return this.#find(number, id);
  }

  /** Another endpoint of the same cluster for a target that failed; undefined when there is none. */
  another(number: number): ReadTunnelTarget | undefined {
    // Those of the version before may name removed endpoints.
    this.#reopen();
    const id = idOfNumber(number);
    if (id === undefined || !this.#balance) return undefined;
    const other = anotherEndpoint(this.#balance, id, monotonic());
    return other === undefined ? undefined : this.read(numberOf(other));
  }

  /** Records how a connection to a target went that began at `since`, for the kernel's balancing. */
  record(number: number, went: "well" | "wrong", since: bigint): void {
    const id = idOfNumber(number);
    if (id === undefined) return;
    if (went === "wrong") this.#reopen();
    if (!this.#balance) {
      if (went === "wrong") this.#count(id);
      return;
    }
    if (went === "well") recordSuccess(this.#balance, id, since);
    else recordFailure(this.#balance, id, since, monotonic());
  }

  /** Another version's tables: the failure is counted, and ejects nobody. */
  #count(id: number): void {
    const tables = this.#tables;
    if (!tables) return;
    const { endpoints, tunnel_targets: tunnelTargets, endpoint_loads, service_counts } = tables;
    countFailure(
      { endpoints, tunnelTargets, endpointLoads: endpoint_loads, serviceCounts: service_counts },
      id,
    );
  }

  /** The maps of callers.ts; undefined while they are not there. They are the reader's: do not keep them. */
  callers(): CallerMaps | undefined {
    this.#follow();
    // An agent that is upgraded adds maps to the tables that there are.
    if (this.#callers && !this.#callers.counted && performance.now() - this.#triedAt >= ADDED_MS)
      this.#open();
    return this.#callers;
  }

  close(): void {
    for (const table of Object.values(this.#tables ?? {})) table.unmap();
    this.#closeBalance();
    for (const map of this.#maps) map.close();
    this.#tables = undefined;
    this.#callers = undefined;
    this.#maps = [];
  }

  #isGuarded(): boolean {
    const now = performance.now();
    if (now - this.#guardSeenAt < GUARD_MS) return true;
    const guards = () => this.#guards.length === GUARDED.length && this.#guards.every(lives);
    // An upgrade has put others in their place, or the tables were opened before any were attached.
    if (!guards() && this.#pinned() !== undefined) this.#open();
    if (!guards()) return false;
    this.#guardSeenAt = now;
    return true;
  }

  #find(number: number, id: number): ReadTunnelTarget | undefined {
    const tables = this.#tables;
    if (!tables) return undefined;
    const { endpoints, tunnel_targets: tunnelTargets } = tables;
    const peer = readPeer({ endpoints, tunnelTargets }, id);
    const transport = peer && this.#transport(tables, peer.transport);
    if (!peer || !transport) return undefined;
    return {
      number,
      peer: { address: peer.address, port: peer.port },
      transport,
      service: nameOf(tables.service_names, tables.name_lines, peer.service) ?? "",
      cluster: nameOf(tables.cluster_names, tables.name_lines, peer.cluster) ?? "",
    };
  }

  #transport(tables: Record<Name, ChunkedTable>, id: number): Transport | undefined {
    const text = nameOf(tables.transports, tables.transport_lines, id);
    if (text === undefined) return undefined;
    const known = this.#transports.get(text);
    if (known) return known;
    if (this.#transports.size >= KEPT_TRANSPORTS) this.#transports.clear();
    try {
      const transport = JSON.parse(text) as Transport;
      this.#transports.set(text, transport);
      return transport;
    } catch {
      return undefined;
    }
  }

  /** Opens the tables if they are not open, or if `kmesh down` and a new start created others. */
  #follow(): void {
    const inode = this.#pinned();
    // The pin was removed. The agent pins the same table again.
    if (this.#tables && (inode === undefined || inode === this.#inode)) return;
    if (this.#tables) this.#open();
    else this.#reopen();
  }

  #reopen(): void {
    if (performance.now() - this.#triedAt >= REOPEN_MS) this.#open();
  }

  #open(): void {
    this.#triedAt = performance.now();
    let maps: Map<MapName, BpfMap>;
    try {
      maps = readableMaps(this.#bpffs);
    } catch {
      return;
    }
    const names = Object.keys(SIZES) as Name[];
    const opened: Partial<Record<Name, ChunkedTable>> = {};
    try {
      for (const name of names) {
        const map = maps.get(name);
        if (map) opened[name] = new ChunkedTable(map, name, SIZES[name]).open();
      }
    } catch {
      // Out of memory: keep the open tables.
    }
    const isWhole = names.every((name) => opened[name] !== undefined);
    if (!isWhole) {
      for (const table of Object.values(opened)) table.unmap();
      for (const map of maps.values()) map.close();
      return;
    }
    this.close();
    this.#tables = opened as Record<Name, ChunkedTable>;
    this.#balance = this.#openBalance(maps, this.#tables);
    this.#callers = callerMaps(maps);
    this.#maps = [...maps.values()];
    this.#guards = GUARDED.flatMap((hook) => runningProgram(this.#bpffs, hook)?.id ?? []);
    const inode = this.#pinned();
    const isOther = inode === undefined || inode !== this.#inode;
    this.#inode = inode;
    if (isOther) this.#opened();
  }

  #openBalance(maps: Map<MapName, BpfMap>, tables: Record<Name, ChunkedTable>): BalanceTables | undefined {
    const opened: ChunkedTable[] = [];
    const open = (name: keyof typeof BALANCE_SIZES) => {
      const map = maps.get(name);
      if (!map) throw new Error(`the table ${name} is not there`);
      const table = new ChunkedTable(map, name, BALANCE_SIZES[name]);
      opened.push(table);
      return table;
    };
    const settings = maps.get("settings");
    if (!settings) return undefined;
    try {
      // This version's own tables stay behind for an hour after an upgrade, and nobody keeps them up to date.
      if (foreignGovernor(this.#bpffs) !== undefined) return undefined;
      return {
        endpoints: tables.endpoints,
        tunnelTargets: tables.tunnel_targets,
        clusters: open("clusters"),
        descriptors: open("descriptors"),
        slots: open("slots"),
        endpointLoads: tables.endpoint_loads,
        clusterLoads: open("cluster_loads"),
        serviceCounts: tables.service_counts,
        settings: new Settings(settings),
      };
    } catch {
      for (const table of opened) table.unmap();
      return undefined;
    }
  }

  #closeBalance(): void {
    if (!this.#balance) return;
    const { settings, clusters, descriptors, slots, clusterLoads } = this.#balance;
    for (const table of [clusters, descriptors, slots, clusterLoads]) table.unmap();
    settings.unmap();
    this.#balance = undefined;
  }

  #pinned(): number | undefined {
    return statSync(keptPin(this.#bpffs, "tunnel_targets"), { throwIfNoEntry: false })?.ino;
  }
}
