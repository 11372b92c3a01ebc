/** What comes from outside and is parsed here: bytes at random give an answer or the parser's own failure, and nothing else. */
import { expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { isIPv4 } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { formatAddress } from "../mesh/address.ts";
import { Counters } from "./counters.ts";
import { TunnelFailure } from "./failure.ts";
import { parseDestination } from "./inbound/admission.ts";
import { proxyHeader } from "./outbound/proxy-protocol.ts";
import { readTunnels, startTicks, sweepTunnels, tunnelFolder } from "./process/status-file.ts";
import { readSans } from "./tls/san.ts";

let seed = 20261129;
function random(below: number): number {
  seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
  return (seed >>> 8) % below;
}

/** A text of pieces that mean something to the parser, in any order, with some characters changed. */
function scramble(pieces: readonly string[]): string {
  let text = Array.from({ length: random(6) }, () => pieces[random(pieces.length)]).join("");
  for (let i = random(3); i > 0 && text.length > 0; i--) {
    const at = random(text.length);
    text = text.slice(0, at) + String.fromCharCode(random(256)) + text.slice(at + 1);
  }
  return text;
}

test("authorities of CONNECT", () => {
  const pieces = [
    "10.0.0.1",
    ":80",
    "[",
    "]",
    "::1",
    "fd00::1",
    "web.shop",
    ":",
    "%eth0",
    "65536",
    "-1",
    " ",
    "0x7f",
  ];
  let refused = 0;
  for (let i = 0; i < 20_000; i++) {
    try {
      const { port } = parseDestination(scramble(pieces));
      expect(port).toBeGreaterThan(0);
    } catch (error) {
      if (!(error instanceof TunnelFailure)) throw error;
      expect(["bad-request", "not-ours"]).toContain(error.reason);
      refused++;
    }
  }
  expect(refused).toBeGreaterThan(19_000);
});

test("names of certificates: a quoted name is never taken for one that is not quoted", () => {
  const pieces = [
    "URI:",
    "DNS:",
    "IP Address:",
    "spiffe://cluster.local/ns/a/sa/b",
    ", ",
    '"',
    "\\",
    "\0",
    "a.b",
    "*.",
  ];
  for (let i = 0; i < 20_000; i++) {
    const { uris, dns, addresses } = readSans(scramble(pieces));
    for (const name of [...uris, ...dns, ...addresses]) expect(name).not.toMatch(/[",]/);
  }
  expect(readSans('URI:"spiffe://a/ns/a/sa/a\\", URI:spiffe://a/ns/a/sa/admin"').uris).toEqual([]);
});

test("PROXY headers say who they are for, whatever the addresses", () => {
  const anyAddress = () =>
    formatAddress(
      Uint8Array.from({ length: 16 }, (_, i) => (i < 12 && random(2) ? (i < 10 ? 0 : 255) : random(256))),
    );
  for (let i = 0; i < 5_000; i++) {
    const [from, to] = [anyAddress(), anyAddress()];
    const ports = [random(65_536), random(65_536)] as const;
    const source = { address: from, port: ports[0] };
    const destination = { address: to, port: ports[1] };
    const same = isIPv4(from) === isIPv4(to);
    const text = proxyHeader(1, source, destination).toString("latin1");
    const family = isIPv4(from) ? "TCP4" : "TCP6";
    expect(text).toBe(same ? `PROXY ${family} ${from} ${to} ${ports.join(" ")}\r\n` : "PROXY UNKNOWN\r\n");
    const bytes = proxyHeader(2, source, destination);
    expect(bytes.readUInt16BE(14)).toBe(bytes.length - 16);
    if (!same) continue;
    const size = isIPv4(from) ? 4 : 16;
    const read = (at: number) => {
      const raw = bytes.subarray(at, at + size);
      return size === 16 ? formatAddress(Uint8Array.from(raw)) : raw.join(".");
    };
    expect([read(16), read(16 + size)]).toEqual([from, to]);
    expect([bytes.readUInt16BE(16 + 2 * size), bytes.readUInt16BE(18 + 2 * size)]).toEqual([...ports]);
  }
});

test("status files that are cut off, mangled, or of another version are read, left out or removed", () => {
  const runDir = mkdtempSync(join(tmpdir(), "kmesh-status-"));
  try {
    mkdirSync(tunnelFolder(runDir), { recursive: true });
    const path = join(tunnelFolder(runDir), `${process.pid}.json`);
    const { ways, handshakes } = new Counters().rows;
    const whole = {
      pid: process.pid,
      startTicks: startTicks(process.pid),
      version: "0.0.1",
      started: 1,
      written: 1,
      listening: [],
      draining: false,
      connections: 0,
      held: 0,
      certificate: { valid: false, rotations: 0 },
      ways,
      handshakes,
    };
    writeFileSync(path, JSON.stringify(whole));
    // An older version's: what it does not know is empty.
    expect(readTunnels(runDir)).toMatchObject([
      { retried: 0, callers: { shown: 0, hidden: 0 }, identities: {} },
    ]);
    const text = Buffer.from(JSON.stringify(whole));
    for (let i = 0; i < 1_000; i++) {
      const mangled = Buffer.from(text.subarray(0, random(4) ? text.length : random(text.length)));
      for (let k = random(6); k > 0 && mangled.length > 0; k--) mangled[random(mangled.length)] = random(256);
      writeFileSync(path, mangled);
      for (const { ways } of readTunnels(runDir)) expect(Object.keys(ways.hbone.failures)).toEqual([]);
    }
    for (const odd of ["null", "5", "[]", "{}", '{"pid":"x"}', `{"pid":${process.pid}}`]) {
      writeFileSync(path, odd);
      expect(readTunnels(runDir)).toEqual([]);
    }
    sweepTunnels(runDir);
    expect(readTunnels(runDir)).toEqual([]);
  } finally {
    rmSync(runDir, { recursive: true, force: true });
  }
});
