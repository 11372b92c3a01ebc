/**
 * A bare delta-ADS client: subscribes like a sidecar, acknowledges all that comes and keeps only what the
 * caller asks for. The null client that benchmarks compare with, and the source of recorded responses.
 *
 * It knows no more of the messages than the names to subscribe to, found by walking the wire format.
 */
import { Client, type ClientDuplexStream, credentials, Metadata } from "@grpc/grpc-js";

const PREFIX = "type.googleapis.com/";
export const TYPE_URLS = {
  cluster: `${PREFIX}envoy.config.cluster.v3.Cluster`,
  endpoints: `${PREFIX}envoy.config.endpoint.v3.ClusterLoadAssignment`,
  listener: `${PREFIX}envoy.config.listener.v3.Listener`,
  route: `${PREFIX}envoy.config.route.v3.RouteConfiguration`,
  names: `${PREFIX}istio.networking.nds.v1.NameTable`,
  address: `${PREFIX}istio.workload.Address`,
  authorization: `${PREFIX}istio.security.Authorization`,
} as const;
export type ShortType = keyof typeof TYPE_URLS;

export interface Received {
  type: ShortType;
  version: string;
  resources: { name: string; bytes: Uint8Array }[];
  removed: string[];
  /** Size of the whole message. */
  size: number;
  /** performance.now() when it arrived, ms. */
  at: number;
}

export interface NodeIdentity {
  ip: string;
  name: string;
  namespace: string;
  /** Further metadata; strings and string maps only. */
  metadata?: Record<string, string>;
}

/** One field of a protobuf message: a varint, or the bytes of anything length-delimited. */
interface Field {
  number: number;
  varint?: number;
  bytes?: Uint8Array;
}

/** Yields the fields of one message; fixed32 and fixed64 fields are skipped. Throws RangeError when it is cut off. */
export function* fields(message: Uint8Array): Generator<Field> {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = message[at++];
      if (byte === undefined) throw new RangeError("truncated message");
      value += (byte & 0x7f) * 2 ** shift;
      if (byte < 0x80) return value;
    }
  };
  while (at < message.length) {
    const tag = varint();
    const number = Math.floor(tag / 8);
    const wire = tag % 8;
    if (wire === 0) yield { number, varint: varint() };
    else if (wire === 1) at += 8;
    else if (wire === 5) at += 4;
    else if (wire === 2) {
      const length = varint();
      const bytes = message.subarray(at, at + length);
      if (bytes.length < length) throw new RangeError("truncated message");
      at += length;
      yield { number, bytes };
    } else throw new RangeError(`wire type ${wire}`);
  }
}

const text = new TextDecoder();
const encoder = new TextEncoder();

function encodeVarint(value: number): number[] {
  const result: number[] = [];
  while (value > 127) {
    result.push((value & 127) | 128);
    value = Math.floor(value / 128);
  }
  result.push(value);
  return result;
}

function field(number: number, value: string | Uint8Array): Uint8Array {
  const body = typeof value === "string" ? encoder.encode(value) : value;
  return join([Uint8Array.from([...encodeVarint(number * 8 + 2), ...encodeVarint(body.length)]), body]);
}

function join(parts: readonly Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(parts));
}

/** Node{id 1, metadata 3}; metadata is a Struct of strings. */
function encodeNode(node: NodeIdentity): Uint8Array {
  const metadata: Record<string, string> = {
    NAME: node.name,
    NAMESPACE: node.namespace,
    SERVICE_ACCOUNT: "vm",
    INSTANCE_IPS: node.ip,
    CLUSTER_ID: "Kubernetes",
    ISTIO_VERSION: "1.32.0",
    DNS_CAPTURE: "true",
    DISABLE_HBONE_SEND: "true",
    ...node.metadata,
  };
  const struct = Object.entries(metadata).map(([key, value]) =>
    field(1, join([field(1, key), field(2, field(3, value))])),
  );
  const id = `sidecar~${node.ip}~${node.name}.${node.namespace}~${node.namespace}.svc.cluster.local`;
  return join([field(1, id), field(3, join(struct))]);
}

