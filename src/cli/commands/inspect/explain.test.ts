import { expect, test } from "bun:test";
import type { Explained } from "../../../admin/explain.ts";
import { formatExplanation, formatPeer } from "./explain.ts";

const cluster = (
  name: string,
  share: number,
  endpoints: [string, number][],
): Explained["clusters"][number] => ({
  name,
  share,
  kind: "endpoints",
  policy: "round-robin",
  maxConnections: 0,
  live: 0,
  shares: [],
  endpoints: endpoints.map(([address, of]) => ({
    address,
    port: 8080,
    share: of,
    live: 3,
    failed: 7,
    failures: 0,
    ejectedFor: address === "fd00::1" ? 20_500 : 0,
  })),
});

test("a split shows each endpoint's share of all connections", () => {
  const text = formatExplanation({
    asked: { address: "10.0.0.1", port: 80 },
    verdict: "redirect",
    shadow: false,
    frontend: "10.0.0.1:80",
    service: "shop:80",
    clusters: [
      cluster("v1", 0.9, [
        ["10.1.0.1", 0.5],
        ["10.1.0.2", 0.5],
      ]),
      cluster("v2", 0.1, [["fd00::1", 1]]),
    ],
    why: ["frontend 10.0.0.1:80 by address and port"],
  });
  expect(text).toContain("A connection to 10.0.0.1:80 is sent to one of the endpoints below");
  expect(text).toContain("service shop:80");
  expect(text).toContain("1. frontend 10.0.0.1:80 by address and port");
  expect(text.match(/\d+\.\d %/g)).toEqual(["45.0 %", "45.0 %", "10.0 %"]);
  expect(text).toContain("[fd00::1]:8080");
  expect(text.match(/no, for \d+ s/g)).toEqual(["no, for 21 s"]);
});

test("a refusal says why, and shadow mode that nothing is changed", () => {
  const refused = {
    asked: { address: "fd00::9", port: 443 },
    verdict: "refuse",
    reason: "tls-required",
    clusters: [],
    why: [],
  } as const;
  expect(formatExplanation({ ...refused, clusters: [], why: [], shadow: false })).toBe(
    "A connection to [fd00::9]:443 is refused: tls-required",
  );
  expect(formatExplanation({ ...refused, clusters: [], why: [], shadow: true })).toContain("only counted");
});

test("a living agent adds weights and health, also of endpoints that get nothing", () => {
  const text = formatExplanation({
    asked: { address: "10.0.0.1", port: 80 },
    verdict: "redirect",
    shadow: false,
    clusters: [cluster("v1", 1, [["10.1.0.1", 1]])],
    configured: {
      v1: [
        { address: "10.1.0.1", port: 8080, weight: 3, healthy: true, priority: 0, locality: "r1/z1" },
        { address: "10.1.0.2", port: 8080, weight: 1, healthy: false, priority: 0, locality: "" },
      ],
    },
    why: [],
  });
  const rows = text.split("\n").filter((line) => line.includes("10.1.0."));
  expect(rows.map((row) => row.trim().split(/\s{2,}/))).toEqual([
    ["v1", "10.1.0.1:8080", "100.0 %", "3", "7", "yes", "3", "0", "healthy", "r1/z1"],
    ["v1", "10.1.0.2:8080", "-", "-", "-", "-", "1", "0", "unhealthy"],
  ]);
});

test("a peer: who, where, and the rule that decides", () => {
  const base = { governed: true, mtls: "permissive" as const, enforced: true };
  expect(
    formatPeer({
      ...base,
      from: { address: "10.0.0.7" },
      to: { port: 8080 },
      decision: { allowed: false, reason: "denied", policy: "shop/no", rule: "rule 1" },
      why: ["mutual TLS at port 8080: permissive", "policy shop/no denies it (rule 1)"],
    }),
  ).toBe(
    "A connection from 10.0.0.7 to port 8080 is refused\n  1. mutual TLS at port 8080: permissive\n  2. policy shop/no denies it (rule 1)",
  );
  const named = {
    ...base,
    from: { principal: "cluster.local/ns/shop/sa/web", address: "fd00::7" },
    to: { address: "fd00::1", port: 8080 },
    decision: { allowed: true, reason: "no-policy" as const },
    why: [],
  };
  expect(formatPeer(named)).toBe(
    "A connection from cluster.local/ns/shop/sa/web at fd00::7 to [fd00::1]:8080 is let in",
  );
  // What is not enforced lets everybody in.
  const open = { ...named, enforced: false, decision: { allowed: false, reason: "strict" as const } };
  expect(formatPeer(open)).toEndWith("is let in");
});
