/**
 * EDS: the endpoints of one cluster, straight from the wire to the model's localities. A mesh has a hundred
 * thousand of them, so no message tree is built: one pass with a reader, strings of localities shared.
 */
import protobuf, { type Reader } from "protobufjs/minimal.js";
import { MalformedResource } from "../istiod/sink.ts";
import { canonicalAddress } from "../mesh/address.ts";
import type { Endpoint, Locality, Note } from "../mesh/model.ts";
import { type Notes, note, sortedNotes } from "./note.ts";
import { checkEnum, checkName, guarded, openMessage } from "./wire.ts";

/** The endpoints of a cluster, as the model holds them. */
export interface EndpointsRecord {
  /** Sorted by priority, region, zone and subzone; within, endpoints by address and port. Never empty ones. */
  localities: Locality[];
  /** Percent. */
  overprovisioning: number;
  /** Some peer prefers mutual TLS (auto-mTLS): whether that is so depends on the cluster, too. */
  prefersTls: boolean;
  /** There are endpoints, and all of them are gateways to other networks, which speak nothing but mutual TLS. */
  onlyGateways: boolean;
  notes: Notes;
}

/** One locality as read: duplicates and gateways are not sorted out yet. */
export type ReadLocality = Locality;

/** A whole assignment as read: also what a cluster carries inside. */
export interface ReadAssignment {
  name: string;
  localities: ReadLocality[];
  overprovisioning: number;
  /** Some endpoint that is no gateway has tlsMode istio. */
  prefersTls: boolean;
  /** Those that stand for another network. */
  gateways: Set<Endpoint> | undefined;
  /** Endpoints without an IP address and port: pipes, and listeners inside Envoy. */
  unreachable: number;
  drops: boolean;
}

/** Envoy's default, in percent. */
export const OVERPROVISIONING = 140;
const NO_LOCALITIES: Locality[] = [];
const HEALTH_STATUS_MAX = 5;
/** UNKNOWN, HEALTHY and DEGRADED take traffic. */
const TAKES_TRAFFIC: readonly boolean[] = [true, true, false, false, false, true];

/**
 * Flattens one ClusterLoadAssignment. `allowPlaintext` keeps gateways among the endpoints. Throws
 * MalformedResource.
 */
export function flattenEndpoints(
  resource: string,
  bytes: Uint8Array,
  allowPlaintext: boolean,
): EndpointsRecord {
  checkName(resource, resource);
  const read = guarded(resource, () => readAssignment(resource, bytes));
  checkName(resource, read.name);
  return arrange(read, allowPlaintext);
}

/**
 * Sorts what was read into the model's shape. Of endpoints with the same address and port one is kept: that of
 * the first locality in sort order, there a healthy one before others, then the heaviest. (istiod repeats each
 * endpoint once per address of its service, and in another order after each restart.)
 */
