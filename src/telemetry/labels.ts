/**
 * Names of the services and endpoints whose numbers are in the rows. Names that istiod removed are kept in the kernel beside the
 * rows (map `flow_labels`), because counters outlive configuration and agents.
 */

import { type EndpointAddress, readEndpoint } from "../datapath/mesh-tables/endpoint-table.ts";
import { readPeer, readTransport } from "../datapath/mesh-tables/tunnel-targets.ts";
import { findPeer, isPeerKey, type Peer } from "../datapath/peers.ts";
import * as layout from "../datapath/tables/layout.gen.ts";
import { nameOf } from "../datapath/tables/names.ts";
import type { Tables } from "../datapath/tables/tables.ts";
import { fixedText } from "../kernel/info.ts";
import type { BpfMap } from "../kernel/maps.ts";
import { keyOf, type WorkloadIndex } from "../mesh/workload.ts";
import { carriedText, workloadText } from "./carried.ts";
import { viewOf } from "./counters/rows.ts";
import type { Workload } from "./model.ts";

const KINDS = {
  service: layout.enums.label_kind.LABEL_SERVICE,
  endpoint: layout.enums.label_kind.LABEL_ENDPOINT,
};
type Kind = keyof typeof KINDS;
const ROOM = layout.label.size - 1;
const LITTLE = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;
const USED = layout.endpoint.fields.used.offset;
/** Callers in the cache: as many as have an entry in the kernel, and as many that had one. */
const MOST_PEERS = 2 * layout.maps.peers.maxEntries;

export class Labels {
  readonly #tables: Tables;
  readonly #map: BpfMap;
  readonly #workloads: WorkloadIndex | undefined;
  readonly #writes: boolean;
  readonly #kept = { service: new Map<number, string>(), endpoint: new Map<number, string>() };
  /** A cache by id, because a scrape needs ten thousand. `changed` invalidates it. */
  readonly #services = new Map<number, string>();
  readonly #endpoints = new Map<number, Endpoint>();
  /** Callers by mutual TLS by their keys. A key stands for the same caller forever. */
  readonly #peers = new Map<string, Peer>();

  #changes = 0;

  /** `workloads` is absent in commands; `writes`: names may be kept for the next agent. */
  constructor(tables: Tables, workloads: WorkloadIndex | undefined, writes: boolean) {
    this.#tables = tables;
    this.#map = tables.maps.flow_labels;
    this.#workloads = workloads;
    this.#writes = writes;
    const { keys, values, count } = this.#map.entries();
    const view = viewOf(keys);
    for (let i = 0; i < count; i++) {
      const kind = view.getUint32(i * 8, LITTLE) === KINDS.service ? "service" : "endpoint";
      const text = fixedText(values.subarray(i * layout.label.size, (i + 1) * layout.label.size));
      this.#kept[kind].set(view.getUint32(i * 8 + 4, LITTLE), text);
    }
  }

