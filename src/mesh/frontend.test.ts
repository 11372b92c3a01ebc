import { expect, test } from "bun:test";
import { formatMatch, frontendKey } from "./frontend.ts";
import type { Match } from "./model.ts";

const cases: [Match, string][] = [
  [{ kind: "address", address: "10.0.0.1", port: 80 }, "10.0.0.1:80"],
  [{ kind: "address", address: "fd00::1", port: 80 }, "[fd00::1]:80"],
  [{ kind: "prefix", address: "10.1.0.0", length: 16, port: 80 }, "10.1.0.0/16:80"],
  [{ kind: "prefix", address: "fd00::", length: 64, port: 80 }, "[fd00::/64]:80"],
  [{ kind: "prefix", address: "10.1.0.0", length: 16, port: 0 }, "10.1.0.0/16"],
  [{ kind: "prefix", address: "fd00::", length: 64, port: 0 }, "fd00::/64"],
  [{ kind: "port", port: 80 }, "*:80"],
];

test.each(cases)("%j is written %s", (match, text) => {
  expect(formatMatch(match)).toBe(text);
  expect(frontendKey({ match, protocol: "tcp" })).toBe(`tcp ${text}`);
});

test("different matches have different keys", () => {
  const keys = new Set(cases.map(([match]) => frontendKey({ match, protocol: "tcp" })));
  expect(keys.size).toBe(cases.length);
});
