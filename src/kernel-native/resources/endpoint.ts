/**
 * EDS: decodes the endpoints of one cluster from the wire into the model's localities. A mesh may have a hundred
 * thousand endpoints, so no message tree is built: one pass with a reader, with shared strings for localities.
 */
import protobuf, { type Reader } from "protobufjs/minimal.js";
import { MalformedResource } from "../../istiod/stream/sink.ts";
import { canonicalAddress, formatV4, parseV4, parseV4Bytes } from "../../mesh/address.ts";
import { EndpointBuffer } from "../../mesh/endpoint-list.ts";
import { compareLocalities } from "../../mesh/locality.ts";
import type { Locality, Note } from "../../mesh/model.ts";
import { isTunnelEntry, TUNNEL_ENTRY_TEXT } from "../../mesh/tunnel-address.ts";
import type { WorkloadIndex } from "../../mesh/workload.ts";
import { type Notes, note, sortedNotes } from "./note.ts";
import { serviceOfCluster } from "./service.ts";
import { TLS_MODE_ISTIO, TUNNEL_HTTP } from "./transport-sockets.ts";
import { checkEnum, checkName, guarded, openMessage } from "./wire.ts";

/** The endpoints of a cluster, as the model holds them. */
export interface EndpointsRecord {
  /** Sorted by priority, region, zone and subzone; endpoints within by address and port. No locality is empty. */
  localities: Locality[];
  /** overprovisioning_factor, percent. */
  overprovisioning: number;
  /** Some endpoint has tlsMode istio. The cluster decides whether that means mutual TLS (auto-mTLS). */
  prefersTls: boolean;
  /** Without the tunnel: all endpoints, at least one, are gateways to other networks, which speak only mutual TLS. */
  onlyGateways: boolean;
  notes: Notes;
}

/** One locality as read, still with duplicates and gateways. */
export interface ReadLocality extends Omit<Locality, "endpoints"> {
  /** Its endpoints in the buffer: indexes from `from` to before `to`. */
  from: number;
  to: number;
}

/** A whole assignment as read, from EDS or inside a cluster. */
export interface ReadAssignment {
  name: string;
  /**
   * Shared by all readers: call `arrange` before the next assignment is read. Gateways to other networks are marked.
   */
  buffer: EndpointBuffer;
  localities: ReadLocality[];
  overprovisioning: number;
  /** Some endpoint that is no gateway has tlsMode istio. */
  prefersTls: boolean;
  /** Number of endpoints that are gateways to another network. */
  gateways: number;
  /** Number of endpoints without an IP address: pipes, and listeners inside Envoy. */
  unreachable: number;
  drops: boolean;
  /** Some endpoint lies in the tunnel's own addresses. */
  entries: boolean;
  /** Records the workload of each endpoint. */
  workloads?: WorkloadIndex | undefined;
  /** Of its name, once an endpoint has a workload. */
  service?: string;
  /** Endpoints carry the class of their metadata (transport-sockets.ts), and those of HBONE are read. */
  tunnel: boolean;
}

const buffer = new EndpointBuffer();

/** An assignment without endpoints, to read into. */
export function emptyAssignment(name: string, tunnel = false): ReadAssignment {
  buffer.clear();
  return {
    name,
    buffer,
    localities: [],
    overprovisioning: OVERPROVISIONING,
    prefersTls: false,
    gateways: 0,
    unreachable: 0,
    drops: false,
    entries: false,
    tunnel,
  };
}

/** Envoy's default, in percent. */
export const OVERPROVISIONING = 140;
const NO_LOCALITIES: Locality[] = [];
const HEALTH_STATUS_MAX = 5;
/** By HealthStatus: UNKNOWN, HEALTHY and DEGRADED endpoints receive traffic. */
const TAKES_TRAFFIC: readonly boolean[] = [true, true, false, false, false, true];

/**
 * Flattens one ClusterLoadAssignment. `allowPlaintext` keeps gateways among the endpoints, and so does `tunnel`, with which
 * each endpoint carries the class of its metadata. `workloads` records the workload of each endpoint. Throws MalformedResource.
 */
