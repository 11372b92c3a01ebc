/**
 * Which workload an endpoint is one of, as istiod says it in EDS metadata: "workload;namespace;canonical service;revision;
 * cluster". Kept beside the mesh: the data path needs none of it, and a hundred thousand endpoints share few of these texts.
 */
import { parseV4 } from "./address.ts";
import type { EndpointList } from "./endpoint-list.ts";

/** Most endpoints in the index; the oldest are dropped first. */
const ROOM = 262_144;
/** Texts that `intern` remembers. */
const MOST_SHARED = 4_096;

export class WorkloadIndex {
  #revision = 0;
  readonly #shared = new Map<string, string>();
  readonly #byEndpoint = new Map<number | string, string>();
  /** By host, of any of its ports; undefined until it is asked for, since only callers are found by it. */
  #hosts: Map<number | string, string> | undefined;
  /** The last answer of `portsOf`. */
  #ports: { addresses: readonly string[]; ports: readonly number[] } | undefined;

  /** Gives the one object for equal texts, mostly: endpoints of a deployment come together, and share it. */
  intern(text: string): string {
    const known = this.#shared.get(text);
    if (known !== undefined) return known;
    if (this.#shared.size >= MOST_SHARED) this.#shared.clear();
    this.#shared.set(text, text);
    return text;
  }

  /** Records the workload of an endpoint. `key` as EndpointBuffer.key gives it. */
  set(key: number | string, text: string): void {
    const isNew = this.#byEndpoint.get(key) !== text;
    this.#byEndpoint.delete(key);
    this.#byEndpoint.set(key, text);
    if (this.#byEndpoint.size > ROOM) {
      const oldest = this.#byEndpoint.keys().next().value;
      if (oldest !== undefined) this.#byEndpoint.delete(oldest);
    }
    if (!isNew) return;
    this.#hosts = undefined;
    this.#ports = undefined;
    this.#revision++;
  }

  /** Undefined when istiod named none, or never that endpoint. Canonical address. */
  find(address: string, port: number): string | undefined {
    return this.at(keyOf(address, port));
  }

  /** Like `find`, by a key from `keyOf`. */
  at(key: number | string): string | undefined {
    return this.#byEndpoint.get(key);
  }

  /** Like `find`, for any port of a host: the port of a client is not known. */
  findHost(address: string): string | undefined {
    if (!this.#hosts) {
      this.#hosts = new Map();
      for (const [key, text] of this.#byEndpoint) this.#hosts.set(hostOf(key), text);
    }
    return this.#hosts.get(parseV4(address) ?? address);
  }

  /** The ports of endpoints with one of these addresses. Quick while `addresses` is the same list and nothing was set. */
  portsOf(addresses: readonly string[]): readonly number[] {
    if (this.#ports?.addresses === addresses) return this.#ports.ports;
    const hosts = new Set(addresses.map((address) => parseV4(address) ?? address));
    const ports = new Set<number>();
    for (const key of this.#byEndpoint.keys()) if (hosts.has(hostOf(key))) ports.add(portOf(key));
    this.#ports = { addresses, ports: [...ports] };
    return this.#ports.ports;
  }

  /** Grows with each change. */
  get revision(): number {
    return this.#revision;
  }

  get size(): number {
    return this.#byEndpoint.size;
  }
}

/** As EndpointBuffer.key: a number for IPv4, else the words of the address and the port. */
export function keyOf(address: string, port: number): number | string {
  const v4 = parseV4(address);
  return v4 === undefined ? `${address} ${port}` : v4 * 65536 + port;
}

/** The host of a key: a number for IPv4, else its text. */
function hostOf(key: number | string): number | string {
  return typeof key === "string" ? key.slice(0, key.lastIndexOf(" ")) : Math.floor(key / 65536);
}

function portOf(key: number | string): number {
  return typeof key === "string" ? Number(key.slice(key.lastIndexOf(" ") + 1)) : key % 65536;
}

/** The key of one of a list's endpoints. */
export function keyAt(list: EndpointList, i: number): number | string {
  return list.v4Key(i) ?? `${list.address(i)} ${list.port(i)}`;
}