export function arrange(read: ReadAssignment, allowPlaintext: boolean): EndpointsRecord {
  const notes = assignmentNotes(read);
  let gateways = allowPlaintext ? undefined : read.gateways;
  let onlyGateways = false;
  if (gateways !== undefined) {
    const all = read.localities.reduce((sum, { endpoints }) => sum + endpoints.length, 0);
    onlyGateways = gateways.size === all;
    if (onlyGateways) gateways = undefined;
    else {
      const text = "endpoints of other networks are left out: their gateway speaks only mutual TLS";
      notes.push(note("plaintext", text));
    }
  }
  return {
    localities: arrangeLocalities(read.localities, gateways, notes),
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
  return notes;
}

/** Ports by address of what was kept, while one assignment is arranged. */
const kept = new Map<string, number | number[]>();

/** Remembers address and port. Gives false when they are known already. */
function keep({ address, port }: Endpoint): boolean {
  const ports = kept.get(address);
  if (ports === undefined) kept.set(address, port);
  else if (typeof ports === "number") {
    if (ports === port) return false;
    kept.set(address, [ports, port]);
  } else {
    if (ports.includes(port)) return false;
    ports.push(port);
  }
  return true;
}

/** Works in place: what was read is not needed in another form. */
function arrangeLocalities(
  read: ReadLocality[],
  leaveOut: ReadonlySet<Endpoint> | undefined,
  notes: Note[],
): Locality[] {
  const localities = read.length > 1 ? mergeLocalities(read) : read;
  kept.clear();
  const result: Locality[] = [];
  for (const locality of localities) {
    const { endpoints } = locality;
    if (!isSorted(endpoints)) endpoints.sort(compareEndpoints);
    let all = 0;
    let left = 0;
    let count = 0;
    let last: Endpoint | undefined;
    for (const endpoint of endpoints) {
      all += endpoint.weight;
      if (leaveOut?.has(endpoint)) continue;
      if (keep(endpoint)) {
        left += endpoint.weight;
        endpoints[count++] = endpoint;
        last = endpoint;
        continue;
      }
      const same = last?.address === endpoint.address && last.port === endpoint.port;
      if (same && last?.weight === endpoint.weight && last.healthy === endpoint.healthy) continue;
      const which = `${endpoint.address} port ${endpoint.port}`;
      const text = `${which} is given more than once: the first by priority, locality, health and weight counts`;
      notes.push(note("conflict", text));
    }
    endpoints.length = count;
    if (count === 0) continue;
    // istiod's locality weight is the sum of its endpoints' weights, with those that are not kept.
    if (locality.weight === all) locality.weight = left;
    result.push(locality);
  }
  kept.clear();
  return result.length === 0 ? NO_LOCALITIES : result;
}

function isSorted(endpoints: readonly Endpoint[]): boolean {
  let last = endpoints[0];
  for (const endpoint of endpoints) {
    if (last !== undefined && last !== endpoint && compareEndpoints(last, endpoint) > 0) return false;
    last = endpoint;
  }
  return true;
}

/** One entry per priority and locality, sorted. Of two weights the greater counts. */
function mergeLocalities(read: ReadLocality[]): ReadLocality[] {
  const sorted = [...read].sort(compareLocalities);
  const merged: ReadLocality[] = [];
  for (const locality of sorted) {
    const last = merged.at(-1);
    if (last === undefined || compareLocalities(last, locality) !== 0) {
      merged.push({ ...locality });
      continue;
    }
    last.weight = Math.max(last.weight, locality.weight);
    last.endpoints = [...last.endpoints, ...locality.endpoints];
  }
  return merged;
}

type Place = Pick<Locality, "region" | "zone" | "subzone" | "priority">;

export function compareLocalities(a: Place, b: Place): number {
  return (
    a.priority - b.priority ||
    compareText(a.region, b.region) ||
    compareText(a.zone, b.zone) ||
    compareText(a.subzone, b.subzone)
  );
}

function compareText(a: string, b: string): number {
  return a === b ? 0 : a < b ? -1 : 1;
}

function compareEndpoints(a: Endpoint, b: Endpoint): number {
  return (
    compareText(a.address, b.address) ||
    a.port - b.port ||
    Number(b.healthy) - Number(a.healthy) ||
    b.weight - a.weight
  );
}

// From here on: the wire. Field numbers as in proto/envoy_endpoint.proto; a tag is number * 8 + wire type.

/** Regions and zones, which endpoints share. */
const shared = new Map<string, string>();

function share(text: string): string {
  const known = shared.get(text);
  if (known !== undefined) return known;
  if (shared.size > 10_000) shared.clear();
  shared.set(text, text);
  return text;
}

/** Reads a ClusterLoadAssignment. Throws what the reader throws, or MalformedResource. */
export function readAssignment(resource: string, bytes: Uint8Array): ReadAssignment {
  const reader = protobuf.Reader.create(bytes);
  const read: ReadAssignment = {
    name: "",
    localities: [],
    overprovisioning: OVERPROVISIONING,
    prefersTls: false,
    gateways: undefined,
    unreachable: 0,
    drops: false,
  };
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
  const locality: ReadLocality = {
    region: "",
    zone: "",
    subzone: "",
    priority: 0,
    weight: 0,
    endpoints: [],
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
      const endpoint = readEndpoint(resource, reader, read);
      if (endpoint === undefined) read.unreachable++;
      else locality.endpoints.push(endpoint);
    } else if (tag === 26) locality.weight = readWrapped(reader);
    else if (tag === 40) locality.priority = reader.uint32();
    else reader.skipType(tag & 7);
  }
  return locality;
}

