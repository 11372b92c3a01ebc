import { expect, test } from "bun:test";
import type { RecentRefusal } from "../inbound/refusals.ts";
import { formatRecord, refusalRecord } from "./access-log/record.ts";
import type { EdgesDocument } from "./model.ts";
import { withRefusedPeers } from "./refused-peers.ts";

const refusal = (source: string, more: Partial<RecentRefusal> = {}): RecentRefusal => ({
  ...{ ago: 2, by: "shop/no", source, sourcePort: 40_000, destination: "10.0.0.1", port: 8080 },
  ...more,
});
const DOCUMENT = {
  window: 60,
  nodes: [
    { kind: "caller", id: "caller:10.0.0.9", name: "10.0.0.9", namespace: "", address: "10.0.0.9" },
    { kind: "unit", id: "unit:a", name: "a", namespace: "", source: "unit" },
  ],
  problems: [
    { subject: "x", rule: "reset", severity: "error", text: "worse", value: 1, next: "" },
    { subject: "y", rule: "outside-mesh", severity: "info", text: "less", value: 9, next: "" },
  ],
} as unknown as EdgesDocument;

test("a line of the access log names the policy", () => {
  const line = formatRecord(refusalRecord(refusal("10.0.0.7"), Date.UTC(2026, 0, 1, 0, 0, 2), ""));
  expect(line).toBe(
    "2026-01-01T00:00:00.000Z in - from 10.0.0.7 on port 8080 refused-on-purpose:shop/no sent=0 received=0",
  );
  const named = refusalRecord(refusal("fd00::7", { destination: "fd00::1" }), 0, "web;shop;web;v1;c");
  expect(named).toMatchObject({ workload: "web", asked: "[fd00::1]:8080", end: "refused-on-purpose" });
});

test("the map has a problem for each peer, port and policy of the window, between errors and hints", () => {
  const { nodes, problems } = withRefusedPeers(
    DOCUMENT,
    [refusal("10.0.0.7"), refusal("10.0.0.9"), refusal("10.0.0.7"), refusal("10.0.0.8", { ago: 61 })],
    (address) => (address === "10.0.0.7" ? "web;shop;web;v1;c" : ""),
  );
  expect(nodes.map(({ id }) => id)).toEqual(["caller:10.0.0.7", "caller:10.0.0.9", "unit:a"]);
  expect(nodes[0]).toMatchObject({ name: "web", namespace: "shop" });
  expect(problems.map(({ text }) => text)).toEqual([
    "worse",
    "2 connections from 10.0.0.7 to port 8080 of this machine were refused by shop/no",
    "1 connection from 10.0.0.9 to port 8080 of this machine was refused by shop/no",
    "less",
  ]);
  expect(problems[1]).toMatchObject({
    subject: "caller:10.0.0.7",
    rule: "refused-by-policy",
    next: "kmesh explain --from 10.0.0.7 --to 8080",
  });
  expect(withRefusedPeers(DOCUMENT, [], () => "")).toBe(DOCUMENT);
});
