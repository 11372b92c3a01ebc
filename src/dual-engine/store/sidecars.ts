/**
 * Which peers take a sidecar's mutual TLS. The workload API does not say that; the metadata `tlsMode` of EDS does. It is asked
 * only for services with such a peer possible, and only where a tunnel carries TLS.
 */
import { flattenEndpoints } from "../../kernel-native/resources/endpoint.ts";
import { TLS_MODE_ISTIO } from "../../kernel-native/resources/transport-sockets.ts";
import type { ServiceRecord, WorkloadRecord } from "../records/records.ts";
import { waypointsOf } from "../records/waypoints.ts";

interface Holder {
  services: ReadonlyMap<string, ServiceRecord>;
  membersOf(service: string): Iterable<WorkloadRecord>;
}

const NOBODY: ReadonlySet<string> = new Set();
const NONE: readonly string[] = [];

export class Sidecars {
  readonly #holder: Holder;
  /** This machine's network: peers of others are reached through a gateway. */
  readonly #network: string;
  readonly #wanted = new Set<string>();
  /** By service, the clusters that it needs. */
  readonly #needs = new Map<string, readonly string[]>();
  /** By cluster, how many services need it: those with the same host share it. */
  readonly #counts = new Map<string, number>();
  /** By cluster, `ADDRESS PORT` of the endpoints that take TLS. */
  readonly #tls = new Map<string, ReadonlySet<string>>();
  /** Services to look at again. */
  readonly #stale = new Set<string>();

  constructor(holder: Holder, network: string) {
    this.#holder = holder;
    this.#network = network;
  }

  /** Marks a service that changed, or whose workloads did. */
  touch(service: string): void {
    this.#stale.add(service);
  }

  /** The names of the endpoints to ask for. */
  wanted(): ReadonlySet<string> {
    for (const key of this.#stale) {
      const names = this.#namesOf(key);
      const before = this.#needs.get(key) ?? NONE;
      if (String(names) === String(before)) continue;
      if (names.length > 0) this.#needs.set(key, names);
      else this.#needs.delete(key);
      for (const name of names) this.#count(name, 1);
      for (const name of before) this.#count(name, -1);
    }
    this.#stale.clear();
    return this.#wanted;
  }

  /** Takes a ClusterLoadAssignment; `undefined` removes it. Gives whether something changed. Throws MalformedResource. */
  put(name: string, bytes: Uint8Array | undefined): boolean {
    const before = this.#tls.get(name) ?? NOBODY;
    const now = bytes === undefined ? NOBODY : tlsOf(name, bytes);
    if (now.size === 0) this.#tls.delete(name);
    else this.#tls.set(name, now);
    return before.size !== now.size || [...now].some((each) => !before.has(each));
  }

  /** Whether any endpoint takes TLS. */
  get knowsAny(): boolean {
    return this.#tls.size > 0;
  }

  takesTls(host: string, port: number, address: string, target: number): boolean {
    return this.#tls.get(nameOf(host, port))?.has(`${address} ${target}`) ?? false;
  }

  #namesOf(key: string): readonly string[] {
    const record = this.#holder.services.get(key);
    if (!record || record.mode === "passthrough" || waypointsOf(record).length > 0) return NONE;
    for (const member of this.#holder.membersOf(key)) {
      const { profile, addresses } = member;
      // istiod has no endpoints of a service whose workloads have names instead of addresses.
      if (addresses.length === 0) return NONE;
      if (profile.tunnel === "none" && profile.serviceAccount !== "" && profile.network === this.#network)
        return record.ports.map(({ port }) => nameOf(record.host, port));
    }
    return NONE;
  }

  #count(name: string, change: 1 | -1): void {
    const count = (this.#counts.get(name) ?? 0) + change;
    if (count > 0) {
      this.#counts.set(name, count);
      this.#wanted.add(name);
    } else {
      this.#counts.delete(name);
      this.#wanted.delete(name);
    }
  }
}

function nameOf(host: string, port: number): string {
  return `outbound|${port}||${host}`;
}

/** The host in the name of a cluster. */
export function hostOf(cluster: string): string {
  return cluster.split("|")[3] ?? "";
}

function tlsOf(name: string, bytes: Uint8Array): Set<string> {
  const found = new Set<string>();
  for (const { endpoints } of flattenEndpoints(name, bytes, true, undefined, true).localities)
    for (let i = 0; i < endpoints.length; i++) {
      if ((endpoints.transport(i) & TLS_MODE_ISTIO) === 0) continue;
      const { address, port } = endpoints.get(i);
      found.add(`${address} ${port}`);
    }
  return found;
}