/** Gives undefined for an endpoint that no socket can connect to. */
function readEndpoint(resource: string, reader: Reader, read: ReadAssignment): Endpoint | undefined {
  const end = openMessage(reader);
  let address = "";
  let port = 0;
  let socket = false;
  let weight = 1;
  let health = 0;
  let metadata = 0;
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
          if (kind !== 10) {
            reader.skipType(kind & 7);
            continue;
          }
          socket = true;
          const socketEnd = openMessage(reader);
          while (reader.pos < socketEnd) {
            const part = reader.uint32();
            if (part === 18) address = reader.string();
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
        else metadata |= readMetadata(reader);
      }
    } else if (tag === 34) weight = readWrapped(reader);
    else reader.skipType(tag & 7);
  }
  if (!socket) return undefined;
  const canonical = canonicalAddress(address);
  if (canonical === undefined) {
    throw new MalformedResource(
      resource,
      `an endpoint has the address ${JSON.stringify(address)}, which is no IP`,
    );
  }
  if (port === 0 || port > 65535) {
    throw new MalformedResource(resource, `endpoint ${canonical} has the port ${port}`);
  }
  const endpoint: Endpoint = {
    address: canonical,
    port,
    weight: weight === 0 ? 1 : weight,
    healthy: TAKES_TRAFFIC[health] ?? false,
  };
  if (metadata & TLS) {
    if (!(metadata & NO_WORKLOAD)) read.prefersTls = true;
    else if (read.gateways === undefined) read.gateways = new Set([endpoint]);
    else read.gateways.add(endpoint);
  }
  return endpoint;
}

const latin1 = (text: string) => new TextEncoder().encode(text);
const SOCKET_MATCH = latin1("envoy.transport_socket_match");
const TLS_MODE = latin1("tlsMode");
const ISTIO = latin1("istio");
const WORKLOAD = latin1("workload");
/** Of a gateway that stands for all endpoints of its network: it has no workload of its own. */
const GATEWAY_WORKLOAD = latin1(";;;;");

/** What an endpoint's metadata says, as bits. */
const TLS = 1;
const NO_WORKLOAD = 2;

/**
 * Reads one entry of filter_metadata: gives TLS for envoy.transport_socket_match {tlsMode: istio}, NO_WORKLOAD for
 * istio {workload: ";;;;"}, 0 for all else. Compares bytes: a hundred thousand endpoints need no strings for that.
 */
function readMetadata(reader: Reader): number {
  const end = openMessage(reader);
  let key: Uint8Array | undefined;
  let found = 0;
  while (reader.pos < end) {
    const tag = reader.uint32();
    if (tag === 10) key = readKey(reader, SOCKET_MATCH, ISTIO);
    else if (tag !== 18 || key === undefined) reader.skipType(tag & 7);
    else if (key === SOCKET_MATCH) {
      if (readStructIs(reader, TLS_MODE, ISTIO)) found |= TLS;
    } else if (readStructIs(reader, WORKLOAD, GATEWAY_WORKLOAD)) found |= NO_WORKLOAD;
  }
  return found;
}

/** Reads a Struct and gives whether its text field `name` is `text`. */
function readStructIs(reader: Reader, name: Uint8Array, text: Uint8Array): boolean {
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
          if (kind === 26) is = readKey(reader, text) !== undefined;
          else reader.skipType(kind & 7);
        }
      } else reader.skipType(part & 7);
    }
  }
  return is;
}

/** Reads a text and gives that of the candidates which it is. */
function readKey(reader: Reader, one: Uint8Array, other?: Uint8Array): Uint8Array | undefined {
  const end = openMessage(reader);
  const start = reader.pos;
  reader.pos = end;
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