export function flattenEndpoints(
  resource: string,
  bytes: Uint8Array,
  allowPlaintext: boolean,
  workloads?: WorkloadIndex,
  tunnel = false,
): EndpointsRecord {
  checkName(resource, resource);
  const read = guarded(resource, () => readAssignment(resource, bytes, workloads, tunnel));
  checkName(resource, read.name);
  return arrange(read, allowPlaintext);
}

/**
 * Converts an assignment to the model's form. Of endpoints with the same address and port one is kept: the one in the
 * first locality in sort order, there a healthy one before others, then the heaviest. (istiod repeats each endpoint
 * once per address of its service, and in another order after each restart.)
 */
export function arrange(read: ReadAssignment, allowPlaintext: boolean): EndpointsRecord {
  const notes = assignmentNotes(read);
  const gateways = allowPlaintext || read.tunnel ? 0 : read.gateways;
  const onlyGateways = gateways > 0 && gateways === read.buffer.length;
  const leaveOut = gateways > 0 && !onlyGateways;
  if (leaveOut) {
    const text = "endpoints of other networks are left out: their gateway speaks only mutual TLS";
    notes.push(note("plaintext", text));
  }
  return {
    localities: arrangeLocalities(read, leaveOut, notes),
    overprovisioning: read.overprovisioning,
    prefersTls: read.prefersTls,
    onlyGateways,
    notes: sortedNotes(notes),
  };
}

function assignmentNotes(read: ReadAssignment): Note[] {
  const notes: Note[] = [];
  if (read.unreachable > 0) {
    const text = "endpoints without an IP address (pipes, listeners inside Envoy) are left out";
    notes.push(note("not-enforced", text));
  }
  if (read.drops) notes.push(note("not-enforced", "drop_overloads"));
  if (read.entries) notes.push(note("refused", TUNNEL_ENTRY_TEXT));
  return notes;
}

/** A locality and the indexes of its endpoints in the buffer. */
interface PlacedLocality {
  locality: Omit<Locality, "endpoints">;
  places: number[];
}

function arrangeLocalities(
  { buffer, localities }: ReadAssignment,
  leaveOut: boolean,
  notes: Note[],
): Locality[] {
  const result: Locality[] = [];
  /** Keys of the endpoints in earlier localities. Within one locality, equal endpoints are adjacent. */
  const known = new Set<number | string>();
  const merged = mergeLocalities(localities);
  for (const { locality, places } of merged) {
    sortPlaces(buffer, places);
    const kept: number[] = [];
    let all = 0;
    let left = 0;
    for (const place of places) {
      all += buffer.weight(place);
      if (leaveOut && buffer.marked(place)) continue;
      const last = kept.at(-1);
      const repeated = last !== undefined && buffer.same(last, place);
      if (!repeated && !(merged.length > 1 && known.has(buffer.key(place)))) {
        left += buffer.weight(place);
        kept.push(place);
      } else if (!repeated || buffer.compare(last, place) !== 0) {
        const { address, port } = buffer.pick([place]).get(0);
        const text = `${address} port ${port} is given more than once: the first by priority, locality, health and weight counts`;
        notes.push(note("conflict", text));
      }
    }
    if (kept.length === 0) continue;
    if (merged.length > 1) for (const place of kept) known.add(buffer.key(place));
    // istiod's locality weight is the sum of its endpoints' weights, including those that are left out here.
    const weight = locality.weight === all ? left : locality.weight;
    result.push({ ...locality, weight, endpoints: buffer.pick(kept) });
  }
  return result.length === 0 ? NO_LOCALITIES : result;
}

function sortPlaces(buffer: EndpointBuffer, places: number[]): void {
  for (let i = 1; i < places.length; i++) {
    if (buffer.compare(places[i - 1] ?? 0, places[i] ?? 0) <= 0) continue;
    places.sort((a, b) => buffer.compare(a, b));
    return;
  }
}

