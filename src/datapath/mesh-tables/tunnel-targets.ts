/**
 * Tunnel targets in the kernel (bpf/maps/tunnel.h): endpoints that `kmesh tunnel` reaches for the apps. Such an endpoint
 * is one at 127.a.b.c:15001 for the programs; a.b.c is its id + FIRST_TARGET, so numbers are given, rest and come back as
 * the endpoints' ids do.
 */
import { formatAddress } from "../../mesh/address.ts";
import { ENDPOINT_WORDS, EndpointList } from "../../mesh/endpoint-list.ts";
import type { Transport } from "../../mesh/transport.ts";
import {
  addressOfTarget,
  FIRST_TARGET,
  LAST_TARGET,
  TUNNEL_PORT,
  targetOfAddress,
} from "../../mesh/tunnel-address.ts";
import type { ChunkedTable } from "../tables/chunked-table.ts";
import * as layout from "../tables/layout.gen.ts";
import { NameLines, NameSpace, nameOf } from "../tables/names.ts";
import type { Tables } from "../tables/tables.ts";

const { fields } = layout.tunnel_target;
const TRANSPORT = fields.transport.offset;
const CLUSTER = fields.cluster.offset;
const SERVICE = fields.service.offset;
const PORT = fields.port.offset;
const END = layout.endpoint.fields;

/** How the tunnel reaches an endpoint, and for whom. */
export interface Tunnelled {
  transport: Transport;
  /** Ids. */
  cluster: number;
  service: number;
}

/** The record of an endpoint's id. */
export interface Peer {
  address: string;
  port: number;
  /** Ids. */
  transport: number;
  cluster: number;
  service: number;
}

/** More endpoints are reached through the tunnel than 127.0.0.0/8 has addresses. */
export class TooManyTargets extends Error {
  constructor() {
    super(`endpoint ids above ${LAST_TARGET - FIRST_TARGET} can't be reached through the tunnel`);
    this.name = "TooManyTargets";
  }
}

/** What the agent alone writes. */
export class TunnelTargets {
  readonly #tables: Tables;
  readonly #table: ChunkedTable;
  readonly #transports: NameSpace;
  /** Targets by the id of their transport. */
  readonly #users = new Map<number, number>();
  /** By `keyOf`. */
  readonly #ids = new Map<string, number>();

