import { expect, test } from "bun:test";
import type { Inbound, MtlsMode, Policy } from "../mesh/inbound.ts";
import { decide } from "../policy/decide.ts";
import { HeldPorts } from "./held-ports.ts";

const anybody: Policy["rules"] = [{ name: "rule", when: { kind: "all", of: [] } }];

function inbound(ports: number[], mode: MtlsMode, ...policies: Policy[]): Inbound {
  return { ports, mtls: { default: mode, ports: [] }, policies };
}

const refused = (set: Inbound, port: number) => {
  const { allowed, reason } = decide(set, {
    sourceAddress: "10.0.0.1",
    destinationAddress: "10.0.0.2",
    destinationPort: port,
  });
  return allowed ? undefined : reason;
};

test("ports that are named no more keep their mode and policies for 30 s, each from when it was missed first", () => {
  const held = new HeldPorts();
  const pinned = inbound([80, 81, 82], "strict", {
    name: "shop/no",
    action: "deny",
    rules: anybody,
    ports: [82],
  });
  expect(held.over(pinned, undefined, 0)).toEqual({ inbound: pinned, holds: false });
  const some = held.over(inbound([80], "permissive"), pinned, 1_000);
  expect(some.holds).toBe(true);
  expect([80, 81, 82].map((port) => refused(some.inbound, port))).toEqual([undefined, "strict", "strict"]);
  expect(some.inbound.policies).toEqual([{ ...pinned.policies[0], ports: [82] } as Policy]);
  // None at all, as to a machine without an entry.
  const none = held.over(inbound([], "permissive"), some.inbound, 20_000);
  expect(none.inbound.ports).toEqual([80, 81, 82]);
  expect([80, 81, 82].map((port) => refused(none.inbound, port))).toEqual([undefined, "strict", "strict"]);
  const later = held.over(inbound([], "permissive"), none.inbound, 31_500);
  expect([later.inbound.ports, later.holds]).toEqual([[80], true]);
  const last = inbound([], "permissive");
  expect(held.over(last, later.inbound, 51_000)).toEqual({ inbound: last, holds: false });
});

test("a port that comes back is what istiod says now, and is held anew when it goes again", () => {
  const held = new HeldPorts();
  const both = inbound([80, 81], "strict");
  held.over(inbound([80], "strict"), both, 0);
  const open = inbound([80, 81], "disable");
  expect(held.over(open, both, 10_000)).toEqual({ inbound: open, holds: false });
  expect(held.over(inbound([80], "disable"), open, 35_000).inbound.ports).toEqual([80, 81]);
});

test("policies of one side do not govern the ports of the other", () => {
  const allow = (name: string, port: number): Policy => ({
    name,
    action: "allow",
    rules: [{ name: "rule", when: { kind: "port", ranges: [{ from: port, to: port }] } }],
  });
  const { inbound: set } = new HeldPorts().over(
    inbound([80], "disable", allow("shop/new", 80)),
    inbound([81], "disable", allow("shop/old", 81)),
    0,
  );
  expect(set.policies.map(({ name, ports }) => [name, ports])).toEqual([
    ["shop/new", [80]],
    ["shop/old", [81]],
  ]);
  expect([80, 81].map((port) => refused(set, port))).toEqual([undefined, undefined]);
});
