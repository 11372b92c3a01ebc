import { expect, test } from "bun:test";
import type { Summary } from "../../datapath/inspect/state.ts";
import type { InboundView } from "../../inbound/view.ts";
import { Counters } from "../../tunnel/counters.ts";
import type { TunnelStatus } from "../../tunnel/process/status-file.ts";
import { formatEncryption, tunnelFacts, tunnelWarnings } from "./tunnel-rows.ts";

const kernel = (tunnel: Record<string, number>) => ({ tunnel }) as unknown as Summary;
const process = (more: Partial<TunnelStatus> = {}) =>
  ({
    pid: 7,
    draining: false,
    connections: 3,
    certificate: { valid: true, rotations: 0 },
    ...more,
  }) as TunnelStatus;

test("nothing where no endpoint needs it", () => {
  expect(tunnelFacts(kernel({}))).toEqual([]);
  expect(tunnelFacts(undefined)).toEqual([]);
});

test("how many endpoints by what, who accepts and who drains", () => {
  expect(
    tunnelFacts(kernel({ istio: 2, hbone: 1 }), [process(), process({ pid: 6, draining: true })]),
  ).toEqual([
    ["tunnel", "runs (pid 7): 3 connections; 1 more end with their last connections"],
    ["encrypted", "endpoints that are reached through it: 2 by mutual TLS, 1 by HBONE"],
  ]);
  expect(tunnelFacts(kernel({ tls: 1 }))[0]?.[1]).toStartWith("no process accepts");
});

test("apps that do not see their callers are worth knowing", () => {
  expect(tunnelWarnings([process({ callers: { shown: 5, hidden: 0 } })])).toEqual([]);
  expect(tunnelWarnings([process({ callers: { shown: 5, hidden: 2 } })])[0]).toContain("for 2 connections");
});

test("a certificate that is not valid is worth knowing", () => {
  expect(tunnelWarnings([process()])).toEqual([]);
  const broken = process({ certificate: { valid: false, rotations: 0, trouble: "it has expired" } });
  expect(tunnelWarnings([broken])[0]).toContain("it has expired");
  expect(tunnelWarnings([])).toEqual([]);
});

test("endpoints that are led where nobody listens are worth knowing", () => {
  const socket = (state: "listens" | "absent") =>
    [{ unit: "kmesh-tunnel.socket", port: 15001, state }] as const;
  expect(tunnelWarnings([], kernel({ istio: 2, hbone: 1 }), socket("absent"))).toEqual([
    "No tunnel listens at port 15001, and 3 endpoints can be reached through it alone: connections to them are refused. kmesh doctor says what to do.",
  ]);
  expect(tunnelWarnings([], kernel({ istio: 2 }), socket("listens"))).toEqual([]);
  expect(tunnelWarnings([], kernel({}), socket("absent"))).toEqual([]);
  expect(tunnelWarnings([process()], kernel({ istio: 2 }), socket("absent"))).toEqual([]);
});

test("what was carried each way, failures by reason, identities: over all processes", () => {
  const { rows } = new Counters();
  rows.ways.outbound = {
    open: 1,
    total: 4,
    pending: 0,
    sent: 2048,
    received: 3 << 20,
    failures: { "wrong-san": 2, expired: 5 },
  };
  rows.handshakes = { client: 4, server: 0 };
  rows.identities = { "spiffe://cluster.local/ns/shop/sa/web": 4 };
  const facts = tunnelFacts(kernel({ istio: 1 }), [
    process(rows),
    process({ ...rows, pid: 6, draining: true }),
  ]);
  expect(facts.map(([, text]) => text).slice(1, 3)).toEqual([
    "from apps to peers: 2 open, 8 in all, 4.0 KiB sent, 6.0 MiB received; failed: 10 expired, 4 wrong-san",
    "8 handshakes; peers: spiffe://cluster.local/ns/shop/sa/web (8)",
  ]);
});

test("the encryption by service, both ways", () => {
  expect(formatEncryption(kernel({}), undefined, false)).toEqual([]);
  const encrypted = { "web.shop.svc:80": { istio: 2, hbone: 1 } };
  const inbound = {
    ports: [
      { port: 80, mtls: "strict" },
      { port: 81, mtls: "disable" },
    ],
  } as InboundView;
  const [text = ""] = formatEncryption({ encrypted } as unknown as Summary, inbound, false);
  expect(text).toMatch(/this machine's port 80 +in +mutual TLS alone/);
  expect(text).toMatch(/web.shop.svc:80 +out +2 endpoints by mutual TLS, 1 endpoint by HBONE/);
  expect(text).not.toContain("81");
});
