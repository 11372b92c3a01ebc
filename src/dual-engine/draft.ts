/** A cluster while its endpoints are collected. */
import { note } from "../kernel-native/resources/note.ts";
import { formatV4 } from "../mesh/address.ts";
import { EndpointBuffer, MAX_TRANSPORTS } from "../mesh/endpoint-list.ts";
import { compareLocalities } from "../mesh/locality.ts";
import { type Cluster, type Locality, NO_EJECTION, type Note, type Reason } from "../mesh/model.ts";
import type { Transport } from "../mesh/transport.ts";
import { isTunnelEntry, TUNNEL_ENTRY_TEXT } from "../mesh/tunnel-address.ts";
import type { Place } from "./records/records.ts";

/**
 * A rank with one healthy workload takes all connections, as in ztunnel: each healthy percent of a rank bears this many
 * percent of the connections.
 */
const NEVER_SPILL = 1_000_000;

const NONE: readonly never[] = [];
const ROUND_ROBIN: Cluster["balance"] = { policy: "round-robin" };

/** Shared by all drafts: finish one before the next begins. */
const buffer = new EndpointBuffer();

export interface DraftEndpoint {
  port: number;
  weight: number;
  healthy: boolean;
  /** 0 is the first choice. */
  priority: number;
  place: Pick<Place, "region" | "zone" | "subzone">;
  transport?: Transport;
}

interface Group {
  locality: Omit<Locality, "endpoints">;
  /** In the buffer. */
  places: number[];
}

export class ClusterDraft {
  readonly notes: Note[] = [];
  readonly #transports: Transport[] = [];
  readonly #numbers = new Map<string, number>();
  readonly #localities = new Map<string, Group>();
  /** The last endpoint's. */
  #last: { priority: number; place: DraftEndpoint["place"]; group: Group } | undefined;

  constructor() {
    buffer.clear();
  }

  /** `address`: canonical, or the 32 bits of an IPv4 address. */
  add(address: string | number, { port, weight, healthy, priority, place, transport }: DraftEndpoint): void {
    if (isTunnelEntry(address, port)) {
      this.notes.push(note("refused", TUNNEL_ENTRY_TEXT));
      return;
    }
    const number = transport === undefined ? 0 : this.#number(transport);
    if (number > MAX_TRANSPORTS) {
      this.notes.push(
        note("not-enforced", `it has more than ${MAX_TRANSPORTS} identities: ${textOf(address)} is left out`),
      );
      return;
    }
    this.#group(priority, place).places.push(buffer.length);
    if (typeof address === "number") buffer.pushV4(address, port, weight, healthy, false, number);
    else buffer.push(address, port, weight, healthy, false, number);
  }

  #group(priority: number, place: DraftEndpoint["place"]): Group {
    if (this.#last?.place === place && this.#last.priority === priority) return this.#last.group;
    const { region, zone, subzone } = place;
    const key = `${priority}\n${region}\n${zone}\n${subzone}`;
    let group = this.#localities.get(key);
    if (!group) {
      group = { locality: { region, zone, subzone, priority, weight: 0 }, places: [] };
      this.#localities.set(key, group);
    }
    this.#last = { priority, place, group };
    return group;
  }

  /** The cluster with what was added. */
  finish(name: string, service: string): Cluster {
    const groups = [...this.#localities.values()].sort((a, b) => compareLocalities(a.locality, b.locality));
    const localities = groups.map(({ locality, places }) => {
      places.sort((a, b) => buffer.compare(a, b));
      const once = places.filter((place, i) => i === 0 || !buffer.same(places[i - 1] ?? place, place));
      return { ...locality, endpoints: buffer.pick(once) };
    });
    const transports = this.#transports.length > 0 ? this.#transports : NONE;
    return { ...bareCluster(name, service), localities, transports };
  }

  #number(transport: Transport): number {
    const key = JSON.stringify(transport);
    let number = this.#numbers.get(key);
    if (number === undefined) {
      number = this.#transports.push(transport);
      this.#numbers.set(key, number);
    }
    return number;
  }
}

function textOf(address: string | number): string {
  return typeof address === "number" ? formatV4(address) : address;
}

/** A cluster without endpoints: round robin, weights exact, no limits. */
export function bareCluster(name: string, service: string): Cluster {
  return {
    name,
    service,
    kind: "endpoints",
    reason: "none",
    port: 0,
    balance: ROUND_ROBIN,
    localities: [],
    localityWeighted: false,
    overprovisioning: NEVER_SPILL,
    panicThreshold: 0,
    maxConnections: 0,
    ejection: NO_EJECTION,
    transports: NONE,
    pending: false,
  };
}

/** A cluster that refuses all connections. */
export function refusing(name: string, service: string, reason: Reason): Cluster {
  return { ...bareCluster(name, service), kind: "refuse", reason };
}
