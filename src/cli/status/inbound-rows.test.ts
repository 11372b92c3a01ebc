import { expect, test } from "bun:test";
import type { InboundView } from "../../inbound/view.ts";
import { formatInboundRefusals, inboundFacts, inboundWarnings } from "./inbound-rows.ts";

const VIEW: InboundView = {
  enforced: true,
  ports: [
    { port: 8080, mtls: "permissive" },
    { port: 8443, mtls: "strict" },
  ],
  policies: [{ name: "shop/no", action: "deny", rules: 1 }],
  tunnel: false,
  refusals: [
    { by: "shop/a", count: 5 },
    { by: "shop/b", count: 4 },
    { by: "shop/c", count: 2 },
    { by: "PeerAuthentication STRICT", count: 1 },
  ],
  recent: [{ ago: 2, by: "shop/a", source: "10.0.0.7", sourcePort: 5, destination: "fd00::1", port: 8080 }],
};
const STATUS = { enforce: true, attached: true, applied: 1, tooLarge: [] };

test("the policies, the three that refuse most, and what was cut", () => {
  expect(inboundFacts(VIEW, { ...STATUS, cut: { "shop/a": 1, "shop/b": 2 } })).toEqual([
    ["inbound", "1 policy, ports 8080 permissive, 8443 strict"],
    ["", "12 connections refused: 5 by shop/a, 4 by shop/b, 2 by shop/c and 1 others"],
    ["", "3 established connections cut since the start: 2 by shop/b, 1 by shop/a"],
  ]);
  expect(inboundFacts({ ...VIEW, enforced: false, tunnel: true, refusals: [] })).toEqual([
    ["inbound", "NOT enforced: 1 policy, ports 8080 permissive, 8443 strict, a tunnel listens"],
  ]);
  expect(inboundFacts(undefined)).toEqual([]);
});

test("each warning says what it means for peers", () => {
  expect(inboundWarnings(STATUS, VIEW)).toEqual([
    "Port 8443 demands mutual TLS (STRICT) and no tunnel listens: every connection from outside is refused.",
  ]);
  expect(inboundWarnings({ ...STATUS, tooLarge: [8080] }, { ...VIEW, tunnel: true })).toEqual([
    "The policies of port 8080 don't fit into the tables: every peer is refused there.",
  ]);
  expect(inboundWarnings({ ...STATUS, enforce: false }, { ...VIEW, enforced: false })).toEqual([
    "Inbound policies are not enforced (inbound: off, or shadow): every peer gets in.",
  ]);
  expect(inboundWarnings({ ...STATUS, trouble: "EPERM" }, undefined)).toEqual([
    "Inbound policies are not up to date: EPERM.",
  ]);
});

test("the last refusals, with brackets around IPv6", () => {
  const [text = ""] = formatInboundRefusals(VIEW);
  expect(text).toContain("10.0.0.7");
  expect(text).toContain("[fd00::1]:8080");
  expect(formatInboundRefusals({ ...VIEW, recent: [] })).toEqual([]);
});