/** One entry for each priority and locality, sorted. The greater of two weights is used. */
function mergeLocalities(read: readonly ReadLocality[]): PlacedLocality[] {
  const merged: PlacedLocality[] = [];
  for (const { from, to, ...locality } of read.length > 1 ? [...read].sort(compareLocalities) : read) {
    const places: number[] = [];
    for (let place = from; place < to; place++) places.push(place);
    const last = merged.at(-1);
    if (last === undefined || compareLocalities(last.locality, locality) !== 0) {
      merged.push({ locality, places });
      continue;
    }
    last.locality.weight = Math.max(last.locality.weight, locality.weight);
    last.places.push(...places);
  }
  return merged;
}

// The wire format follows. Field numbers as in proto/envoy_endpoint.proto; a tag is number * 8 + wire type.

/** Strings of regions and zones, shared by all endpoints. */
const shared = new Map<string, string>();

function share(text: string): string {
  const known = shared.get(text);
  if (known !== undefined) return known;
  if (shared.size > 10_000) shared.clear();
  shared.set(text, text);
  return text;
}

/** Reads a ClusterLoadAssignment. Throws the protobuf reader's Error, or MalformedResource. */
export function readAssignment(
  resource: string,
  bytes: Uint8Array,
  workloads?: WorkloadIndex,
  tunnel = false,
): ReadAssignment {
  const reader = protobuf.Reader.create(bytes);
  const read = emptyAssignment("", tunnel);
  read.workloads = workloads;
  while (reader.pos < reader.len) {
    const tag = reader.uint32();
    if (tag === 10) read.name = reader.string();
    else if (tag === 18) read.localities.push(readLocality(resource, reader, read));
    else if (tag === 34) readPolicy(reader, read);
    else reader.skipType(tag & 7);
  }
  return read;
}

function readPolicy(reader: Reader, read: ReadAssignment): void {
  const end = openMessage(reader);
  while (reader.pos < end) {
    const tag = reader.uint32();
    if (tag === 26) read.overprovisioning = readWrapped(reader);
    else {
      if (tag === 18) read.drops = true;
      reader.skipType(tag & 7);
    }
  }
}

function readLocality(resource: string, reader: Reader, read: ReadAssignment): ReadLocality {
  const end = openMessage(reader);
  const { buffer } = read;
  const from = buffer.length;
  const locality: ReadLocality = {
    region: "",
    zone: "",
    subzone: "",
    priority: 0,
    weight: 0,
    from,
    to: from,
  };
  while (reader.pos < end) {
    const tag = reader.uint32();
    if (tag === 10) {
      const inner = openMessage(reader);
      while (reader.pos < inner) {
        const part = reader.uint32();
        if (part === 10) locality.region = share(reader.string());
        else if (part === 18) locality.zone = share(reader.string());
        else if (part === 26) locality.subzone = share(reader.string());
        else reader.skipType(part & 7);
      }
    } else if (tag === 18) {
      readEndpoint(resource, reader, read);
    } else if (tag === 26) locality.weight = readWrapped(reader);
    else if (tag === 40) locality.priority = reader.uint32();
    else reader.skipType(tag & 7);
  }
  locality.to = buffer.length;
  return locality;
}

