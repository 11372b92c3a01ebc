/**
 * Which workload an endpoint is one of, as istiod says it in EDS metadata: "workload;namespace;canonical service;revision;
 * cluster". Kept beside the mesh: the data path needs none of it, and a hundred thousand endpoints share few of these texts.
 */
import { parseV4 } from "./address.ts";
import type { EndpointList } from "./endpoint-list.ts";
import { PartedTexts } from "./parted-texts.ts";

/** Most endpoints in the index; the oldest are dropped first. */
const ROOM = 262_144;
/** Texts that no endpoint has any more are dropped when there are so many more than endpoints. */
const MOST_UNUSED = 4_096;
/** Endpoints that several services name differently; the oldest are dropped first. */
const MOST_VARIANTS = 10_000;
/** A service's number stands above the number of its text. */
const SERVICE = 2 ** 32;

export class WorkloadIndex {
  #revision = 0;
  #texts = new PartedTexts();
  /** Numbers of texts, with the number of the service that said it last. */
  readonly #byEndpoint = new Map<number | string, number>();
  /** What other services said of the endpoint: numbers of texts by the number of a service. */
  readonly #variants = new Map<number | string, Map<number, number>>();
  readonly #services = new Map<string, number>();
  /** By host, of any of its ports; undefined until it is asked for, since only callers are found by it. */
  #hosts: Map<number | string, number> | undefined;
  /** The last answer of `portsOf`. */
  #ports: { addresses: readonly string[]; ports: readonly number[] } | undefined;

  /**
   * Records the workload of an endpoint. `key` as EndpointBuffer.key gives it. One address may be an endpoint of several
   * services ("host:port"), each of which names it in its own way.
   */
  set(key: number | string, text: string, service = ""): void {
    this.put(key, this.#texts.intern(text), service);
  }

  /** Ends the text in `draft`. Gives its number for `put`, which is valid until the next use of `draft`. */
  endDraft(): number {
    return this.#texts.finish();
  }

  /** As `set`, by the number of a text. */
  put(key: number | string, text: number, service = ""): void {
    const known = this.#byEndpoint.get(key);
    const isNew = known === undefined || known % SERVICE !== text;
    let by = this.#services.get(service);
    if (by === undefined) {
      by = this.#services.size;
      this.#services.set(service, by);
    }
    if (known !== undefined && Math.floor(known / SERVICE) !== by) this.#part(key, known, text, by);
    this.#byEndpoint.delete(key);
    this.#byEndpoint.set(key, by * SERVICE + text);
    if (this.#byEndpoint.size > ROOM) {
      const oldest = this.#byEndpoint.keys().next().value;
      if (oldest !== undefined) {
        this.#byEndpoint.delete(oldest);
        this.#variants.delete(oldest);
      }
    }
    if (!isNew) return;
    this.#hosts = undefined;
    this.#ports = undefined;
    this.#revision++;
  }

  /** Takes the parts of a text. Valid until `endDraft`. */
  get draft(): Pick<PartedTexts, "append" | "appendCode"> {
    if (this.#texts.size > this.#byEndpoint.size + MOST_UNUSED) this.#dropUnused();
    return this.#texts;
  }

  #dropUnused(): void {
    const texts = new PartedTexts();
    const moved = new Map<number, number>();
    const move = (old: number) => {
      const text = moved.get(old) ?? texts.intern(this.#texts.at(old));
      moved.set(old, text);
      return text;
    };
    for (const [key, old] of this.#byEndpoint)
      this.#byEndpoint.set(key, old - (old % SERVICE) + move(old % SERVICE));
    for (const variants of this.#variants.values())
      for (const [service, old] of variants) variants.set(service, move(old));
    this.#texts = texts;
    this.#hosts = undefined;
  }

  /** Undefined when istiod named none, or never that endpoint. Canonical address. */
  find(address: string, port: number): string | undefined {
    return this.at(keyOf(address, port));
  }

  /** Like `find`, by a key from `keyOf`. */
  at(key: number | string): string | undefined {
    return this.#textOf(this.#byEndpoint.get(key));
  }

  /** What the service says of the endpoint, when another one has said something else since; undefined otherwise. */
  variant(key: number | string, service: string): string | undefined {
    const variants = this.#variants.get(key);
    const by = variants && this.#services.get(service);
    return by === undefined ? undefined : this.#textOf(variants?.get(by));
  }

  /** Another service than that of `known` says `text`. */
  #part(key: number | string, known: number, text: number, by: number): void {
    const variants = this.#variants.get(key) ?? new Map<number, number>();
    variants.delete(by);
    if (known % SERVICE !== text) variants.set(Math.floor(known / SERVICE), known % SERVICE);
    this.#variants.delete(key);
    if (variants.size === 0) return;
    this.#variants.set(key, variants);
    if (this.#variants.size <= MOST_VARIANTS) return;
    const oldest = this.#variants.keys().next().value;
    if (oldest !== undefined) this.#variants.delete(oldest);
  }

  /** Like `find`, for any port of a host: the port of a client is not known. */
  findHost(address: string): string | undefined {
    if (!this.#hosts) {
      this.#hosts = new Map();
      for (const [key, text] of this.#byEndpoint) this.#hosts.set(hostOf(key), text);
    }
    return this.#textOf(this.#hosts.get(parseV4(address) ?? address));
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

  #textOf(number: number | undefined): string | undefined {
    return number === undefined ? undefined : this.#texts.at(number % SERVICE);
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
