import { expect, test } from "bun:test";
import { Counters } from "../../tunnel/counters.ts";
import type { TunnelStatus } from "../../tunnel/process/status-file.ts";
import { tunnelFamilies } from "./tunnel-metrics.ts";

test("each process counts for itself, by direction and reason", () => {
  expect(tunnelFamilies([])).toEqual([]);
  const counters = new Counters();
  counters.begin("outbound");
  counters.opened("outbound", "spiffe://cluster.local/ns/shop/sa/web");
  counters.closed("outbound", 10, 20);
  counters.failed("inbound", "unknown-ca");
  const certificate = { valid: true, rotations: 0, notAfter: 5_000 };
  const one = { pid: 7, draining: false, certificate, ...counters.rows } as TunnelStatus;
  const other = {
    ...one,
    pid: 8,
    draining: true,
    certificate: { valid: false, rotations: 0 },
  } as TunnelStatus;
  const families = tunnelFamilies([one, other]);
  const samples = (name: string) => {
    const { sets = [], values = [] } = families.find((family) => family.name === name) ?? {};
    return sets.map(({ block }, i) => [
      new TextDecoder()
        .decode(block)
        .replace(/[{}]|\w+=|"/g, "")
        .replaceAll(",", " ")
        .trim(),
      values[i],
    ]);
  };
  expect(samples("kmesh_tunnel_processes")).toEqual([
    ["accepting", 1],
    ["draining", 1],
  ]);
  expect(samples("kmesh_tunnel_connections")).toContainEqual(["8 outbound", 1]);
  expect(samples("kmesh_tunnel_sent_bytes")).toContainEqual(["7 outbound", 10]);
  expect(samples("kmesh_tunnel_received_bytes")).toContainEqual(["7 outbound", 20]);
  expect(samples("kmesh_tunnel_failures")).toEqual([
    ["7 inbound unknown-ca", 1],
    ["8 inbound unknown-ca", 1],
  ]);
  expect(samples("kmesh_tunnel_certificate_expiration_timestamp_seconds")).toEqual([["7", 5]]);
});
