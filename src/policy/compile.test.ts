/** The tables say what the judge says, for every address. */
import { expect, test } from "bun:test";
import type { Condition, Inbound, Policy } from "../mesh/inbound.ts";
import { inboundText, parseInbound } from "../mesh/inbound-text.ts";
import { compileInbound, lookUp } from "./compile.ts";
import { decide, judgeOf } from "./decide.ts";

type Random = (below: number) => number;

/** A seeded generator of whole numbers (mulberry32). */
function generator(seed: number): Random {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}

const pick = <T>(random: Random, list: readonly T[]): T => list[random(list.length)] as T;
const PREFIXES = [
  "0.0.0.0/0",
  "10.0.0.0/8",
  "10.0.0.0/24",
  "10.0.0.1/32",
  "10.0.0.128/25",
  "::/0",
  "fd00::/8",
  "fd00::/64",
  "fd00::1/128",
  "::/80",
];
const ADDRESSES = [
  "10.0.0.1",
  "10.0.0.2",
  "10.0.0.200",
  "10.9.0.1",
  "11.0.0.1",
  "fd00::1",
  "fd00::2",
  "fd00:1::1",
  "fe80::1",
  "::5",
];
const PORTS = [80, 443, 8080];

function condition(random: Random, depth = 0): Condition {
  const leaf = depth > 2 || random(2) === 0;
  if (!leaf) {
    const of = Array.from({ length: random(3) }, () => condition(random, depth + 1));
    const kind = pick(random, ["all", "any", "not"] as const);
    return kind === "not" ? { kind, of: condition(random, depth + 1) } : { kind, of };
  }
  const prefixes = Array.from({ length: 1 + random(3) }, () => pick(random, PREFIXES));
  const from = pick(random, PORTS);
  return pick<Condition>(random, [
    { kind: "source", prefixes },
    { kind: "source", prefixes },
    { kind: "destination", prefixes },
    { kind: "port", ranges: [{ from, to: from + random(400) }] },
    { kind: "principal", match: [{ kind: "presence" }] },
    { kind: "unknown", text: "layer 7" },
  ]);
}

function set(random: Random): Inbound {
  const policies = Array.from(
    { length: random(5) },
    (_, i): Policy => ({
      name: `n/p${i}`,
      action: pick(random, ["allow", "deny"]),
      ...(random(4) === 0 ? { ports: [pick(random, PORTS)] } : {}),
      rules: Array.from({ length: random(3) }, (_, r) => ({ name: `rule ${r}`, when: condition(random) })),
    }),
  );
  return {
    ports: PORTS,
    mtls: {
      default: pick(random, ["disable", "permissive", "strict"]),
      ports: [{ port: 443, mode: "permissive" }],
    },
    policies,
    ...(random(3) === 0 ? { trustDomains: ["cluster.local", "old.example"] } : {}),
  };
}

test("2,000 generated sets: each cell is what the judge decides", () => {
  const random = generator(11);
  const seen = { free: 0, refused: 0, anybody: 0, bySource: 0, byDestination: 0 };
  for (let round = 0; round < 2000; round++) {
    const inbound = set(random);
    const compiled = compileInbound(inbound);
    for (const { bySource, byDestination } of compiled.ports) {
      if (bySource) seen.bySource++;
      if (byDestination) seen.byDestination++;
    }
    for (let n = 0; n < 10; n++) {
      const connection = {
        sourceAddress: pick(random, ADDRESSES),
        destinationAddress: pick(random, ADDRESSES),
        destinationPort: pick(random, [...PORTS, 22]),
      };
      const cell = lookUp(compiled, connection);
      const decision = decide(inbound, connection);
      if (!cell) {
        expect(decision.reason).toBe("not-governed");
        continue;
      }
      expect(cell.plaintext === undefined).toBe(decision.allowed);
      if (decision.reason === "strict") expect(cell.plaintext).toBe("strict");
      else if (!decision.allowed) expect(cell.plaintext).toEqual({ policy: decision.policy ?? "" });
      const anybody = judgeOf(inbound).refusesAnybody(connection);
      expect(cell.anybody).toEqual(anybody && { policy: anybody.policy ?? "" });
      seen[decision.allowed ? "free" : "refused"]++;
      if (anybody) seen.anybody++;
    }
  }
  for (const count of Object.values(seen)) expect(count).toBeGreaterThan(300);
});

