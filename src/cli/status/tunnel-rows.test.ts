import { expect, test } from "bun:test";
import type { Summary } from "../../datapath/inspect/inspect.ts";
import type { TunnelStatus } from "../../tunnel/process/status-file.ts";
import { tunnelFacts, tunnelWarnings } from "./tunnel-rows.ts";

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

test("a certificate that is not valid is worth knowing", () => {
  expect(tunnelWarnings([process()])).toEqual([]);
  const broken = process({ certificate: { valid: false, rotations: 0, trouble: "it has expired" } });
  expect(tunnelWarnings([broken])[0]).toContain("it has expired");
  expect(tunnelWarnings([])).toEqual([]);
});
