/** Reads CDS resources. Clusters that differ only in names are decoded once. */
import protobuf, { type Reader } from "protobufjs/minimal.js";
import { type ClusterPolicy, type ClusterRecord, flattenCluster, isOutgoing } from "./cluster.ts";
import { type Discovery, EDS, edsDiscovery } from "./discovery.ts";
import { envoy } from "./envoy.gen.js";
import { serviceOfCluster } from "./service.ts";
import { checksHost, type Demands, demandsOf } from "./transport-sockets.ts";
import { checkName, decode, guarded, openMessage } from "./wire.ts";

/** The result for all clusters whose bytes differ only in their names. */
interface Template {
  /** The bytes that must be equal, all parts concatenated. */
  bytes: Buffer;
  policy: ClusterPolicy;
  /** undefined = its endpoints come by EDS. */
  discovery: Discovery | undefined;
  /** For endpoints that no entry of transport_socket_matches matches. */
  otherwise: envoy.TransportSocket.$Properties | null | undefined;
  isHostChecked: boolean;
}

const MOST_TEMPLATES = 1_000;

/**
 * Flattens clusters. istiod may send ten thousand that differ only in names: the result of the first one is used for
 * all.
 */
export class ClusterReader {
  readonly #allowPlaintext: boolean;
  readonly #tunnel: boolean;
  /** By length of the whole cluster: a longer name also changes the lengths inside. */
  readonly #templates = new Map<number, Template[]>();
  #count = 0;

  constructor(options: { allowPlaintext: boolean; tunnel?: boolean }) {
    this.#allowPlaintext = options.allowPlaintext;
    this.#tunnel = options.tunnel ?? false;
  }

  /**
   * Flattens one cluster. Gives undefined for a cluster that concerns no outgoing connection (inbound ones, and those
   * internal to Envoy). Throws MalformedResource.
   */
  read(resource: string, bytes: Uint8Array): ClusterRecord | undefined {
    const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const shape = guarded(resource, () => readShape(text));
    const known = this.#templates.get(text.length) ?? [];
    const template = known.find((one) => isOf(one, text, shape));
    if (template !== undefined) {
      checkName(resource, shape.name);
      if (!isOutgoing(resource)) return undefined;
      const { name: service, host } = serviceOfCluster(resource);
      return {
        name: resource,
        service,
        discovery: template.discovery ?? edsDiscovery(resource, shape.serviceName),
        policy: template.policy,
        ...(this.#tunnel ? { demands: demandsIn(resource, text, shape, template, host) } : {}),
      };
    }
    const cluster = decode(envoy.Cluster, resource, text);
    const record = guarded(resource, () =>
      flattenCluster(resource, cluster, this.#allowPlaintext, this.#tunnel),
    );
    if (record !== undefined && cluster.type === EDS && !cluster.clusterType) {
      if (this.#count++ >= MOST_TEMPLATES) {
        this.#templates.clear();
        this.#count = 1;
      }
      const { policy, discovery } = record;
      const fresh = {
        bytes: Buffer.concat(partsOf(text, shape)),
        policy,
        discovery: discovery.kind === "eds" ? undefined : discovery,
        otherwise: cluster.transportSocket,
        isHostChecked: checksHost(cluster.typedExtensionProtocolOptions),
      };
      this.#templates.set(text.length, [...(this.#templates.get(text.length) ?? []), fresh]);
    }
    return record;
  }
}

/** A cluster's names, and the positions of all other bytes. Clusters with equal parts differ only in names. */
interface Shape {
  name: string;
  serviceName: string;
  /** Start and end of each part, in order. */
  parts: number[];
  /** Start and end of each entry of transport_socket_matches. */
  matches: number[];
}

/** The sockets' configuration is no part of a template. Throws MalformedResource. */
function demandsIn(
  resource: string,
  text: Buffer,
  { matches }: Shape,
  { otherwise, isHostChecked }: Template,
  host: string,
): Demands {
  return guarded(resource, () => {
    const entries: envoy.TransportSocketMatch[] = [];
    for (let i = 0; i < matches.length; i += 2)
      entries.push(envoy.TransportSocketMatch.decode(text.subarray(matches[i], matches[i + 1])));
    return demandsOf(entries, otherwise, { host, isChecked: isHostChecked });
  });
}

function isOf({ bytes }: Template, text: Buffer, { parts }: Shape): boolean {
  let at = 0;
  for (let i = 0; i < parts.length; i += 2) {
    const start = parts[i] ?? 0;
    const end = parts[i + 1] ?? 0;
    const next = at + end - start;
    if (next > bytes.length || text.compare(bytes, at, next, start, end) !== 0) return false;
    at = next;
  }
  return at === bytes.length;
}

function partsOf(text: Buffer, { parts }: Shape): Buffer[] {
  const result: Buffer[] = [];
  for (let i = 0; i < parts.length; i += 2) result.push(text.subarray(parts[i], parts[i + 1]));
  return result;
}

// Tags (field number * 8 + wire type 2) as in proto/envoy_cluster.proto.
const NAME = 10;
const EDS_CONFIG = 26;
const METADATA = 202;
const SOCKET_MATCHES = 346;

/**
 * Scans a cluster without decoding it. The parts leave out its name, its EDS name, its metadata (which kmesh does not
 * read), and the typed configuration of per-endpoint transport sockets (server name and certificates). The type of
 * that configuration decides what kmesh does, and is in a part.
 */
function readShape(text: Buffer): Shape {
  const reader = protobuf.Reader.create(text);
  const shape: Shape = { name: "", serviceName: "", parts: [], matches: [] };
  /** Where the next part starts. */
  let from = 0;
  const leaveOut = (start: number, end: number) => {
    if (start > from) shape.parts.push(from, start);
    from = end;
  };
  while (reader.pos < reader.len) {
    const start = reader.pos;
    const tag = reader.uint32();
    if (tag === NAME) {
      shape.name = reader.string();
      leaveOut(start, reader.pos);
    } else if (tag === EDS_CONFIG) {
      const end = openMessage(reader);
      while (reader.pos < end) {
        const part = reader.uint32();
        if (part === 18) shape.serviceName = reader.string();
        else reader.skipType(part & 7);
      }
      leaveOut(start, end);
    } else if (tag === METADATA) {
      reader.skipType(2);
      leaveOut(start, reader.pos);
    } else if (tag === SOCKET_MATCHES) {
      // TransportSocketMatch.transport_socket(3).typed_config(3).value(2)
      const end = openMessage(reader);
      shape.matches.push(reader.pos, end);
      skipTo(reader, end, 26, () => {
        const socketEnd = openMessage(reader);
        skipTo(reader, socketEnd, 26, () => {
          const anyEnd = openMessage(reader);
          skipTo(reader, anyEnd, 18, () => {
            const value = reader.pos;
            reader.skipType(2);
            leaveOut(value, reader.pos);
          });
        });
      });
    } else reader.skipType(tag & 7);
  }
  leaveOut(reader.len, reader.len);
  return shape;
}

/** Runs `found` after each tag `wanted` before `end`. */
function skipTo(reader: Reader, end: number, wanted: number, found: () => void): void {
  while (reader.pos < end) {
    const tag = reader.uint32();
    if (tag === wanted) found();
    else reader.skipType(tag & 7);
  }
}