/** Adds one endpoint to the buffer, or counts it as unreachable when it has no socket address. */
function readEndpoint(resource: string, reader: Reader, read: ReadAssignment): void {
  const end = openMessage(reader);
  /** The 32 bits of an IPv4 address, the usual case; else the text. */
  let address: number | string = "";
  let port = 0;
  let socket = false;
  let weight = 1;
  let health = 0;
  let metadata = 0;
  endpointWorkload.length = 0;
  while (reader.pos < end) {
    const tag = reader.uint32();
    if (tag === 10) {
      // LbEndpoint.endpoint -> Endpoint.address -> Address.socket_address
      const endpointEnd = openMessage(reader);
      while (reader.pos < endpointEnd) {
        const field = reader.uint32();
        if (field !== 10) {
          reader.skipType(field & 7);
          continue;
        }
        const addressEnd = openMessage(reader);
        while (reader.pos < addressEnd) {
          const kind = reader.uint32();
          if (kind === 26 && read.tunnel) {
            const internal = readInternal(reader);
            if (internal) ({ address, port } = internal);
            socket = internal !== undefined;
            continue;
          }
          if (kind !== 10) {
            reader.skipType(kind & 7);
            continue;
          }
          socket = true;
          const socketEnd = openMessage(reader);
          while (reader.pos < socketEnd) {
            const part = reader.uint32();
            if (part === 18) address = readAddress(reader);
            else if (part === 24) port = reader.uint32();
            else if (part === 8) checkEnum(resource, "an endpoint's protocol", reader.uint32(), 1);
            else reader.skipType(part & 7);
          }
        }
      }
    } else if (tag === 16) {
      health = reader.uint32();
      checkEnum(resource, "health_status", health, HEALTH_STATUS_MAX);
    } else if (tag === 26) {
      const metadataEnd = openMessage(reader);
      while (reader.pos < metadataEnd) {
        const field = reader.uint32();
        if (field !== 10) reader.skipType(field & 7);
        else metadata |= readMetadata(reader, endpointWorkload);
      }
    } else if (tag === 34) weight = readWrapped(reader);
    else reader.skipType(tag & 7);
  }
  if (!socket) {
    read.unreachable++;
    return;
  }
  // An IPv4 address is a number, however it was given: maps have it by that.
  const canonical = typeof address === "number" ? address : canonicalAddress(address);
  const literal = typeof canonical === "string" ? (parseV4(canonical) ?? canonical) : canonical;
  if (literal === undefined) {
    throw new MalformedResource(
      resource,
      `an endpoint has the address ${JSON.stringify(address)}, which is not an IP address`,
    );
  }
  if (port === 0 || port > 65535) {
    const text = typeof literal === "number" ? formatV4(literal) : literal;
    throw new MalformedResource(resource, `endpoint ${text} has the port ${port}`);
  }
  if (isTunnelEntry(literal, port)) {
    read.entries = true;
    return;
  }
  const gateway = (metadata & TLS) !== 0 && (metadata & NO_WORKLOAD) !== 0;
  if (gateway) read.gateways++;
  else if (metadata & TLS) read.prefersTls = true;
  const healthy = TAKES_TRAFFIC[health] ?? false;
  if (read.workloads && endpointWorkload.length > 0) {
    const key = typeof literal === "number" ? literal * 65536 + port : `${literal} ${port}`;
    read.service ??= serviceOfCluster(read.name).name;
    const { start, length } = endpointWorkload;
    read.workloads.draft.append(reader.buf, start, start + length);
    read.workloads.put(key, read.workloads.endDraft(), read.service);
  }
  const transport = read.tunnel ? metadataClass(metadata) : 0;
  if (typeof literal === "number")
    read.buffer.pushV4(literal, port, weight || 1, healthy, gateway, transport);
  else read.buffer.push(literal, port, weight || 1, healthy, gateway, transport);
}

function metadataClass(metadata: number): number {
  return (metadata & TLS ? TLS_MODE_ISTIO : 0) + (metadata & TUNNEL ? TUNNEL_HTTP : 0);
}

/**
 * Reads an EnvoyInternalAddress. istiod gives a workload that is reached by HBONE as {connect_originate, "IP:PORT"}.
 * Undefined for other listeners inside Envoy.
 */
function readInternal(reader: Reader): { address: string; port: number } | undefined {
  const end = openMessage(reader);
  let listener = "";
  let endpoint = "";
  while (reader.pos < end) {
    const tag = reader.uint32();
    if (tag === 10) listener = reader.string();
    else if (tag === 18) endpoint = reader.string();
    else reader.skipType(tag & 7);
  }
  const [, six, four, port] = /^(?:\[(.+)\]|([^:]+)):(\d+)$/.exec(endpoint) ?? [];
  const address = six ?? four;
  return listener === CONNECT_ORIGINATE && address !== undefined
    ? { address, port: Number(port) }
    : undefined;
}

/** Reads an address: the 32 bits of an IPv4 address, without making a string, else the text. */
function readAddress(reader: Reader): number | string {
  const start = reader.pos;
  const end = openMessage(reader);
  const v4 = parseV4Bytes(reader.buf, reader.pos, end);
  if (v4 !== undefined) {
    reader.pos = end;
    return v4;
  }
  reader.pos = start;
  return reader.string();
}