interface Request {
  type: ShortType;
  node?: Uint8Array;
  subscribe?: Iterable<string>;
  unsubscribe?: Iterable<string>;
  nonce?: string;
}

function encodeRequest(request: Request): Uint8Array {
  const parts: Uint8Array[] = [];
  if (request.node) parts.push(field(1, request.node));
  parts.push(field(2, TYPE_URLS[request.type]));
  for (const name of request.subscribe ?? []) parts.push(field(3, name));
  for (const name of request.unsubscribe ?? []) parts.push(field(4, name));
  if (request.nonce !== undefined) parts.push(field(6, request.nonce));
  return join(parts);
}

/** Gives the first length-delimited field `number` at each step of `path`, every one of them at each step. */
function walk(message: Uint8Array, ...path: number[]): Uint8Array[] {
  const [number, ...rest] = path;
  if (number === undefined) return [message];
  const found: Uint8Array[] = [];
  for (const one of fields(message)) {
    if (one.number === number && one.bytes) found.push(...walk(one.bytes, ...rest));
  }
  return found;
}

/** The name under which a cluster's endpoints are served; undefined when it is not of type EDS (3). */
export function endpointsName(cluster: Uint8Array, name: string): string | undefined {
  let type = 0;
  let service = name;
  for (const one of fields(cluster)) {
    if (one.number === 2 && one.varint !== undefined) type = one.varint;
    // Cluster.eds_cluster_config(3).service_name(2)
    if (one.number === 3 && one.bytes) {
      const [given] = walk(one.bytes, 2);
      if (given && given.length > 0) service = text.decode(given);
    }
  }
  return type === 3 ? service : undefined;
}

/** The route configurations that a listener's HTTP connection managers ask for. */
export function routeNames(listener: Uint8Array): string[] {
  const names: string[] = [];
  const chains = [...walk(listener, 3), ...walk(listener, 25)];
  for (const any of chains.flatMap((chain) => walk(chain, 3, 4))) {
    const [url] = walk(any, 1);
    if (!url || !text.decode(url).endsWith("HttpConnectionManager")) continue;
    // HttpConnectionManager.rds(3).route_config_name(2)
    names.push(...walk(any, 2, 3, 2).map((bytes) => text.decode(bytes)));
  }
  return names;
}

export interface AdsClientOptions {
  /** HOST:PORT of the plaintext xDS port. */
  istiod: string;
  node: NodeIdentity;
  /** The types to subscribe to as a whole; default: clusters, listeners and names, and what those ask for. */
  types?: readonly ShortType[];
  /** Called for each response before its acknowledgement. */
  received?(response: Received): void;
  /** Called when the stream is over. */
  ended?(error: Error | undefined): void;
}

/** An open stream; `close` ends it. */
export class AdsClient {
  readonly #client: Client;
  readonly #stream: ClientDuplexStream<Uint8Array, Buffer>;
  readonly #types = new Map<string, ShortType>();
  readonly #clusters = new Map<string, string | undefined>();
  readonly #listeners = new Map<string, string[]>();
  readonly #subscribed = { endpoints: new Set<string>(), route: new Set<string>() };
  readonly #pending = new Set<ShortType>();
  readonly #waitingFor = { endpoints: new Set<string>(), route: new Set<string>() };
  readonly #node: Uint8Array;
  readonly #received: ((response: Received) => void) | undefined;
  #complete: (() => void) | undefined;
  /** Resolves when clusters, listeners, names and everything that they ask for has come once. */
  readonly first: Promise<void>;
  /** Bytes received so far. */
  size = 0;

