import { describe, expect, test } from "bun:test";
import type { Match } from "../../mesh/model.ts";
import { decodeTarget, encodeTarget, reasonName, reasonNumber } from "../mesh-tables/target.ts";
import { exactKey, fingerprint, matchOfExactKey, matchOfPrefixKey, prefixKey } from "./frontend-key.ts";

describe("frontend keys", () => {
  test("an exact key is the address, v4-mapped, and the port in network order", () => {
    expect(Buffer.from(exactKey("10.0.0.1", 0x1234)).toString("hex")).toBe(
      `${"00".repeat(10)}ffff0a00000112340600`,
    );
    expect(matchOfExactKey(exactKey("fd00::1", 443))).toEqual({
      kind: "address",
      address: "fd00::1",
      port: 443,
    });
  });

  test("prefix keys come back as what they were made from", () => {
    const matches: Match[] = [
      { kind: "prefix", address: "10.1.0.0", length: 16, port: 80 },
      { kind: "prefix", address: "0.0.0.0", length: 0, port: 80 },
      { kind: "prefix", address: "fd00:97::", length: 32, port: 65535 },
      { kind: "prefix", address: "::", length: 0, port: 80 },
      { kind: "prefix", address: "::", length: 80, port: 80 },
      { kind: "prefix", address: "::fffe:0:0", length: 95, port: 80 },
      { kind: "port", port: 1 },
    ];
    for (const match of matches) {
      const key = prefixKey(match.kind === "prefix" ? match : undefined, match.port);
      expect(matchOfPrefixKey(key)).toEqual(match);
    }
  });

  test("text that is no address is refused by name", () => {
    expect(() => exactKey("example.org", 80)).toThrow('"example.org" is not an IP address');
  });

  test("fingerprints tell neighbours apart", () => {
    const seen = new Set<number>();
    for (let i = 0; i < 4096; i++) {
      const key = exactKey(`10.0.${i >> 8}.${i & 255}`, 80);
      seen.add(fingerprint(new Uint32Array(key.buffer), 0));
    }
    expect(seen.size).toBe(4096);
  });
});

describe("target words", () => {
  test("carry action, service and value", () => {
    const word = encodeTarget("cluster", 0xabcdef, 0xfffffffe);
    expect(word).toBe(0x01abcdef_fffffffen);
    expect(decodeTarget(word)).toEqual({ action: "cluster", service: 0xabcdef, value: 0xfffffffe });
  });

  test("reasons have the numbers of verdict.h", async () => {
    const header = await Bun.file(new URL("../../../bpf/maps/verdict.h", import.meta.url)).text();
    const numbers = [...header.matchAll(/REASON_([A-Z_]+) = (\d+)/g)].filter(([, name]) => name !== "COUNT");
    expect(numbers.length).toBeGreaterThan(5);
    for (const [, name = "", number = ""] of numbers) {
      expect(reasonName(Number(number))).toBe(name.toLowerCase().replaceAll("_", "-") as never);
      expect(reasonNumber(reasonName(Number(number)))).toBe(Number(number));
    }
  });
});
