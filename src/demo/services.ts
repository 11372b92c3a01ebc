/**
 * The services of the embedded control plane, as a short YAML file writes them:
 *
 *     outbound: REGISTRY_ONLY            # what connections to unknown addresses do; default ALLOW_ANY
 *     services:
 *       - host: shop.demo
 *         addresses: [10.99.0.1, "fd99::1"]   # also CIDR blocks (TCP only); none = the port alone (TCP only)
 *         port: 80
 *         protocol: tcp                   # or http; default tcp
 *         balance: least-request          # or round-robin, random, ring-hash, maglev
 *         endpoints:
 *           - { address: 10.98.0.1, port: 8080, weight: 1, locality: r1/z1/s1, priority: 0, subset: v1, workload: w }
 *         split: { v1: 90, v2: 10 }       # weights of subsets; without it all endpoints are one cluster
 *         mtls: istio                     # or hbone; how its endpoints are reached; default in plaintext
 *         sans: ["spiffe://cluster.local/ns/demo/sa/shop"]   # who they must be with mtls: istio; default anybody of the mesh
 *         resolution: none                # connections go where the app asks to, as with such a ServiceEntry; no endpoints then
 *     inbound:                            # ports of the machine itself
 *       - { port: 8080, mtls: strict, deny: [10.0.0.0/8] }   # or permissive (default), disable
 *     machine: [10.0.0.1]                 # its addresses: dual-engine mode needs them for inbound, and namespace demo
 */
import { parse } from "yaml";
import { canonicalAddress, parsePrefix } from "../mesh/address.ts";
import { MTLS_MODES, type MtlsMode } from "../mesh/inbound.ts";

/** How the endpoints of a service are reached that demands mutual TLS: as a sidecar does, or by HBONE. */
export const DEMO_MTLS = ["istio", "hbone"] as const;

export const BALANCES = ["least-request", "round-robin", "random", "ring-hash", "maglev"] as const;

export interface DemoEndpoint {
  address: string;
  port: number;
  /** Default 1. */
  weight?: number;
  /** REGION/ZONE/SUBZONE */
  locality?: string;
  /** Default 0, the first choice. */
  priority?: number;
  /** Default true. */
  healthy?: boolean;
  subset?: string;
  /** Its workload's name. Default: istiod names none. */
  workload?: string;
}

export interface DemoService {
  host: string;
  addresses: readonly string[];
  port: number;
  /** Default tcp. */
  protocol?: "tcp" | "http";
  /** Default least-request, as istiod's. */
  balance?: (typeof BALANCES)[number];
  /** Default: no limit. */
  maxConnections?: number;
  endpoints: readonly DemoEndpoint[];
  /** By subset, its weight. */
  split?: Readonly<Record<string, number>>;
  /** Default: in plaintext. */
  mtls?: (typeof DEMO_MTLS)[number];
  /** Identities that its endpoints may have with `mtls: istio`. Default: any of the mesh. */
  sans?: readonly string[];
  /** Connections go to the address that the app asks for, and `endpoints` are not used. Default: to an endpoint. */
  resolution?: "none";
}

/** A service port of the client machine: its PeerAuthentication and a DENY policy. */
export interface DemoInbound {
  port: number;
  /** Default permissive. */
  mtls?: MtlsMode;
  /** Blocks of source addresses. */
  deny?: readonly string[];
}

export interface DemoMesh {
  /** Default ALLOW_ANY. */
  outbound?: "ALLOW_ANY" | "REGISTRY_ONLY";
  /** A host with several ports is several services. A service with the same object is not encoded again. */
  services: readonly DemoService[];
  /** Inbound policies of the client machine. */
  inbound?: readonly DemoInbound[];
  /** Its addresses. Dual-engine mode needs them for `inbound`, and the namespace `demo`. */
  machine?: readonly string[];
}

/** The largest sum of weights that Envoy accepts. */
const MOST = 0xffff_ffff;