test("text: what is written is read back; 3,000 mutations are read or refused", () => {
  const random = generator(5);
  let refused = 0;
  for (let round = 0; round < 300; round++) {
    const inbound = set(random);
    const text = inboundText(inbound);
    expect(parseInbound(text)).toEqual(inbound);
    expect(inboundText(parseInbound(text))).toBe(text);
    expect(inboundText(reversed(inbound) as Inbound)).toBe(text);
    for (let n = 0; n < 10; n++) {
      const at = random(text.length);
      const mutated =
        text.slice(0, at) + pick(random, ["", "x", "9", "[", "null", "-1"]) + text.slice(at + random(3));
      try {
        compileInbound(parseInbound(mutated));
      } catch (error) {
        expect(error).toBeInstanceOf(RangeError);
        refused++;
      }
    }
  }
  expect(refused).toBeGreaterThan(1000);
});

test("1,000 policies of one address each, on ten ports, and one of 10,000 addresses", () => {
  const policies: Policy[] = Array.from({ length: 1000 }, (_, i) => ({
    name: `n/p${i}`,
    action: "deny",
    rules: [{ name: "rule 1", when: { kind: "source", prefixes: [`10.1.${i >> 8}.${i & 255}/32`] } }],
  }));
  policies.push({
    name: "n/many",
    action: "deny",
    rules: [
      {
        name: "rule 1",
        when: {
          kind: "source",
          prefixes: Array.from({ length: 10_000 }, (_, i) => `11.${i >> 8}.${i & 255}.7/32`),
        },
      },
    ],
  });
  const inbound: Inbound = {
    ports: Array.from({ length: 10 }, (_, i) => 8000 + i),
    mtls: { default: "permissive", ports: [] },
    policies,
  };
  const compiled = compileInbound(inbound);
  expect(compiled.sourceClasses).toBe(1002);
  // Ten ports share one table.
  expect(compiled.cells.length).toBe(1002);
  const at = (sourceAddress: string) =>
    lookUp(compiled, { sourceAddress, destinationAddress: "10.0.0.1", destinationPort: 8003 })?.plaintext;
  expect(at("10.1.3.231")).toEqual({ policy: "n/p999" });
  expect(at("11.39.15.7")).toEqual({ policy: "n/many" });
  expect(at("11.39.16.7")).toBeUndefined();
});

test("duplicates change nothing: a block twice, a rule twice, a policy twice, the block of a wider one", () => {
  const rule = (...prefixes: string[]) => ({ name: "rule 1", when: { kind: "source", prefixes } as const });
  const deny = (...rules: ReturnType<typeof rule>[]): Policy => ({ name: "n/p", action: "deny", rules });
  const tables = (policies: Policy[]) =>
    compileInbound({ ports: [80], mtls: { default: "permissive", ports: [] }, policies });
  const once = tables([deny(rule("10.0.0.0/8", "fd00::/8"))]);
  expect(once.cells.map(({ plaintext }) => plaintext)).toEqual([undefined, { policy: "n/p" }]);
  const twice = [
    [deny(rule("10.0.0.0/8", "fd00::/8", "10.0.0.0/8"))],
    [deny(rule("10.0.0.0/8", "fd00::/8"), rule("10.0.0.0/8", "fd00::/8"))],
    [deny(rule("10.0.0.0/8", "fd00::/8")), deny(rule("10.0.0.0/8", "fd00::/8"))],
  ];
  for (const policies of twice) expect(tables(policies)).toEqual(once);
  const wider = tables([deny(rule("10.0.0.0/8", "fd00::/8", "10.1.0.0/16"))]);
  expect(wider.cells).toEqual(once.cells);
});

test("what does not fit refuses everybody, and is listed", () => {
  const inbound: Inbound = {
    ports: [80, 81],
    mtls: { default: "disable", ports: [] },
    policies: [
      {
        name: "n/p",
        action: "deny",
        ports: [81],
        rules: [{ name: "r", when: { kind: "source", prefixes: ["10.0.0.0/8"] } }],
      },
    ],
  };
  const compiled = compileInbound(inbound, 2);
  expect(compiled.tooLarge).toEqual([81]);
  const at = (destinationPort: number) =>
    lookUp(compiled, { sourceAddress: "1.1.1.1", destinationAddress: "10.0.0.1", destinationPort });
  expect(at(80)?.plaintext).toBeUndefined();
  expect(at(81)).toMatchObject({ plaintext: "too-large", anybody: "too-large" });
});

/** The same with the members of all objects in the other order. */
function reversed(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(reversed);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .reverse()
      .map(([key, each]) => [key, reversed(each)]),
  );
}
