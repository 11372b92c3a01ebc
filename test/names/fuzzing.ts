/** Broken DNS queries, and what is right as their answer: by dns-packet and the mesh's rules, not by the table's means. */
import { decode, encode, type OptAnswer, type Packet } from "dns-packet";
import { Entries, type Entry } from "../../src/names/entries.ts";
import { NAME_FLAGS, type NameTable } from "../../src/names/name-table.ts";
import { frameOf, type QueryType, queryMessage } from "../../src/names/query.ts";
import type { Random } from "../lab/random.ts";

/** Bytes before the DNS message: Ethernet, IP, UDP. */
export const HEADS = { v4: 42, v6: 62 } as const;

export function headOf(frame: Uint8Array): number {
  return frame[12] === 0x86 ? HEADS.v6 : HEADS.v4;
}

export const LONG = `${"a".repeat(63)}.${"b".repeat(63)}.${"c".repeat(63)}.${"d".repeat(61)}`;
export const HOSTS: Readonly<Record<string, readonly string[]>> = {
  "shop.demo.internal": ["10.99.0.1", "10.99.0.2", "fd99::1"],
  "v6.demo.internal": ["fd99::6"],
  "many.demo.internal": Array.from({ length: 200 }, (_, i) => `10.98.${i >> 8}.${i & 255}`),
  "none.demo.internal": [],
  [LONG]: ["10.99.0.3"],
  [`${"x".repeat(47)}`]: ["10.99.0.4"],
  [`${"y".repeat(48)}.z`]: ["10.99.0.5"],
  "*.wild.internal": ["10.99.0.9"],
  "*.deep.wild.internal": ["10.99.0.10"],
};

/** Names that queries are made of before they are mutated; the last one is no mesh name. */
const ASKED = [
  "shop.demo.internal",
  "shop",
  "many.demo.internal",
  LONG,
  "a.wild.internal",
  "shop.corp.example",
  "1.0.99.10.in-addr.arpa",
  "example.com",
];
const TYPES: readonly QueryType[] = ["A", "AAAA", "PTR", "HTTPS", "ANY"];

/** Frames of plain queries, over IPv4 and IPv6. */
export function seeds(): { frames: Uint8Array[]; unknown: number } {
  const messages = ASKED.flatMap((name) => TYPES.map((type) => queryMessage(name, type)));
  return {
    frames: [plainQuery("many.demo.internal"), ...messages].flatMap((message) => [
      frameOf(message),
      frame6Of(message),
    ]),
    unknown: 2 * TYPES.length,
  };
}

/** For the IPv4 addresses of a name, without EDNS(0), or with a buffer of `room` bytes. */
export function plainQuery(name: string, room?: number): Uint8Array {
  return encode({
    type: "query",
    id: 7,
    questions: [{ type: "A", name }],
    ...(room === undefined ? {} : { additionals: [{ ...OPT, udpPayloadSize: room }] }),
  });
}

const OPT = {
  type: "OPT" as const,
  name: ".",
  extendedRcode: 0,
  ednsVersion: 0,
  flags: 0,
  flag_do: false,
  options: [],
} satisfies Omit<OptAnswer, "udpPayloadSize">;

/** An Ethernet frame with a DNS message from [fd00::1]:5353 to [fd00::2]:53; the sum is left out, as by offloading. */
export function frame6Of(message: Uint8Array): Uint8Array {
  const frame = new Uint8Array(new ArrayBuffer(HEADS.v6 + message.length));
  const view = new DataView(frame.buffer);
  view.setUint16(12, 0x86dd);
  frame[14] = 0x60;
  view.setUint16(18, 8 + message.length);
  frame.set([17, 64, 0xfd], 20);
  frame[37] = 1;
  frame[38] = 0xfd;
  frame[53] = 2;
  view.setUint16(54, 5353);
  view.setUint16(56, 53);
  view.setUint16(58, 8 + message.length);
  frame.set(message, HEADS.v6);
  return frame;
}

/** Everybody is answered. */
export const ANSWER_ALL = NAME_FLAGS.NAMES_ON | NAME_FLAGS.NAMES_EVERY_CGROUP;