  /** "host:port", or the name of one of istiod's own clusters; undefined for 0 (no service). */
  service(id: number): string | undefined {
    if (id === 0) return undefined;
    const read = this.#services.get(id);
    if (read !== undefined) return read;
    const name = nameOf(this.#tables.serviceNames, this.#tables.nameLines, id);
    if (name !== undefined) this.#services.set(id, name);
    return this.#keep("service", id, name) ?? `service-${id}`;
  }

  cluster(id: number): string | undefined {
    return nameOf(this.#tables.clusterNames, this.#tables.nameLines, id);
  }

  endpoint(id: number): EndpointAddress | undefined {
    return this.#endpoint(id);
  }

  #endpoint(id: number): Endpoint | undefined {
    const read = this.#endpoints.get(id);
    if (read) return read;
    const { endpoints } = this.#tables;
    if (!endpoints.has(id) || endpoints.word(id, USED) === 0) return undefined;
    const at = readEndpoint(this.#tables, id);
    const peer = readPeer(this.#tables, id);
    const transport = peer && readTransport(this.#tables, peer.transport);
    const carried = transport ? carriedText(transport) : "";
    const found = { ...at, key: keyOf(at.address, at.port), carried };
    this.#endpoints.set(id, found);
    return found;
  }

  /** Changes when the name of an id or of an address may have changed. */
  get revision(): number {
    return this.#changes + (this.#workloads?.revision ?? 0);
  }

  /** Call it before the id is reused. */
  changed(kind: "service" | "cluster" | "endpoint", id: number): void {
    this.#changes++;
    if (kind === "service") this.#services.delete(id);
    if (kind === "endpoint") this.#endpoints.delete(id);
  }

  /**
   * istiod's workload label of an endpoint of a service (its id), and how the tunnel carries its connections (carried.ts); ""
   * without both.
   */
  workload(id: number, service: number): string {
    const at = this.#endpoint(id);
    const own = at && this.#workloads?.variant(at.key, this.service(service) ?? "");
    if (own !== undefined) return at?.carried ? workloadText(own, at.carried) : own;
    const kept = this.#kept.endpoint.get(id);
    const text = at && this.#workloads?.at(at.key);
    // The way of an id never changes, also before istiod has named its workload.
    const whole = at?.carried ? workloadText(text ?? kept ?? "", at.carried) : text;
    return this.#keep("endpoint", id, whole) ?? "";
  }

  /** The same for a caller, by the text of what stands for it in an inbound row. */
  caller(remote: string): string {
    const { address, text } = this.#peer(remote);
    const workload = this.#workloads?.findHost(address) ?? "";
    return text === "" ? workload : workloadText(workload, text);
  }

  /** The address of that caller; "::" of those that found no room. */
  callerAddress(remote: string): string {
    return this.#peer(remote).address;
  }

  #peer(remote: string): Peer {
    if (!isPeerKey(remote)) return { address: remote, text: "" };
    const known = this.#peers.get(remote);
    if (known) return known;
    const peer = findPeer(this.#tables.maps.peers, remote);
    if (peer.text === "") return peer;
    if (this.#peers.size >= MOST_PEERS) this.#peers.clear();
    this.#peers.set(remote, peer);
    return peer;
  }

  /** Nanoseconds of the monotonic clock until which the endpoint is ejected; 0 when it never was. */
  ejectedUntil(id: number): number {
    const { ejected_until_ns } = layout.endpoint_load.fields;
    return Math.max(0, this.#tables.endpointLoads.count(id, ejected_until_ns.offset));
  }

  /** Call it when the number is reused. */
  forget(kind: Kind, id: number): void {
    this.#changes++;
    if (this.#kept[kind].delete(id)) this.#map.delete(mapKey(kind, id));
  }

  #keep(kind: Kind, id: number, text: string | undefined): string | undefined {
    const kept = this.#kept[kind].get(id);
    if (text === undefined || text === kept) return text ?? kept;
    this.#kept[kind].set(id, text);
    if (this.#writes) {
      try {
        this.#map.update(mapKey(kind, id), labelBytes(text));
      } catch {
        // No room: the name is lost with this agent, but the counts are not.
      }
    }
    return text;
  }
}

interface Endpoint extends EndpointAddress {
  key: number | string;
  /** See carried.ts. */
  carried: string;
}

/** `struct label`. */
export function labelBytes(text: string): Uint8Array {
  const bytes = new Uint8Array(new ArrayBuffer(layout.label.size));
  bytes.set(new TextEncoder().encode(text).subarray(0, ROOM));
  return bytes;
}

function mapKey(kind: Kind, id: number): Uint8Array {
  return new Uint8Array(Uint32Array.of(KINDS[kind], id).buffer);
}

/** Undefined when istiod named none. "workload;namespace;canonical service;revision;cluster". */
export function parseWorkload(text: string): Workload | undefined {
  const [name = "", namespace = "", canonicalService = "", canonicalRevision = "", cluster = ""] =
    text.split(";");
  if (name === "") return undefined;
  return {
    name,
    namespace,
    canonicalService: canonicalService === "" ? name : canonicalService,
    canonicalRevision: canonicalRevision === "" ? "latest" : canonicalRevision,
    cluster,
  };
}