const latin1 = (text: string) => new TextEncoder().encode(text);
const SOCKET_MATCH = latin1("envoy.transport_socket_match");
const TLS_MODE = latin1("tlsMode");
const ISTIO = latin1("istio");
const TUNNEL_KEY = latin1("tunnel");
const HTTP = latin1("http");
const CONNECT_ORIGINATE = "connect_originate";
const WORKLOAD = latin1("workload");
/** The workload of a gateway to another network: it has none of its own. */
const GATEWAY_WORKLOAD = latin1(";;;;");

/** Flags from an endpoint's metadata. */
const TLS = 1;
const NO_WORKLOAD = 2;
const TUNNEL = 4;

/**
 * Reads one entry of filter_metadata. Gives TLS for envoy.transport_socket_match {tlsMode: istio}, NO_WORKLOAD for
 * istio {workload: ";;;;"}, TUNNEL for envoy.transport_socket_match {tunnel: http}, 0 for others. Compares bytes, so that a hundred thousand endpoints need no strings.
 */
function readMetadata(reader: Reader, workload: Span): number {
  const end = openMessage(reader);
  let key: Uint8Array | undefined;
  let found = 0;
  while (reader.pos < end) {
    const tag = reader.uint32();
    if (tag === 10) key = readKey(reader, SOCKET_MATCH, ISTIO);
    else if (tag !== 18 || key === undefined) reader.skipType(tag & 7);
    else if (key === SOCKET_MATCH) {
      const start = reader.pos;
      if (readStructIs(reader, TLS_MODE, ISTIO)) found |= TLS;
      else {
        reader.pos = start;
        if (readStructIs(reader, TUNNEL_KEY, HTTP)) found |= TUNNEL;
      }
    } else if (readStructIs(reader, WORKLOAD, GATEWAY_WORKLOAD, workload)) found |= NO_WORKLOAD;
  }
  return found;
}

/** The position of a text in the message. */
class Span {
  start = 0;
  length = 0;
}

/** The workload text of the endpoint that is being read. */
const endpointWorkload = new Span();

/** Reads a Struct. Gives whether its text field `name` equals `text`; `found` gets the position of the text. */
function readStructIs(reader: Reader, name: Uint8Array, text: Uint8Array, found?: Span): boolean {
  const end = openMessage(reader);
  let is = false;
  while (reader.pos < end) {
    const tag = reader.uint32();
    if (tag !== 10) {
      reader.skipType(tag & 7);
      continue;
    }
    const entryEnd = openMessage(reader);
    let wanted = false;
    while (reader.pos < entryEnd) {
      const part = reader.uint32();
      if (part === 10) wanted = readKey(reader, name) !== undefined;
      else if (part === 18 && wanted) {
        const valueEnd = openMessage(reader);
        while (reader.pos < valueEnd) {
          const kind = reader.uint32();
          if (kind === 26) is = readKey(reader, text, undefined, found) !== undefined;
          else reader.skipType(kind & 7);
        }
      } else reader.skipType(part & 7);
    }
  }
  return is;
}

/** Reads a text. Gives the candidate that it equals, else undefined. */
function readKey(reader: Reader, one: Uint8Array, other?: Uint8Array, found?: Span): Uint8Array | undefined {
  const end = openMessage(reader);
  const start = reader.pos;
  reader.pos = end;
  if (found) {
    found.start = start;
    found.length = end - start;
  }
  if (isAt(reader.buf, start, end, one)) return one;
  return other !== undefined && isAt(reader.buf, start, end, other) ? other : undefined;
}

function isAt(bytes: Uint8Array, start: number, end: number, text: Uint8Array): boolean {
  if (end - start !== text.length) return false;
  for (let i = 0; i < text.length; i++) if (bytes[start + i] !== text[i]) return false;
  return true;
}

/** Reads a UInt32Value. */
function readWrapped(reader: Reader): number {
  const end = openMessage(reader);
  let value = 0;
  while (reader.pos < end) {
    const tag = reader.uint32();
    if (tag === 8) value = reader.uint32();
    else reader.skipType(tag & 7);
  }
  return value;
}