/** Reads and checks the YAML. Throws an Error that names the place and what is expected there. */
export function parseDemoMesh(text: string): DemoMesh {
  const root = new Place("the file", parse(text) ?? {}).object([
    "outbound",
    "services",
    "inbound",
    "machine",
  ]);
  const outbound = root.optional("outbound")?.oneOf(["ALLOW_ANY", "REGISTRY_ONLY"] as const);
  const services = root.required("services").list().map(service);
  const seen = new Set<string>();
  for (const { host, port } of services) {
    if (seen.has(`${host}:${port}`)) throw new Error(`services: ${host}:${port} is there twice`);
    seen.add(`${host}:${port}`);
  }
  const http = new Set(services.flatMap(({ protocol, port }) => (protocol === "http" ? [port] : [])));
  for (const { host, port, protocol, addresses } of services) {
    const wide = addresses.length === 0 || addresses.some((address) => address.includes("/"));
    if (protocol !== "http" && wide && http.has(port)) {
      throw new Error(`services: ${host} needs addresses, since HTTP services have port ${port}`);
    }
  }
  const inbound = root.optional("inbound")?.list().map(inboundPort);
  const machine = root.optional("machine")?.list().map(machineAddress);
  return {
    ...(outbound && { outbound }),
    services,
    ...(inbound && { inbound }),
    ...(machine && { machine }),
  };
}

/**
 * A large mesh: services svc-0.load.internal and so on with `endpoints` endpoints each, half of them HTTP on port
 * 80, half TCP on port 9000, as in the measurements with the real istiod.
 */
export function manyServices(count: number, endpoints: number): DemoMesh {
  const services: DemoService[] = [];
  for (let i = 0; i < count; i++) {
    const http = i % 2 === 0;
    services.push({
      host: `svc-${i}.load.internal`,
      addresses: [`10.${128 + (i >> 16)}.${(i >> 8) & 255}.${i & 255}`],
      port: http ? 80 : 9000,
      protocol: http ? "http" : "tcp",
      endpoints: Array.from({ length: endpoints }, (_, j) => {
        const n = i * endpoints + j;
        return { address: `172.${16 + ((n >> 16) & 15)}.${(n >> 8) & 255}.${n & 255}`, port: 8080 };
      }),
    });
  }
  return { services };
}

function machineAddress(place: Place): string {
  const known = canonicalAddress(place.text());
  if (known === undefined) throw new Error(`${place.path}: "${place.text()}" is not an IP address`);
  return known;
}

function inboundPort(place: Place): DemoInbound {
  const object = place.object(["port", "mtls", "deny"]);
  const mtls = object.optional("mtls")?.oneOf(MTLS_MODES);
  const deny = object
    .optional("deny")
    ?.list()
    .map((at) => address(at, "tcp"));
  return { port: object.required("port").integer(1, 65535), ...(mtls && { mtls }), ...(deny && { deny }) };
}

function service(place: Place): DemoService {
  const object = place.object([
    "host",
    "addresses",
    "port",
    "protocol",
    "balance",
    "maxConnections",
    "endpoints",
    "split",
    "mtls",
    "sans",
    "resolution",
  ]);
  const host = object.required("host").text();
  const protocol = object.optional("protocol")?.oneOf(["tcp", "http"] as const);
  const addresses = (object.optional("addresses")?.list() ?? []).map((at) => address(at, protocol ?? "tcp"));
  if (protocol === "http" && addresses.length === 0) {
    throw new Error(`${place.path}: ${host} needs addresses, since HTTP services share their ports`);
  }
  const balance = object.optional("balance")?.oneOf(BALANCES);
  const maxConnections = object.optional("maxConnections")?.integer(0, MOST);
  const endpoints = (object.optional("endpoints")?.list() ?? []).map(endpoint);
  const split = object.optional("split")?.entries();
  const mtls = object.optional("mtls")?.oneOf(DEMO_MTLS);
  const resolution = object.optional("resolution")?.oneOf(["none"] as const);
  const sans = object
    .optional("sans")
    ?.list()
    .map((at) => at.text());
  const weights = split?.map(([subset, weight]) => [subset, weight.integer(0, MOST)] as const);
  for (const [subset] of weights ?? []) {
    if (!endpoints.some((candidate) => candidate.subset === subset)) {
      throw new Error(`${place.path}.split: ${host} has no endpoint of subset ${subset}`);
    }
  }
  return {
    host,
    addresses,
    port: object.required("port").integer(1, 65_535),
    ...(protocol && { protocol }),
    ...(balance && { balance }),
    ...(maxConnections !== undefined && { maxConnections }),
    endpoints,
    ...(weights && { split: Object.fromEntries(weights) }),
    ...(mtls && { mtls }),
    ...(sans && { sans }),
    ...(resolution && { resolution }),
  };
}

