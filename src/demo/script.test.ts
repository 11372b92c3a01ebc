import { expect, test } from "bun:test";
import { emptyLedger } from "./ledger.ts";
import { meshYaml, shareOf } from "./mesh.ts";
import { type DemoReport, isAsPromised, stepOf } from "./script.ts";
import { parseDemoMesh } from "./services.ts";

const shares = { v1: 90, v2: 10 };
const step = (byUpstream: Record<string, number>) => {
  const made = Object.values(byUpstream).reduce((sum, count) => sum + count, 0);
  return stepOf("as configured", shares, true, emptyLedger(), { ...emptyLedger(), made, byUpstream });
};

const good: DemoReport = {
  ok: true,
  connections: { made: 1000, failed: 0, withoutAgent: 100 },
  longLived: { opened: 5, cut: 0, answers: 50 },
  wrongPeer: 0,
  names: { resolved: 9, unresolved: 0 },
  unattendedMilliseconds: 100,
  restart: { adopted: true, mapWrites: 1 },
  steps: [step({ a: 450, b: 450, c: 100 })],
  reasons: {},
};

test("the demo's YAML is what the control plane reads", () => {
  const [service] = parseDemoMesh(meshYaml(shares)).services;
  expect(service?.split).toEqual({ v1: 90, v2: 10 });
  expect(service?.endpoints.map((endpoint) => endpoint.subset)).toEqual(["v1", "v1", "v2"]);
});

test("a version's share is divided among its upstreams", () => {
  expect(["a", "b", "c", "d"].map((name) => shareOf(name, shares))).toEqual([0.45, 0.45, 0.1, 0]);
});

test("the promise holds only when every part of it does", () => {
  expect(isAsPromised(good)).toBe(true);
  const broken: Partial<DemoReport>[] = [
    { connections: { made: 1000, failed: 1, withoutAgent: 100 } },
    { connections: { made: 1000, failed: 0, withoutAgent: 0 } },
    { longLived: { opened: 5, cut: 1, answers: 50 } },
    { wrongPeer: 1 },
    { names: { resolved: 0, unresolved: 0 } },
    { names: { resolved: 9, unresolved: 1 } },
    { restart: { adopted: false, mapWrites: 1 } },
    { steps: [step({ a: 500, b: 400, c: 100 })] },
    { steps: [step({})] },
  ];
  for (const change of broken) expect(isAsPromised({ ...good, ...change })).toBe(false);
});
