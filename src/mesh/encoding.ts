/**
 * Encodes a mesh as bytes, and decodes it: compact, and in parts, so that a large mesh is never in memory twice. The
 * bytes are for one machine: endpoints are written as they are in memory. The caller must protect the bytes by a
 * checksum and a version. Each change of the format needs a new `MESH_ENCODING`.
 */
import { ENDPOINT_WORDS, EndpointList } from "./endpoint-list.ts";
import { frontendKey } from "./frontend.ts";
import type { Inbound } from "./inbound.ts";
import { inboundText, parseInbound } from "./inbound-text.ts";
import {
  type Balance,
  type Cluster,
  type Ejection,
  type Frontend,
  type Locality,
  type Match,
  type Mesh,
  type Name,
  NO_EJECTION,
  NOTE_KINDS,
  type Note,
  REASONS,
  type Reason,
  type Service,
  type Split,
  type Target,
} from "./model.ts";
import type { SanMatch, Transport } from "./transport.ts";

/** The version of the format. */
export const MESH_ENCODING = 4;

/** Approximate bytes of a part: an element is never split. */
const PART = 64 << 10;

// The order of each list is part of the format: only append.
const TARGET_KINDS = ["cluster", "split", "passthrough", "refuse"] as const;
const MATCH_KINDS = ["address", "prefix", "port"] as const;
const CLUSTER_KINDS = ["endpoints", "passthrough", "refuse", "port-override"] as const;
const TRANSPORT_KINDS = ["istio", "hbone", "tls", "proxy-protocol"] as const;
const SAN_KINDS = ["exact", "prefix", "suffix"] as const;
const POLICIES = ["round-robin", "random", "least-request", "ring-hash", "maglev"] as const;

/** The bytes are no encoded mesh. */
export class MalformedMesh extends Error {
  constructor(reason: string) {
    super(reason);
    this.name = "MalformedMesh";
  }
}

/**
 * Encodes the present mesh in parts of about 64 KB. Each part is valid until the next one is requested. The maps may
 * change between two parts, because their values are only ever replaced.
 */
export function encodeMesh(mesh: Mesh): Generator<Uint8Array, void> {
  const { fallback, notes } = mesh;
  const writer = new Writer();
  writer.list(notes, putNote);
  putTarget(writer, fallback);
  // Referenced elements come first: a name is written where it first occurs.
  return parts(writer, [
    section([...mesh.services.values()], putService),
    section([...mesh.clusters.values()], putCluster),
    section([...mesh.splits.values()], putSplit),
    section([...mesh.frontends.values()], putFrontend),
    section([...mesh.names.values()], putName),
    section(mesh.inbound ? [mesh.inbound] : [], (_, each) => writer.text(inboundText(each))),
  ]);
}

/** Decodes a mesh. Bytes of encoding 2 have no names, those of 2 and 3 no transports and nothing inbound. Throws MalformedMesh. */
export function decodeMesh(bytes: Uint8Array, encoding = MESH_ENCODING): Mesh {
  const reader = new Reader(bytes, encoding);
  const notes = reader.list(takeNote);
  const fallback = takeTarget(reader);
  const byName = <T extends { name: string }>(list: T[]) => new Map(list.map((each) => [each.name, each]));
  const services = byName(reader.list(takeService));
  const clusters = byName(reader.list(takeCluster));
  const splits = byName(reader.list(takeSplit));
  const frontends = new Map(reader.list(takeFrontend).map((each) => [frontendKey(each), each]));
  const names = new Map(
    (encoding < 3 ? [] : reader.list(takeName)).map((each): [string, Name] => [each.host, each]),
  );
  const [inbound] = encoding < 4 ? [] : reader.list(takeInbound);
  reader.end();
  const mesh = { services, frontends, splits, clusters, names, fallback, notes };
  return inbound ? { ...mesh, inbound } : mesh;
}

function takeInbound(reader: Reader): Inbound {
  try {
    return parseInbound(reader.text());
  } catch (error) {
    if (error instanceof RangeError) throw new MalformedMesh(error.message);
    throw error;
  }
}

type Section = (writer: Writer) => Generator<void, void>;

function section<T>(list: readonly T[], put: (writer: Writer, each: T) => void): Section {
  return function* (writer) {
    writer.number(list.length);
    for (const each of list) {
      put(writer, each);
      yield;
    }
  };
}

function* parts(writer: Writer, sections: readonly Section[]): Generator<Uint8Array, void> {
  for (const each of sections) {
    for (const _ of each(writer)) {
      if (writer.length < PART) continue;
      yield writer.written();
      writer.clear();
    }
  }
  yield writer.written();
}