  constructor(options: AdsClientOptions) {
    for (const [short, url] of Object.entries(TYPE_URLS)) this.#types.set(url, short as ShortType);
    this.#received = options.received;
    this.#node = encodeNode(options.node);
    this.first = new Promise((resolve) => {
      this.#complete = resolve;
    });
    this.#client = new Client(options.istiod, credentials.createInsecure(), {
      "grpc.max_receive_message_length": -1,
      "grpc.enable_http_proxy": 0,
      "grpc.use_local_subchannel_pool": 1,
    });
    const identity = (bytes: Uint8Array) => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#stream = this.#client.makeBidiStreamRequest(
      "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
      identity,
      (bytes: Buffer) => bytes,
      new Metadata(),
    );
    this.#stream.on("data", (bytes: Buffer) => this.#receive(bytes));
    this.#stream.on("error", (error: Error) => options.ended?.(error));
    this.#stream.on("end", () => options.ended?.(undefined));
    for (const [i, type] of (options.types ?? (["cluster", "listener", "names"] as const)).entries()) {
      this.#pending.add(type);
      this.#send({ type, ...(i === 0 ? { node: this.#node } : {}) });
    }
  }

  close(): void {
    this.#stream.on("error", () => undefined);
    this.#stream.cancel();
    this.#client.close();
  }

  #send(request: Request): void {
    this.#stream.write(encodeRequest(request));
  }

  #receive(message: Buffer): void {
    const at = performance.now();
    this.size += message.length;
    let version = "";
    let nonce = "";
    let type: ShortType | undefined;
    const resources: { name: string; bytes: Uint8Array }[] = [];
    const removed: string[] = [];
    // DeltaDiscoveryResponse{version 1, resources 2, type_url 4, nonce 5, removed 6}
    for (const one of fields(message)) {
      if (!one.bytes) continue;
      if (one.number === 1) version = text.decode(one.bytes);
      else if (one.number === 4) type = this.#types.get(text.decode(one.bytes));
      else if (one.number === 5) nonce = text.decode(one.bytes);
      else if (one.number === 6) removed.push(text.decode(one.bytes));
      else if (one.number === 2) {
        let name = "";
        let bytes: Uint8Array = new Uint8Array();
        for (const part of fields(one.bytes)) {
          if (part.number === 3 && part.bytes) name = text.decode(part.bytes);
          if (part.number === 2 && part.bytes) bytes = walk(part.bytes, 2)[0] ?? bytes;
        }
        resources.push({ name, bytes });
      }
    }
    if (type === undefined) return;
    this.#received?.({ type, version, resources, removed, size: message.length, at });
    this.#send({ type, nonce });
    this.#pending.delete(type);
    if (type === "cluster") {
      for (const { name, bytes } of resources) this.#clusters.set(name, endpointsName(bytes, name));
      for (const name of removed) this.#clusters.delete(name);
      this.#subscribe(
        "endpoints",
        new Set([...this.#clusters.values()].filter((name) => name !== undefined)),
      );
    } else if (type === "listener") {
      for (const { name, bytes } of resources) this.#listeners.set(name, routeNames(bytes));
      for (const name of removed) this.#listeners.delete(name);
      this.#subscribe("route", new Set([...this.#listeners.values()].flat()));
    } else if (type === "endpoints" || type === "route") {
      for (const { name } of resources) this.#waitingFor[type].delete(name);
    }
    const waiting = this.#pending.size + this.#waitingFor.endpoints.size + this.#waitingFor.route.size;
    if (waiting === 0) this.#complete?.();
  }

  #subscribe(type: "endpoints" | "route", wanted: ReadonlySet<string>): void {
    const have = this.#subscribed[type];
    const fresh = [...wanted].filter((name) => !have.has(name));
    const gone = [...have].filter((name) => !wanted.has(name));
    if (fresh.length === 0 && gone.length === 0) return;
    for (const name of fresh) {
      have.add(name);
      this.#waitingFor[type].add(name);
    }
    for (const name of gone) {
      have.delete(name);
      this.#waitingFor[type].delete(name);
    }
    this.#send({ type, subscribe: fresh, unsubscribe: gone });
  }
}
