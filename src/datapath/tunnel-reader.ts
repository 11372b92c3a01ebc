/** Reads the pinned tunnel targets, for the tunnel, which also works while no agent runs. */
import { statSync } from "node:fs";
import type { BpfMap } from "../kernel/maps.ts";
import type { Transport } from "../mesh/transport.ts";
import { readableMaps } from "./generation/map-owners.ts";
import { keptPin } from "./generation/pins.ts";
import { idOfNumber, readPeer } from "./mesh-tables/tunnel-targets.ts";
import { ChunkedTable } from "./tables/chunked-table.ts";
import * as layout from "./tables/layout.gen.ts";
import { nameOf } from "./tables/names.ts";
import type { MapName } from "./tables/tables.ts";

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
} as const;
type Name = keyof typeof SIZES;

/** Number of decoded transports in the cache. */
const KEPT_TRANSPORTS = 20_000;
/** Pause between attempts to open missing tables, milliseconds. */
const RETRY_MS = 500;

export class TunnelTargetReader {
  readonly #bpffs: string;
  #tables: Record<Name, ChunkedTable> | undefined;
  #maps: BpfMap[] = [];
  /** Identifies the pin of `tunnel_targets`. Another value means other tables. */
  #inode: number | undefined;
  #triedAt = Number.NEGATIVE_INFINITY;
  readonly #transports = new Map<string, Transport>();

  readonly #opened: () => void;

  /** Opens nothing yet: the tables below `bpffs` may appear later and be replaced. `opened` is called for each new set. */
  constructor(bpffs: string, opened: () => void = () => {}) {
    this.#bpffs = bpffs;
    this.#opened = opened;
  }

  /** The target of a number; undefined if there is none or if the tables can't be read now. */
  read(number: number): ReadTunnelTarget | undefined {
    const id = idOfNumber(number);
    if (id === undefined) return undefined;
    this.#follow();
    const found = this.#find(number, id);
    if (found || !this.#tables) return found;
    // Tables grow by further chunks, which are not mapped here yet.
    this.#open();
    return this.#find(number, id);
  }

  close(): void {
    for (const table of Object.values(this.#tables ?? {})) table.unmap();
    for (const map of this.#maps) map.close();
    this.#tables = undefined;
    this.#maps = [];
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
    if (!this.#tables && performance.now() - this.#triedAt < RETRY_MS) return;
    this.#open();
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
        if (map) opened[name] = new ChunkedTable(map, name, SIZES[name]);
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
    this.#maps = [...maps.values()];
    const inode = this.#pinned();
    const isOther = inode === undefined || inode !== this.#inode;
    this.#inode = inode;
    if (isOther) this.#opened();
  }

  #pinned(): number | undefined {
    return statSync(keptPin(this.#bpffs, "tunnel_targets"), { throwIfNoEntry: false })?.ino;
  }
}