/** Fills an empty table with HOSTS, a search domain and an exclusion, and answers everybody. Gives what was skipped. */
export function fillTable(table: NameTable): unknown[] {
  const entries = new Entries();
  const touched = new Set<string>();
  for (const [host, addresses] of Object.entries(HOSTS))
    entries.set(host, { host, addresses, aliases: host === "shop.demo.internal" ? ["shop"] : [] }, touched);
  const changes = [...touched].map((name): [string, Entry | undefined] => [name, entries.get(name)]);
  changes.push(["/corp.example", { kind: "search", name: "/corp.example" }]);
  changes.push(["*.not.wild.internal", { kind: "pass", name: "*.not.wild.internal" }]);
  const { skipped } = table.apply(changes);
  table.searchDepth = 2;
  table.flags = ANSWER_ALL;
  return skipped;
}

/** One to three changes: bits, bytes, lengths, pieces cut out or put in; the headers' lengths mostly follow. */
export function mutated(random: Random, seed: Uint8Array): Uint8Array {
  const HEAD = headOf(seed);
  let frame = new Uint8Array(seed);
  for (let n = 1 + random.below(3); n > 0; n--) {
    const whole = random.chance(0.15);
    const from = whole ? 14 : HEAD;
    const at = from + random.below(Math.max(1, frame.length - from));
    switch (random.below(6)) {
      case 0:
        frame[at] = (frame[at] ?? 0) ^ (1 << random.below(8));
        break;
      case 1:
        frame[at] = random.pick([0, 1, 63, 64, 192, 255, random.below(256)]);
        break;
      case 2:
        frame = frame.slice(0, Math.max(HEAD, at));
        break;
      case 3: {
        const more = new Uint8Array(1 + random.below(random.chance(0.05) ? 900 : 20)).fill(random.below(256));
        frame = joined(frame.subarray(0, at), more, frame.subarray(at));
        break;
      }
      case 4: {
        const gone = 1 + random.below(8);
        frame = joined(frame.subarray(0, at), frame.subarray(at + gone));
        break;
      }
      default:
        // The letter case of names: not a fault.
        for (let i = HEAD + 12; i < frame.length; i++) {
          const byte = frame[i] ?? 0;
          if (byte >= 97 && byte <= 122 && random.chance(0.5)) frame[i] = byte ^ 0x20;
        }
    }
  }
  if (frame.length < HEAD) frame = new Uint8Array(seed);
  if (random.chance(0.9)) {
    const view = new DataView(frame.buffer);
    if (HEAD === HEADS.v6) view.setUint16(18, frame.length - 54);
    else view.setUint16(16, frame.length - 14);
    view.setUint16(HEAD - 4, frame.length - (HEAD - 8));
  }
  return frame;
}

