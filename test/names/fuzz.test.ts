/**
 * A million broken queries, over IPv4 and IPv6, through the program itself (BPF_PROG_TEST_RUN). What it answers is compared with what
 * dns-packet makes of query and response; a packet that passes has to be untouched, and no plain query of a known name.
 * KMESH_TEST_FUZZ is another number of packets. On another kernel (before 6.6 with clsact):
 * test/kernels/boot 5.10 env KMESH_TEST_FUZZ=3000 bun test ./test/names/fuzz.test.ts
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { ensureBpffs, unpin } from "../../src/kernel/bpffs.ts";
import type { BpfProgram } from "../../src/kernel/object.ts";
import { eventOf } from "../../src/names/counts.ts";
import { NAME_FLAGS } from "../../src/names/name-table.ts";
import { closeNames, type NamesOpened, openNames } from "../../src/names/pins.ts";
import { askKernel, frameOf, type QueryType, queryMessage } from "../../src/names/query.ts";
import { ownName } from "../lab/namespace.ts";
import { run } from "../lab/process.ts";
import { Random } from "../lab/random.ts";
import { badPackets } from "./bad-input.ts";
import {
  ANSWER_ALL,
  checkAnswer,
  fillTable,
  HEADS,
  LONG,
  mutated,
  plainQuery,
  plainText,
  seeds,
} from "./fuzzing.ts";

const COUNT = Number(process.env.KMESH_TEST_FUZZ ?? 1_000_000);
setDefaultTimeout(120_000);

describe.skipIf(process.getuid?.() !== 0)("the program of names", () => {
  const bpffs = `/sys/fs/bpf/${ownName("fz")}`;
  let opened: NamesOpened;
  let explain: BpfProgram;

  beforeAll(() => {
    ensureBpffs(bpffs);
    mkdirSync(join(bpffs, "keep"));
    opened = openNames(bpffs);
    expect(fillTable(opened.table)).toEqual([]);
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
    const sizes = [undefined, 100, 512, 600, 1232, 4096].map((room) => {
      const query = plainQuery("many.demo.internal", room);
      const { packet } = explain.testPacket(frameOf(query));
      expect(packet.length - HEADS.v4).toBeLessThanOrEqual(Math.min(Math.max(room ?? 0, 512), 1232));
      const { response } = askKernel(explain, query);
      expect(response?.flag_tc).toBe(false);
      return response?.answers?.length;
    });
    expect(sizes).toEqual([29, 29, 29, 34, 74, 74]);
    expect(askKernel(explain, plainQuery("many.demo.internal")).response?.additionals).toEqual([]);
  });

  test("with dns-truncate an answer that lacks addresses has the TC bit, and no other", () => {
    opened.table.flags = ANSWER_ALL | NAME_FLAGS.NAMES_TRUNCATE;
    try {
      expect(ask("many.demo.internal", "A").response).toMatchObject({ flag_tc: true, flag_aa: true });
      for (const type of ["A", "AAAA", "ANY", "MX"] as const)
        expect([type, ask("shop.demo.internal", type).response?.flag_tc]).toEqual([type, false]);
      expect(ask("many.demo.internal", "AAAA").response?.flag_tc).toBe(false);
    } finally {
      opened.table.flags = ANSWER_ALL;
    }
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

  test("each kind of bad input passes untouched, for its own reason", () => {
    for (const { kind, frame, reason } of badPackets()) {
      const { result, packet, cb } = explain.testPacket(frame);
      expect([kind, result]).toEqual([kind, 0xffffffff]);
      expect([kind, Buffer.compare(packet, frame)]).toEqual([kind, 0]);
      // What is not looked at leaves no reason.
      expect([kind, cb[0] === 0 ? "none" : eventOf(cb[0] ?? 0)]).toEqual([kind, reason]);
    }
  });

  test(`${COUNT} mutated packets`, () => {
    const random = new Random(20261129);
    const { frames, unknown } = seeds();
    const plain = new Set(frames.filter((frame) => explain.testPacket(frame).result === 0).map(plainText));
    expect(plain.size).toBe(frames.length - unknown);
    let answered = 0;
    let passed = 0;
    for (let i = 0; i < COUNT; i++) {
      const truncates = i * 2 >= COUNT;
      if (i * 2 === COUNT) opened.table.flags = ANSWER_ALL | NAME_FLAGS.NAMES_TRUNCATE;
      const frame = mutated(random, random.pick(frames));
      const { result, packet } = explain.testPacket(frame);
      if (result === 0) {
        answered++;
        checkAnswer(frame, packet, truncates);
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

  test("thousands of mutated messages through real sockets: each is answered right, or reaches the server unchanged", async () => {
    const script = join(import.meta.dirname, "socket-fuzz.ts");
    const { code, stdout, stderr } = await run(["unshare", "-n", process.execPath, script], {
      timeoutMs: 60_000,
    });
    expect([code, stderr]).toEqual([0, ""]);
    const { sent, answered, passed, counted } = JSON.parse(stdout);
    console.log(`${sent} messages by sockets: ${answered} answered, ${passed} passed`);
    expect(answered + passed).toBe(sent);
    expect(counted).toBe(answered);
    expect(Math.min(answered, passed)).toBeGreaterThan(sent / 20);
  });
});