function endpoint(place: Place): DemoEndpoint {
  const object = place.object([
    "address",
    "port",
    "weight",
    "locality",
    "priority",
    "healthy",
    "subset",
    "workload",
  ]);
  const weight = object.optional("weight")?.integer(1, MOST);
  const locality = object.optional("locality")?.text();
  const priority = object.optional("priority")?.integer(0, 128);
  const healthy = object.optional("healthy")?.boolean();
  const subset = object.optional("subset")?.text();
  const workload = object.optional("workload")?.text();
  const at = object.required("address");
  const known = canonicalAddress(at.text());
  if (known === undefined) throw new Error(`${at.path}: "${at.text()}" is not an IP address`);
  return {
    address: known,
    port: object.required("port").integer(1, 65_535),
    ...(weight !== undefined && { weight }),
    ...(locality !== undefined && { locality }),
    ...(priority !== undefined && { priority }),
    ...(healthy !== undefined && { healthy }),
    ...(subset !== undefined && { subset }),
    ...(workload !== undefined && { workload }),
  };
}

function address(place: Place, protocol: "tcp" | "http"): string {
  const text = place.text();
  const single = canonicalAddress(text);
  if (single !== undefined) return single;
  const block = text.includes("/") ? parsePrefix(text) : undefined;
  if (block === undefined) throw new Error(`${place.path}: "${text}" is not an IP address`);
  if (protocol === "http")
    throw new Error(`${place.path}: ${text}, a block of addresses, needs protocol tcp`);
  return `${block.address}/${block.length}`;
}

/** A value of the file and its position. */
class Place {
  readonly path: string;
  readonly #value: unknown;

  constructor(path: string, value: unknown) {
    this.path = path;
    this.#value = value;
  }

  /** The value as an object with no keys but these. */
  object(keys: readonly string[]): Place {
    for (const [key] of this.entries()) {
      if (!keys.includes(key)) {
        throw new Error(`${this.path}: "${key}" is unknown here; known are ${keys.join(", ")}`);
      }
    }
    return this;
  }

  entries(): [string, Place][] {
    const value = this.#value;
    if (typeof value !== "object" || value === null || Array.isArray(value)) return this.#refuse("a mapping");
    return Object.entries(value).map(([key, item]) => [key, new Place(this.#below(key), item)]);
  }

  optional(key: string): Place | undefined {
    return this.entries().find(([name, place]) => name === key && place.#value != null)?.[1];
  }

  required(key: string): Place {
    return this.optional(key) ?? new Place(this.#below(key), undefined).#refuse("a value");
  }

  list(): Place[] {
    if (!Array.isArray(this.#value)) return this.#refuse("a list");
    return this.#value.map((item, i) => new Place(`${this.path}[${i}]`, item));
  }

  text(): string {
    return typeof this.#value === "string" && this.#value !== "" ? this.#value : this.#refuse("a text");
  }

  boolean(): boolean {
    return typeof this.#value === "boolean" ? this.#value : this.#refuse("true or false");
  }

  integer(least: number, most: number): number {
    const value = this.#value;
    const fits = typeof value === "number" && Number.isInteger(value) && value >= least && value <= most;
    return fits ? value : this.#refuse(`a whole number from ${least} to ${most}`);
  }

  oneOf<T extends string>(values: readonly T[]): T {
    return values.find((value) => value === this.#value) ?? this.#refuse(`one of ${values.join(", ")}`);
  }

  #below(key: string): string {
    return this.path === "the file" ? key : `${this.path}.${key}`;
  }

  #refuse(expected: string): never {
    const found = this.#value === undefined ? "nothing" : JSON.stringify(this.#value);
    throw new Error(`${this.path}: expected ${expected}, found ${found}`);
  }
}