function putNote(writer: Writer, { kind, text }: Note): void {
  writer.choice(NOTE_KINDS, kind);
  writer.name(text);
}

function takeNote(reader: Reader): Note {
  return { kind: reader.choice(NOTE_KINDS), text: reader.name() };
}

function putTarget(writer: Writer, target: Target): void {
  writer.choice(TARGET_KINDS, target.kind);
  if (target.kind === "cluster") writer.name(target.cluster);
  else if (target.kind === "split") writer.name(target.split);
  else if (target.kind === "refuse") writer.choice(REASONS, target.reason);
}

function takeTarget(reader: Reader): Target {
  const kind = reader.choice(TARGET_KINDS);
  if (kind === "cluster") return { kind, cluster: reader.name() };
  if (kind === "split") return { kind, split: reader.name() };
  return kind === "refuse" ? { kind, reason: takeReason(reader) } : { kind };
}

function takeReason(reader: Reader): Reason {
  return reader.choice(REASONS);
}

function putService(writer: Writer, { name, host, port, notes }: Service): void {
  writer.name(name);
  writer.text(host);
  writer.number(port);
  writer.list(notes, putNote);
}

function takeService(reader: Reader): Service {
  return { name: reader.name(), host: reader.text(), port: reader.number(), notes: reader.list(takeNote) };
}

function putMatch(writer: Writer, match: Match): void {
  writer.choice(MATCH_KINDS, match.kind);
  if (match.kind !== "port") writer.text(match.address);
  if (match.kind === "prefix") writer.number(match.length);
  writer.number(match.port);
}

function takeMatch(reader: Reader): Match {
  const kind = reader.choice(MATCH_KINDS);
  if (kind === "port") return { kind, port: reader.number() };
  const address = reader.text();
  if (kind === "address") return { kind, address, port: reader.number() };
  return { kind, address, length: reader.number(), port: reader.number() };
}

function putFrontend(writer: Writer, { match, service, target }: Frontend): void {
  putMatch(writer, match);
  writer.name(service);
  putTarget(writer, target);
}

function takeFrontend(reader: Reader): Frontend {
  return { match: takeMatch(reader), protocol: "tcp", service: reader.name(), target: takeTarget(reader) };
}

function putName(writer: Writer, { host, addresses, aliases }: Name): void {
  writer.text(host);
  writer.list(addresses, (_, address) => writer.text(address));
  writer.list(aliases, (_, alias) => writer.text(alias));
}

function takeName(reader: Reader): Name {
  return {
    host: reader.text(),
    addresses: reader.list(() => reader.text()),
    aliases: reader.list(() => reader.text()),
  };
}

function putSplit(writer: Writer, { name, shares }: Split): void {
  writer.name(name);
  writer.list(shares, (_, { cluster, weight }) => {
    writer.name(cluster);
    writer.number(weight);
  });
}

function takeSplit(reader: Reader): Split {
  return {
    name: reader.name(),
    shares: reader.list(() => ({ cluster: reader.name(), weight: reader.number() })),
  };
}

function putBalance(writer: Writer, balance: Balance): void {
  writer.choice(POLICIES, balance.policy);
  if ("tableSize" in balance) writer.number(balance.tableSize);
}

function takeBalance(reader: Reader): Balance {
  const policy = reader.choice(POLICIES);
  if (policy === "ring-hash" || policy === "maglev") return { policy, tableSize: reader.number() };
  return { policy };
}

function putCluster(writer: Writer, cluster: Cluster): void {
  writer.name(cluster.name);
  writer.name(cluster.service);
  writer.choice(CLUSTER_KINDS, cluster.kind);
  writer.choice(REASONS, cluster.reason);
  if (cluster.kind === "port-override") writer.number(cluster.port);
  putBalance(writer, cluster.balance);
  writer.list(cluster.localities, putLocality);
  writer.number((cluster.localityWeighted ? 1 : 0) + (cluster.pending ? 2 : 0));
  writer.number(cluster.overprovisioning);
  writer.number(cluster.panicThreshold);
  writer.number(cluster.maxConnections);
  putEjection(writer, cluster.ejection);
  writer.list(cluster.transports, putTransport);
}

function takeCluster(reader: Reader): Cluster {
  const name = reader.name();
  const service = reader.name();
  const kind = reader.choice(CLUSTER_KINDS);
  const reason = takeReason(reader);
  const port = kind === "port-override" ? reader.number() : 0;
  const balance = takeBalance(reader);
  const localities = reader.list(takeLocality);
  const flags = reader.number();
  if (flags > 3) throw new MalformedMesh(`cluster ${name} has flags ${flags}`);
  return {
    name,
    service,
    kind,
    reason,
    port,
    balance,
    localities,
    localityWeighted: (flags & 1) !== 0,
    overprovisioning: reader.number(),
    panicThreshold: reader.number(),
    maxConnections: reader.number(),
    ejection: takeEjection(reader),
    transports: reader.encoding < 4 ? [] : reader.list((each) => takeTransport(each)),
    pending: (flags & 2) !== 0,
  };
}

