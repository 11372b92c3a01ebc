/**
 * Which workload an endpoint is one of, as istiod says it in EDS metadata: "workload;namespace;canonical service;revision;
 * cluster". Kept beside the mesh: the data path needs none of it, and a hundred thousand endpoints share few of these texts.
 */
import type { EndpointList } from "./endpoint-list.ts";

/** Most endpoints in the index; the oldest are dropped first. */
const ROOM = 262_144;

export class WorkloadIndex {
  readonly #texts: string[] = [];
  readonly #ids = new Map<string, number>();
  readonly #byEndpoint = new Map<number | string, number>();
  readonly #byAddress = new Map<string, number>();
  readonly #ports = new Map<string, Set<number>>();

  /** Gives the number of a text, for `set`. */
  intern(text: string): number {
    let id = this.#ids.get(text);
    if (id === undefined) {
      id = this.#texts.length;
      this.#texts.push(text);
      this.#ids.set(text, id);
    }
    return id;
  }

  /** Records the workload of an endpoint. `key` as EndpointBuffer.key gives it. */
  set(key: number | string, text: number): void {
    if (this.#byEndpoint.get(key) !== text) this.#revision++;
    this.#byEndpoint.delete(key);
    this.#byEndpoint.set(key, text);
    if (this.#byEndpoint.size > ROOM) {
      const oldest = this.#byEndpoint.keys().next().value;
      if (oldest !== undefined) this.#byEndpoint.delete(oldest);
    }
    this.#stale = true;
  }

  /** Undefined when istiod named none, or never that endpoint. Canonical address. */
  find(address: string, port: number): string | undefined {
    return this.at(keyOf(address, port));
  }

  /** Like `find`, by a key from `keyOf`. */
  at(key: number | string): string | undefined {
    const id = this.#byEndpoint.get(key);
    return id === undefined ? undefined : this.#texts[id];
  }

  /** Like `find`, for any port of a host: the port of a client is not known. */
  findHost(address: string): string | undefined {
    this.#index();
    const id = this.#byAddress.get(address);
    return id === undefined ? undefined : this.#texts[id];
  }

  /** The ports of endpoints with one of these addresses. */
  portsOf(addresses: readonly string[]): number[] {
    this.#index();
    return addresses.flatMap((address) => [...(this.#ports.get(address) ?? [])]);
  }

  /** Grows with each change. */
  get revision(): number {
    return this.#revision;
  }

  get size(): number {
    return this.#byEndpoint.size;
  }

  #stale = false;
  #revision = 0;

  #index(): void {
    if (!this.#stale) return;
    this.#stale = false;
    this.#byAddress.clear();
    this.#ports.clear();
    for (const [key, id] of this.#byEndpoint) {
      const address = addressOf(key);
      this.#byAddress.set(address, id);
      const ports = this.#ports.get(address);
      if (ports) ports.add(portOf(key));
      else this.#ports.set(address, new Set([portOf(key)]));
    }
  }
}

/** As EndpointBuffer.key: a number for IPv4, else the words of the address and the port. */
export function keyOf(address: string, port: number): number | string {
  const v4 = /^(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(address);
  if (v4) {
    const [, a = 0, b = 0, c = 0, d = 0] = v4.map(Number);
    return (((a * 256 + b) * 256 + c) * 256 + d) * 65536 + port;
  }
  return `${address} ${port}`;
}

function addressOf(key: number | string): string {
  if (typeof key === "string") return key.slice(0, key.lastIndexOf(" "));
  const host = Math.floor(key / 65536);
  return [host >>> 24, (host >>> 16) & 255, (host >>> 8) & 255, host & 255].join(".");
}

function portOf(key: number | string): number {
  return typeof key === "string" ? Number(key.slice(key.lastIndexOf(" ") + 1)) : key % 65536;
}

/** The key of one of a list's endpoints. */
export function keyAt(list: EndpointList, i: number): number | string {
  return list.v4Key(i) ?? `${list.address(i)} ${list.port(i)}`;
}
