/**
 * A million broken queries through the program itself (BPF_PROG_TEST_RUN). What it answers is compared with what
 * dns-packet makes of query and response; a packet that passes has to be untouched, and no plain query of a known name.
 * KMESH_TEST_FUZZ is another number of packets.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { decode, encode } from "dns-packet";
import { ensureBpffs, unpin } from "../../src/kernel/bpffs.ts";
import type { BpfProgram } from "../../src/kernel/object.ts";
import { Entries, type Entry } from "../../src/names/entries.ts";
import { NAME_FLAGS } from "../../src/names/name-table.ts";
import { closeNames, type NamesOpened, openNames } from "../../src/names/pins.ts";
import { askKernel, frameOf, type QueryType, queryMessage } from "../../src/names/query.ts";
import { ownName } from "../lab/namespace.ts";
import { Random } from "../lab/random.ts";

const COUNT = Number(process.env.KMESH_TEST_FUZZ ?? 1_000_000);
const HEADERS = 42;
setDefaultTimeout(120_000);

const LONG = `${"a".repeat(63)}.${"b".repeat(63)}.${"c".repeat(63)}.${"d".repeat(61)}`;
const HOSTS: Readonly<Record<string, readonly string[]>> = {
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

describe.skipIf(process.getuid?.() !== 0)("the program of names", () => {
  const bpffs = `/sys/fs/bpf/${ownName("fz")}`;
  let opened: NamesOpened;
  let explain: BpfProgram;

  beforeAll(() => {
    ensureBpffs(bpffs);
    mkdirSync(join(bpffs, "keep"));
    opened = openNames(bpffs);
    const entries = new Entries();
    const touched = new Set<string>();
    for (const [host, addresses] of Object.entries(HOSTS))
      entries.set(host, { host, addresses, aliases: host === "shop.demo.internal" ? ["shop"] : [] }, touched);
    const changes = [...touched].map((name): [string, Entry | undefined] => [name, entries.get(name)]);
    changes.push(["/corp.example", { kind: "search", name: "/corp.example" }]);
    changes.push(["*.not.wild.internal", { kind: "pass", name: "*.not.wild.internal" }]);
    expect(opened.table.apply(changes).skipped).toEqual([]);
    opened.table.searchDepth = 2;
    opened.table.flags = NAME_FLAGS.NAMES_ON | NAME_FLAGS.NAMES_EVERY_CGROUP;
    const program = opened.programs.get("names_explain");
    if (!program) throw new Error("names_explain is missing");
    explain = program;
  });
  afterAll(() => {
    if (opened) closeNames(opened);
    unpin(bpffs);
  });

  const ask = (name: string, type: QueryType) => askKernel(explain, queryMessage(name, type));
  const data = (name: string, type: QueryType) =>
    ask(name, type).response?.answers?.map((record) => ("data" in record ? String(record.data) : ""));

  test("answers by name, alias, wildcard, search domain and reverse name", () => {
    expect(data("shop.demo.internal", "A")?.sort()).toEqual(["10.99.0.1", "10.99.0.2"]);
    expect(data("SHOP.Demo.INTERNAL", "AAAA")).toEqual(["fd99::1"]);
    expect(data("shop", "AAAA")).toEqual(["fd99::1"]);
    expect(data("shop.corp.example", "AAAA")).toEqual(["fd99::1"]);
    expect(data("a.b.wild.internal", "A")).toEqual(["10.99.0.9"]);
    expect(data("a.deep.wild.internal", "A")).toEqual(["10.99.0.10"]);
    expect(data("2.0.99.10.in-addr.arpa", "PTR")).toEqual(["shop.demo.internal"]);
    expect(data(LONG, "A")).toEqual(["10.99.0.3"]);
    expect(data("x".repeat(47), "A")).toEqual(["10.99.0.4"]);
    expect(data(`${"y".repeat(48)}.z`, "A")).toEqual(["10.99.0.5"]);
    expect(data("3.0.99.10.in-addr.arpa", "PTR")).toEqual([LONG]);
  });

  test("what exists without such a record is NOERROR and empty, with the bits that a stub expects", () => {
    for (const [name, type] of [
      ["v6.demo.internal", "A"],
      ["none.demo.internal", "A"],
      ["shop.demo.internal", "MX"],
      ["shop.demo.internal", "HTTPS"],
      ["shop.demo.internal", "SVCB"],
    ] as const) {
      const { event, response } = ask(name, type);
      expect([name, type, event, response?.answers]).toEqual([name, type, "answered-empty", []]);
      expect(response).toMatchObject({
        flag_aa: true,
        flag_ra: true,
        flag_rd: true,
        flag_tc: false,
        flag_ad: false,
      });
      expect((response as unknown as { rcode: string }).rcode).toBe("NOERROR");
      expect(response?.additionals?.[0]).toMatchObject({ type: "OPT", udpPayloadSize: 1232 });
    }
  });

  test("other names pass", () => {
    for (const name of [
      "example.com",
      "internal",
      "wild.internal",
      "demo.internal",
      "x.shop.demo.internal",
      "com",
    ])
      expect([name, ask(name, "A").event]).toEqual([name, "passed-unknown"]);
    expect(ask("a.not.wild.internal", "A").event).toBe("passed-excluded");
  });

  test("as many addresses as fit, from a random one on", () => {
    const first = new Set<string>();
    for (let i = 0; i < 50; i++) {
      const found = data("many.demo.internal", "A") ?? [];
      expect(found.length).toBeGreaterThan(70);
      expect(new Set(found).size).toBe(found.length);
      first.add(found[0] ?? "");
    }
    expect(first.size).toBeGreaterThan(20);
    const plain = encode({ type: "query", id: 7, questions: [{ type: "A", name: "many.demo.internal" }] });
    const { response } = askKernel(explain, plain);
    expect(response?.answers?.length).toBe(29);
    expect(response?.additionals).toEqual([]);
    expect(explain.testPacket(frameOf(plain)).packet.length - HEADERS).toBeLessThanOrEqual(512);
  });

  test("an address that changes is the old one or the new one, and the entry keeps its id", () => {
    const before = ask("v6.demo.internal", "AAAA").entry;
    opened.table.apply([
      ["v6.demo.internal", { kind: "addresses", name: "v6.demo.internal", addresses: ["fd99::7"] }],
    ]);
    expect(data("v6.demo.internal", "AAAA")).toEqual(["fd99::7"]);
    expect(ask("v6.demo.internal", "AAAA").entry).toBe(before as number);
    opened.table.apply([
      ["v6.demo.internal", { kind: "addresses", name: "v6.demo.internal", addresses: ["fd99::6"] }],
    ]);
  });

  test("a table that is read back is the same", () => {
    const again = openNames(bpffs);
    try {
      const names = (table: NamesOpened["table"]) => [...table.names()].sort();
      expect(names(again.table)).toEqual(names(opened.table));
      for (const name of names(opened.table)) expect(again.table.get(name)).toEqual(opened.table.get(name));
    } finally {
      closeNames(again);
    }
  });

  test(`${COUNT} mutated packets`, () => {
    const random = new Random(20261129);
    const names = [
      "shop.demo.internal",
      "shop",
      "many.demo.internal",
      LONG,
      "a.wild.internal",
      "shop.corp.example",
      "1.0.99.10.in-addr.arpa",
      "example.com",
    ];
    const types = ["A", "AAAA", "PTR", "HTTPS", "ANY"] as const;
    const seeds = names.flatMap((name) => types.map((type) => frameOf(queryMessage(name, type))));
    const plain = new Set(seeds.filter((frame) => explain.testPacket(frame).result === 0).map(plainText));
    expect(plain.size).toBe(seeds.length - types.length);
    let answered = 0;
    let passed = 0;
    for (let i = 0; i < COUNT; i++) {
      const frame = mutated(random, random.pick(seeds));
      const { result, packet } = explain.testPacket(frame);
      if (result === 0) {
        answered++;
        checkAnswer(frame, packet);
      } else {
        passed++;
        if (result !== 0xffffffff || Buffer.compare(frame, packet) !== 0)
          throw new Error(`changed or dropped: ${Buffer.from(frame).toString("hex")}`);
        if (plain.has(plainText(frame)))
          throw new Error(`a plain query passed: ${Buffer.from(frame).toString("hex")}`);
      }
    }
    console.log(`${COUNT} packets: ${answered} answered, ${passed} passed`);
    expect(answered).toBeGreaterThan(COUNT / 100);
    expect(passed).toBeGreaterThan(COUNT / 10);
  });
});

/** One to three changes: bits, bytes, lengths, pieces cut out or put in; the headers' lengths mostly follow. */
function mutated(random: Random, seed: Uint8Array): Uint8Array {
  let frame = new Uint8Array(seed);
  for (let n = 1 + random.below(3); n > 0; n--) {
    const whole = random.chance(0.15);
    const from = whole ? 14 : HEADERS;
    const at = from + random.below(Math.max(1, frame.length - from));
    switch (random.below(6)) {
      case 0:
        frame[at] = (frame[at] ?? 0) ^ (1 << random.below(8));
        break;
      case 1:
        frame[at] = random.pick([0, 1, 63, 64, 192, 255, random.below(256)]);
        break;
      case 2:
        frame = frame.slice(0, Math.max(HEADERS, at));
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
        for (let i = HEADERS + 12; i < frame.length; i++) {
          const byte = frame[i] ?? 0;
          if (byte >= 97 && byte <= 122 && random.chance(0.5)) frame[i] = byte ^ 0x20;
        }
    }
  }
  if (frame.length < HEADERS) frame = new Uint8Array(seed);
  if (random.chance(0.9)) {
    const view = new DataView(frame.buffer);
    view.setUint16(16, frame.length - 14);
    view.setUint16(38, frame.length - 34);
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
function plainText(frame: Uint8Array): string {
  const text = Buffer.from(frame.buffer, frame.byteOffset, frame.byteLength).toString("latin1");
  const name = HEADERS + 12;
  const end = text.indexOf("\0", name);
  return `${text.slice(0, HEADERS)}${text.slice(HEADERS + 2, name)}${text.slice(name, end).toLowerCase()}${text.slice(end)}`;
}

/** Throws when a response is not the one that dns-packet and the table make of its query. */
function checkAnswer(frame: Uint8Array, packet: Uint8Array): void {
  const fail = (why: string) =>
    new Error(`${why}: ${Buffer.from(frame).toString("hex")} became ${Buffer.from(packet).toString("hex")}`);
  const query = decode(Buffer.from(frame.subarray(HEADERS)));
  const response = decode(Buffer.from(packet.subarray(HEADERS)));
  const rcode = (packet[HEADERS + 3] ?? 0) & 15;
  const [question] = query.questions ?? [];
  const [echoed] = response.questions ?? [];
  if (query.type !== "query" || query.questions?.length !== 1 || !question)
    throw fail("no plain query was answered");
  if (response.type !== "response" || response.id !== query.id || rcode !== 0)
    throw fail("the response's head is wrong");
  if (echoed?.name !== question.name || echoed.type !== question.type)
    throw fail("the question is another one");
  const view = new DataView(packet.buffer, packet.byteOffset, packet.byteLength);
  if (view.getUint16(16) !== packet.length - 14 || view.getUint16(38) !== packet.length - 34)
    throw fail("a header's length is wrong");
  let sum = 0;
  for (let at = 14; at < 34; at += 2) sum += view.getUint16(at);
  if ((sum & 0xffff) + (sum >> 16) !== 0xffff) throw fail("the IP checksum is wrong");
  const answers = response.answers ?? [];
  const name = question.name.toLowerCase();
  if (name.endsWith(".arpa")) {
    for (const answer of answers) if (answer.type !== "PTR") throw fail("a reverse name got another record");
    return;
  }
  const addresses = addressesOf(name);
  if (!addresses) throw fail("an unknown name was answered");
  const v4 = addresses.filter((one) => !one.includes(":"));
  const v6 = addresses.filter((one) => one.includes(":"));
  const type = String(question.type);
  const expected = type === "A" ? v4 : type === "AAAA" ? v6 : type === "ANY" ? (v4.length > 0 ? v4 : v6) : [];
  const found = answers.map((answer) => ("data" in answer ? String(answer.data) : ""));
  if (found.some((one) => !expected.includes(one)) || new Set(found).size !== found.length)
    throw fail("an address is wrong");
  if (expected.length > 0 && found.length === 0) throw fail("no address was sent");
  if (found.length < expected.length && packet.length - HEADERS < 460) throw fail("there was room for more");
  if (answers.some((answer) => !("ttl" in answer) || answer.ttl !== 30 || answer.name !== question.name))
    throw fail("a record's name or TTL is wrong");
}