function putTransport(writer: Writer, transport: Transport): void {
  writer.choice(TRANSPORT_KINDS, transport.kind);
  if (transport.kind === "proxy-protocol") {
    writer.number(transport.version);
    writer.list(transport.over === undefined ? [] : [transport.over], putTransport);
    return;
  }
  writer.list(transport.sans, putSan);
  if (transport.kind === "hbone") {
    writer.name(transport.authority);
    writer.number(transport.port);
    writer.list(transport.inner === undefined ? [] : [transport.inner], (_, { authority, sans }) => {
      writer.name(authority);
      writer.list(sans, putSan);
    });
    return;
  }
  writer.name(transport.sni);
  if (transport.kind === "istio") return;
  writer.name(transport.roots);
  writer.name(transport.certificate);
  writer.name(transport.key);
  writer.list(transport.alpn, (_, name) => writer.name(name));
}

/** Transports inside a transport that are read; the model needs one. */
const MAX_DEPTH = 4;

function takeTransport(reader: Reader, depth = 0): Transport {
  if (depth > MAX_DEPTH) throw new MalformedMesh("a transport is nested too deep");
  const kind = reader.choice(TRANSPORT_KINDS);
  if (kind === "proxy-protocol") {
    const version = reader.number();
    if (version !== 1 && version !== 2) throw new MalformedMesh(`there is no PROXY protocol ${version}`);
    const [over] = reader.list(() => takeTransport(reader, depth + 1));
    return over === undefined ? { kind, version } : { kind, version, over };
  }
  const sans = reader.list(takeSan);
  if (kind === "hbone") {
    const authority = reader.name();
    const port = reader.number();
    const [inner] = reader.list(() => ({ authority: reader.name(), sans: reader.list(takeSan) }));
    return inner === undefined ? { kind, authority, port, sans } : { kind, authority, port, sans, inner };
  }
  const sni = reader.name();
  if (kind === "istio") return { kind, sni, sans };
  const [roots, certificate, key] = [reader.name(), reader.name(), reader.name()];
  return { kind, sni, sans, roots, certificate, key, alpn: reader.list(() => reader.name()) };
}

function putSan(writer: Writer, { kind, value }: SanMatch): void {
  writer.choice(SAN_KINDS, kind);
  writer.name(value);
}

function takeSan(reader: Reader): SanMatch {
  return { kind: reader.choice(SAN_KINDS), value: reader.name() };
}

function putEjection(writer: Writer, { after, base, longest, percent, enforcing }: Ejection): void {
  writer.number(after);
  // Most clusters have no outlier detection.
  if (after > 0) for (const value of [base, longest, percent, enforcing]) writer.number(value);
}

function takeEjection(reader: Reader): Ejection {
  const after = reader.number();
  return after > 0
    ? {
        after,
        base: reader.number(),
        longest: reader.number(),
        percent: reader.number(),
        enforcing: reader.number(),
      }
    : NO_EJECTION;
}

function putLocality(writer: Writer, locality: Locality): void {
  writer.name(locality.region);
  writer.name(locality.zone);
  writer.name(locality.subzone);
  writer.number(locality.priority);
  writer.number(locality.weight);
  writer.endpoints(locality.endpoints);
}

function takeLocality(reader: Reader): Locality {
  return {
    region: reader.name(),
    zone: reader.name(),
    subzone: reader.name(),
    priority: reader.number(),
    weight: reader.number(),
    endpoints: reader.endpoints(),
  };
}

const utf8 = new TextEncoder();

class Writer {
  #bytes = new Uint8Array(2 * PART);
  #length = 0;
  /** The number of each name, by the order of first occurrence. Later occurrences write the number. */
  readonly #names = new Map<string, number>();

  get length(): number {
    return this.#length;
  }

  written(): Uint8Array {
    return this.#bytes.subarray(0, this.#length);
  }

  clear(): void {
    this.#length = 0;
  }