  constructor(tables: Tables) {
    this.#tables = tables;
    this.#table = tables.tunnelTargets;
    const lines = new NameLines(tables.transportLines, [tables.transports]);
    this.#transports = new NameSpace(tables.transports, lines, 1);
    const named = new Set(this.#transports.ids());
    for (let id = 0; id < this.#table.capacity; id++) {
      const peer = readPeer(tables, id);
      if (!peer) continue;
      // Two targets may be the same to us after damage: either is right.
      if (named.has(peer.transport)) this.#ids.set(this.#keyOf(id), id);
      this.#users.set(peer.transport, (this.#users.get(peer.transport) ?? 0) + 1);
    }
    // An agent that was killed, or a version without the tunnel, left them.
    for (const text of [...this.#transports.names()]) this.#forget(text);
  }

  /** The id of the target at this place of `list`. */
  find(list: EndpointList, index: number, { transport, cluster, service }: Tunnelled): number | undefined {
    const known = this.#transports.id(textOf(transport));
    if (known === undefined) return undefined;
    const words = list.words.subarray(index * ENDPOINT_WORDS, index * ENDPOINT_WORDS + 4);
    return this.#ids.get(key(words, list.port(index), known, cluster, service));
  }

  /** Writes the target of a new endpoint id. Gives the endpoint as the programs see it. Throws TooManyTargets. */
  add(id: number, list: EndpointList, index: number, through: Tunnelled): EndpointList {
    if (id > LAST_TARGET - FIRST_TARGET) throw new TooManyTargets();
    const text = textOf(through.transport);
    const transport = this.#transports.id(text) ?? this.#transports.add(text);
    this.#table.reserve(id + 1);
    const record = this.#table.record(id);
    record.fill(0);
    const first = index * ENDPOINT_WORDS;
    for (let word = 0; word < 4; word++)
      this.#table.setWord(id, fields.address.offset + word * 4, list.words[first + word] ?? 0);
    const port = list.port(index);
    record[PORT] = port >> 8;
    record[PORT + 1] = port & 0xff;
    this.#table.setWord(id, CLUSTER, through.cluster);
    this.#table.setWord(id, SERVICE, through.service);
    this.#table.setWord(id, TRANSPORT, transport);
    this.#users.set(transport, (this.#users.get(transport) ?? 0) + 1);
    this.#ids.set(this.#keyOf(id), id);
    return EndpointList.of([
      { address: addressOfTarget(id + FIRST_TARGET), port: TUNNEL_PORT, weight: 1, healthy: true },
    ]);
  }

  /** The id is about to be free. Gives whether it was a target. */
  remove(id: number): boolean {
    if (!this.#table.has(id)) return false;
    const transport = this.#table.word(id, TRANSPORT);
    if (transport === 0) return false;
    const key = this.#keyOf(id);
    if (this.#ids.get(key) === id) this.#ids.delete(key);
    this.#table.setWord(id, TRANSPORT, 0);
    const users = (this.#users.get(transport) ?? 1) - 1;
    this.#users.set(transport, users);
    const text =
      users > 0 ? undefined : nameOf(this.#tables.transports, this.#tables.transportLines, transport);
    if (text !== undefined) this.#forget(text);
    return true;
  }

  /** Gives a transport's id and text back, if no target has it. */
  #forget(text: string): void {
    const id = this.#transports.id(text);
    if (id === undefined || (this.#users.get(id) ?? 0) > 0) return;
    this.#users.delete(id);
    this.#transports.remove(text);
    this.#transports.recycle(id);
  }

  #keyOf(id: number): string {
    const words = Array.from({ length: 4 }, (_, word) =>
      this.#table.word(id, fields.address.offset + word * 4),
    );
    const word = (at: number) => this.#table.word(id, at);
    return key(words, portOf(this.#table, id), word(TRANSPORT), word(CLUSTER), word(SERVICE));
  }
}

/** Whether the endpoint's id is a target's. */
export function isTarget(
  { endpoints, tunnelTargets }: Pick<Tables, "endpoints" | "tunnelTargets">,
  id: number,
): boolean {
  if (!tunnelTargets.has(id) || !endpoints.has(id)) return false;
  // A version without the tunnel gives the id to another endpoint and does not know of the record here.
  return tunnelTargets.word(id, TRANSPORT) !== 0 && isLocal(endpoints, id);
}

/** The target of an endpoint's id; undefined when the endpoint is reached directly. */
export function readPeer(tables: Pick<Tables, "endpoints" | "tunnelTargets">, id: number): Peer | undefined {
  if (!isTarget(tables, id)) return undefined;
  const { tunnelTargets } = tables;
  const address = tunnelTargets.record(id).subarray(fields.address.offset, fields.address.offset + 16);
  return {
    address: formatAddress(address),
    port: portOf(tunnelTargets, id),
    transport: tunnelTargets.word(id, TRANSPORT),
    cluster: tunnelTargets.word(id, CLUSTER),
    service: tunnelTargets.word(id, SERVICE),
  };
}

/** How a target is reached; undefined when its transport is lost. */
export function readTransport(
  { transports, transportLines }: Pick<Tables, "transports" | "transportLines">,
  id: number,
): Transport | undefined {
  const text = nameOf(transports, transportLines, id);
  return text === undefined ? undefined : (JSON.parse(text) as Transport);
}

/** The endpoint id of a target by its number, a.b.c of 127.a.b.c; undefined for a number that is given to none. */
export function idOfNumber(number: number): number | undefined {
  return number >= FIRST_TARGET && number <= LAST_TARGET ? number - FIRST_TARGET : undefined;
}

/** The number of an endpoint's id. */
export function numberOf(id: number): number {
  return id + FIRST_TARGET;
}

/** The peer behind an address that a connection was led to; undefined when that is no target's. */
export function peerBehind(tables: Tables, address: string, port: number): Peer | undefined {
  const number = port === TUNNEL_PORT ? targetOfAddress(address) : undefined;
  const id = number === undefined ? undefined : idOfNumber(number);
  return id === undefined ? undefined : readPeer(tables, id);
}

/** Whether the endpoint is the one that leads to the target of its id. */
function isLocal(endpoints: ChunkedTable, id: number): boolean {
  if (endpoints.word(id, END.used.offset) === 0) return false;
  const record = endpoints.record(id);
  const number = numberOf(id);
  const at = END.address.offset + 12;
  return (
    record[at] === 127 &&
    record[at + 1] === number >>> 16 &&
    record[at + 2] === ((number >>> 8) & 255) &&
    record[at + 3] === (number & 255) &&
    record[END.port.offset] === TUNNEL_PORT >> 8 &&
    record[END.port.offset + 1] === (TUNNEL_PORT & 255)
  );
}

function portOf(table: ChunkedTable, id: number): number {
  const record = table.record(id);
  return ((record[PORT] ?? 0) << 8) | (record[PORT + 1] ?? 0);
}

function key(
  words: ArrayLike<number>,
  port: number,
  transport: number,
  cluster: number,
  service: number,
): string {
  return (
    String.fromCharCode(...halves([words[0] ?? 0, words[1] ?? 0, words[2] ?? 0, words[3] ?? 0, port])) +
    `${transport} ${cluster} ${service}`
  );
}

function halves(words: readonly number[]): number[] {
  return words.flatMap((word) => [word & 0xffff, word >>> 16]);
}

/** The texts of transports, since clusters of a mesh are compiled again and again. */
const texts = new WeakMap<Transport, string>();

/** Equal for equal transports: its members are written in one order. */
export function textOf(transport: Transport): string {
  const known = texts.get(transport);
  if (known !== undefined) return known;
  const text = JSON.stringify(ordered(transport));
  texts.set(transport, text);
  return text;
}

function ordered(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(ordered);
  if (typeof value !== "object" || value === null) return value;
  const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
  return Object.fromEntries(entries.map(([name, member]) => [name, ordered(member)]));
}