function joined(...parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(new ArrayBuffer(parts.reduce((length, part) => length + part.length, 0)));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** The addresses that a name has, by the rules and not by the table's means. */
function addressesOf(asked: string): readonly string[] | undefined {
  const name = asked.toLowerCase();
  const short = name === "shop" ? "shop.demo.internal" : name;
  const own = (one: string) =>
    one.startsWith("*") ? undefined : HOSTS[one === "shop" ? "shop.demo.internal" : one];
  if (own(short)) return own(short);
  const below = /^(.+)\.corp\.example$/.exec(name)?.[1];
  if (below !== undefined && own(below)) return own(below);
  if (name.endsWith(".not.wild.internal")) return undefined;
  if (name.endsWith(".deep.wild.internal")) return HOSTS["*.deep.wild.internal"];
  return name.endsWith(".wild.internal") ? HOSTS["*.wild.internal"] : undefined;
}

/** A frame as text, without what may differ between queries that are all right: the id, and the letters' case. */
export function plainText(frame: Uint8Array): string {
  const text = Buffer.from(frame.buffer, frame.byteOffset, frame.byteLength).toString("latin1");
  const head = headOf(frame);
  const name = head + 12;
  const end = text.indexOf("\0", name);
  return `${text.slice(0, head)}${text.slice(head + 2, name)}${text.slice(name, end).toLowerCase()}${text.slice(end)}`;
}

/** Throws when the frame that came of a query is not its answer: its headers, then its message. */
export function checkAnswer(frame: Uint8Array, packet: Uint8Array, truncates = false): void {
  const head = headOf(frame);
  const view = new DataView(packet.buffer, packet.byteOffset, packet.byteLength);
  const wrong = (why: string) => new Error(`${why}: ${hex(frame)} became ${hex(packet)}`);
  if (view.getUint16(head - 4) !== packet.length - (head - 8)) throw wrong("the UDP length is wrong");
  if (head === HEADS.v4) {
    if (view.getUint16(16) !== packet.length - 14) throw wrong("the IP length is wrong");
    if (sumOf(packet.subarray(14, 34)) !== 0xffff) throw wrong("the IP checksum is wrong");
  } else {
    if (view.getUint16(18) !== packet.length - 54) throw wrong("the payload length is wrong");
    if (view.getUint16(head - 2) === 0) throw wrong("there is no UDP checksum");
    // RFC 8200, 8.1: both addresses, the length and the next header count.
    const pseudo = new Uint8Array([
      ...packet.subarray(22, 54),
      0,
      0,
      ...packet.subarray(18, 20),
      0,
      0,
      0,
      17,
    ]);
    if (sumOf(joined(pseudo, packet.subarray(54))) !== 0xffff) throw wrong("the UDP checksum is wrong");
    if (Buffer.compare(frame.subarray(22, 38), packet.subarray(38, 54)) !== 0)
      throw wrong("it is not for who asked");
  }
  checkMessage(frame.subarray(head), packet.subarray(head), truncates);
}

/** The ones' complement sum of 16-bit words (RFC 1071). */
function sumOf(bytes: Uint8Array): number {
  let sum = 0;
  for (let at = 0; at < bytes.length; at += 2) sum += ((bytes[at] ?? 0) << 8) | (bytes[at + 1] ?? 0);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
  return sum;
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("hex");
}

/** Bytes of a message's header and question; the name is not compressed. */
function questionEnd(message: Uint8Array): number {
  let at = 12;
  while (message[at]) at += 1 + (message[at] ?? 0);
  return at + 5;
}

/** Bytes that may be sent in answer to a query: RFC 1035, 4.2.1, or with EDNS(0) the client's buffer up to 1232. */
function roomOf(query: Packet): number {
  const opt = query.additionals?.find(({ type }) => type === "OPT");
  return opt?.type === "OPT" ? Math.min(Math.max(opt.udpPayloadSize, 512), 1232) - 11 : 512;
}

/**
 * Throws when a response is not the one that dns-packet and the table make of its query. `truncates`: an answer that lacks
 * addresses says so.
 */
export function checkMessage(asked: Uint8Array, answer: Uint8Array, truncates = false): void {
  const fail = (why: string) => new Error(`${why}: ${hex(asked)} was answered by ${hex(answer)}`);
  const query = decode(Buffer.from(asked));
  const response = decode(Buffer.from(answer));
  const rcode = (answer[3] ?? 0) & 15;
  const [question] = query.questions ?? [];
  const [echoed] = response.questions ?? [];
  if (query.type !== "query" || query.questions?.length !== 1 || !question)
    throw fail("no plain query was answered");
  if (response.type !== "response" || response.id !== query.id || rcode !== 0)
    throw fail("the response's head is wrong");
  if (echoed?.name !== question.name || echoed.type !== question.type)
    throw fail("the question is another one");
  const answers = response.answers ?? [];
  const name = question.name.toLowerCase();
  if (name.endsWith(".arpa")) {
    for (const { type } of answers) if (type !== "PTR") throw fail("a reverse name got another record");
    return;
  }
  const addresses = addressesOf(name);
  if (!addresses) throw fail("an unknown name was answered");
  const v4 = addresses.filter((one) => !one.includes(":"));
  const v6 = addresses.filter((one) => one.includes(":"));
  const type = String(question.type);
  const expected = type === "A" ? v4 : type === "AAAA" ? v6 : type === "ANY" ? (v4.length > 0 ? v4 : v6) : [];
  const found = answers.map((one) => ("data" in one ? String(one.data) : ""));
  if (found.some((one) => !expected.includes(one)) || new Set(found).size !== found.length)
    throw fail("an address is wrong");
  if (expected.length > 0 && found.length === 0) throw fail("no address was sent");
  const fitting = Math.floor((roomOf(query) - questionEnd(asked)) / (type === "AAAA" ? 28 : 16));
  if (found.length !== Math.min(expected.length, fitting))
    throw fail(`${found.length} of ${expected.length} addresses were sent, ${fitting} fit`);
  if (response.flag_tc !== (truncates && found.length < expected.length)) throw fail("the TC bit is wrong");
  if (answers.some((one) => !("ttl" in one) || one.ttl !== 30 || one.name !== question.name))
    throw fail("a record's name or TTL is wrong");
}