  /**
   * Writes the number plus one as a varint, seven bits per byte; for a value that is no natural number, 0 and eight
   * bytes.
   */
  number(value: number): void {
    this.#reserve(10);
    if (Number.isSafeInteger(value + 1) && value >= 0) {
      this.#varint(value + 1);
      return;
    }
    this.#bytes[this.#length++] = 0;
    new DataView(this.#bytes.buffer).setFloat64(this.#length, value);
    this.#length += 8;
  }

  text(value: string): void {
    const bytes = utf8.encode(value);
    this.#reserve(10 + bytes.length);
    this.#varint(bytes.length);
    this.#bytes.set(bytes, this.#length);
    this.#length += bytes.length;
  }

  /** Writes a string that may repeat. */
  name(value: string): void {
    const known = this.#names.get(value);
    this.#reserve(10);
    this.#varint(known ?? 0);
    if (known !== undefined) return;
    this.#names.set(value, this.#names.size + 1);
    this.text(value);
  }

  choice<T extends string>(choices: readonly T[], value: T): void {
    this.number(choices.indexOf(value));
  }

  list<T>(list: readonly T[], put: (writer: Writer, each: T) => void): void {
    this.number(list.length);
    for (const each of list) put(this, each);
  }

  endpoints({ words }: EndpointList): void {
    this.number(words.length / ENDPOINT_WORDS);
    this.#reserve(words.byteLength);
    this.#bytes.set(new Uint8Array(words.buffer, words.byteOffset, words.byteLength), this.#length);
    this.#length += words.byteLength;
  }

  #varint(value: number): void {
    let rest = value;
    while (rest >= 0x80) {
      this.#bytes[this.#length++] = (rest % 0x80) | 0x80;
      rest = Math.floor(rest / 0x80);
    }
    this.#bytes[this.#length++] = rest;
  }

  #reserve(count: number): void {
    if (this.#length + count <= this.#bytes.length) return;
    const larger = new Uint8Array(2 * (this.#length + count));
    larger.set(this.written());
    this.#bytes = larger;
  }
}

class Reader {
  /** The version of the bytes' format. */
  readonly encoding: number;
  readonly #bytes: Uint8Array;
  readonly #utf8 = new TextDecoder("utf-8", { fatal: true });
  readonly #names: string[] = [];
  #at = 0;

  constructor(bytes: Uint8Array, encoding: number) {
    this.#bytes = bytes;
    this.encoding = encoding;
  }

  number(): number {
    const value = this.#varint();
    if (value > 0) return value - 1;
    const bytes = this.#take(8);
    return new DataView(bytes.buffer, bytes.byteOffset, 8).getFloat64(0);
  }

  text(): string {
    const bytes = this.#take(this.#varint());
    try {
      return this.#utf8.decode(bytes);
    } catch {
      throw new MalformedMesh("a text is not UTF-8");
    }
  }

  name(): string {
    const number = this.#varint();
    if (number > 0) {
      const known = this.#names[number - 1];
      if (known === undefined) throw new MalformedMesh(`there is no name ${number}`);
      return known;
    }
    const name = this.text();
    this.#names.push(name);
    return name;
  }

  choice<T extends string>(choices: readonly T[]): T {
    const number = this.number();
    const choice = choices[number];
    if (choice === undefined) throw new MalformedMesh(`${number} is none of ${choices.join(", ")}`);
    return choice;
  }

  list<T>(take: (reader: Reader) => T): T[] {
    const length = this.#count(1);
    const list: T[] = [];
    for (let i = 0; i < length; i++) list.push(take(this));
    return list;
  }

  endpoints(): EndpointList {
    const length = this.#count(ENDPOINT_WORDS * 4);
    if (length === 0) return EndpointList.empty;
    const bytes = this.#take(length * ENDPOINT_WORDS * 4);
    // Copied, since the bytes may be unaligned, and so that the file's buffer can be freed.
    return new EndpointList(new Uint32Array(new Uint8Array(bytes).buffer));
  }

  end(): void {
    const left = this.#bytes.length - this.#at;
    if (left > 0) throw new MalformedMesh(`${left} bytes too many`);
  }

  /** Reads a count of elements of at least `size` bytes each. */
  #count(size: number): number {
    const count = this.number();
    if (!Number.isInteger(count) || count * size > this.#bytes.length - this.#at) throw cut();
    return count;
  }

  #varint(): number {
    let value = 0;
    for (let scale = 1; scale <= Number.MAX_SAFE_INTEGER; scale *= 0x80) {
      const byte = this.#bytes[this.#at++];
      if (byte === undefined) throw cut();
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) return value;
    }
    throw new MalformedMesh("a number is too long");
  }

  #take(count: number): Uint8Array {
    const end = this.#at + count;
    if (end > this.#bytes.length) throw cut();
    const bytes = this.#bytes.subarray(this.#at, end);
    this.#at = end;
    return bytes;
  }
}

function cut(): MalformedMesh {
  return new MalformedMesh("it ends too early");
}
