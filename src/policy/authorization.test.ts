/** What istiod sent (below), and generated policies against a plain evaluation of the message. */
import { describe, expect, test } from "bun:test";
import { MalformedResource } from "../istiod/stream/sink.ts";
import { inboundText, parseInbound } from "../mesh/inbound-text.ts";
import { mtlsOfPolicies, parseAuthorization, selectPolicies } from "./authorization.ts";
import { compileInbound } from "./compile.ts";
import { decide, judgeOf } from "./decide.ts";
import { security } from "./security.gen.js";
import { identity, inbound, judge } from "./testdata/authorization.ts";

/** As a real istiod sent them, with ambient on: bytes of Any.value. */
const RECORDED = {
  "shop/ns-allow":
    "Cghucy1hbGxvdxIEc2hvcBgBKq8BCg0SBkoEkD/qGRIDUgEWCngSWhocChpjbHVzdGVyLmxvY2FsL25zL3Ztcy9zYS92bRoHGgUvc2EveBoQEg5jbHVzdGVyLmxvY2FsLxoCIgAiGwoZY2x1c3Rlci5sb2NhbC9ucy9iYWQvc2EvYhIaCgUKA3ZtcwoFEgNwcmUKBRoDc3VmEgMKAXgKFhIUKggKBAoJAAAQEDIICgQKCQEBECAKDBIKOggKBAoKAAEQIA==",
  "shop/sel-deny":
    "CghzZWwtZGVueRIEc2hvcBgCIAEqLgosEioqCAoECkIAABAQKhQKEP0AAAAAAAAAAAAAAAAAAAAQCDIICgQKQgEBECA=",
  "vms/we-sel": "CgZ3ZS1zZWwSA3ZtcxgCKiMKIRIfWgkKA3ZtcxICdm1aCgoDdm1zEgNmb29iBgoBYRIBYg==",
  "shop/l7-allow": "CghsNy1hbGxvdxIEc2hvcBgCKgsKCRIHCgUKA3Ztcw==",
  "shop/l7-deny": "CgdsNy1kZW55EgRzaG9wGAIgASoICgYSBEoCkD8qBAoCEgAqBAoCEgAqBAoCEgA=",
  "shop/l7-mixed": "CghsNy1taXhlZBIEc2hvcBgCIAEqEQoHEgUKAwoBcQoCEgAKAhIA",
  "istio-system/istio_converted_static_strict":
    "Ch1pc3Rpb19jb252ZXJ0ZWRfc3RhdGljX3N0cmljdBIMaXN0aW8tc3lzdGVtGAIgASoICgYSBCICIgA=",
  "shop/converted_peer_authentication_wl":
    "CiBjb252ZXJ0ZWRfcGVlcl9hdXRoZW50aWNhdGlvbl93bBIEc2hvcBgCIAEqEAoGEgRSApA/CgYSBCICIgA=",
  "vms/converted_peer_authentication_wlp":
    "CiFjb252ZXJ0ZWRfcGVlcl9hdXRoZW50aWNhdGlvbl93bHASA3ZtcxgCIAEqDAoKEggiAiIASgL1Pw==",
} as const;

const bytes = (base64: string) => new Uint8Array(Buffer.from(base64, "base64"));
const recorded = (name: keyof typeof RECORDED) => parseAuthorization(name, bytes(RECORDED[name]));

const VM = "cluster.local/ns/vms/sa/vm";

describe("what istiod sent", () => {
  const cases: readonly (readonly [
    names: readonly (keyof typeof RECORDED)[],
    source: string,
    port: number,
    peer: string | undefined,
    allowed: boolean,
  ])[] = [
    // STRICT is a DENY of what has no identity.
    [["istio-system/istio_converted_static_strict"], "10.9.9.9", 8080, undefined, false],
    [["istio-system/istio_converted_static_strict"], "10.9.9.9", 8080, VM, true],
    // Namespace STRICT, 8080 PERMISSIVE.
    [["shop/converted_peer_authentication_wl"], "10.9.9.9", 8080, undefined, true],
    [["shop/converted_peer_authentication_wl"], "10.9.9.9", 8081, undefined, false],
    [["shop/converted_peer_authentication_wl"], "10.9.9.9", 8081, VM, true],
    // PERMISSIVE, 8181 STRICT.
    [["vms/converted_peer_authentication_wlp"], "10.9.9.9", 8080, undefined, true],
    [["vms/converted_peer_authentication_wlp"], "10.9.9.9", 8181, undefined, false],
    // Source blocks of both families, and one address that is not in the block.
    [["shop/sel-deny"], "10.66.0.9", 8080, undefined, false],
    [["shop/sel-deny"], "10.66.1.1", 8080, undefined, true],
    [["shop/sel-deny"], "10.67.0.1", 8080, VM, true],
    [["shop/sel-deny"], "fd12::1", 8080, undefined, false],
    [["shop/sel-deny"], "fe80::1", 8080, undefined, true],
    // Layer 7 conditions of a DENY are gone: it denies as if they matched. DENY port 8080, or anything.
    [["shop/l7-deny"], "10.9.9.9", 8080, undefined, false],
    [["shop/l7-deny"], "10.9.9.9", 80, VM, false],
    // DENY namespace q and claims: the namespace alone.
    [["shop/l7-mixed"], "10.9.9.9", 80, VM, true],
    [["shop/l7-mixed"], "10.9.9.9", 80, "cluster.local/ns/q/sa/any", false],
    [["shop/l7-mixed"], "10.9.9.9", 80, undefined, true],
    // Layer 7 rules of an ALLOW are gone; the other rule stays.
    [["shop/l7-allow"], "10.9.9.9", 80, VM, true],
    [["shop/l7-allow"], "10.9.9.9", 80, undefined, false],
    // Service accounts.
    [["vms/we-sel"], "10.9.9.9", 80, VM, true],
    [["vms/we-sel"], "10.9.9.9", 80, "cluster.local/ns/vms/sa/foo", true],
    [["vms/we-sel"], "10.9.9.9", 80, "other.domain/ns/vms/sa/foo", true],
    [["vms/we-sel"], "10.9.9.9", 80, "cluster.local/ns/shop/sa/foo", false],
    [["vms/we-sel"], "10.9.9.9", 80, undefined, false],
  ];
  for (const [names, source, port, peer, allowed] of cases)
    test(`${names.join(", ")}: ${peer ?? "plaintext"} from ${source} to ${port}`, () => {
      expect(
        judge(
          names.map((name) => recorded(name).policy),
          source,
          port,
          peer,
        ).allowed,
      ).toBe(allowed);
    });

  test("modes follow from the DENY policies that PeerAuthentication becomes", () => {
    const modes = (name: keyof typeof RECORDED) =>
      mtlsOfPolicies([recorded(name).policy], [8080, 8081, 8181]).ports.map(({ port }) => port);
    expect(modes("istio-system/istio_converted_static_strict")).toEqual([8080, 8081, 8181]);
    expect(modes("shop/converted_peer_authentication_wl")).toEqual([8081, 8181]);
    expect(modes("vms/converted_peer_authentication_wlp")).toEqual([8181]);
    expect(modes("shop/l7-deny")).toEqual([]);
  });
});

describe("which policies govern a workload", () => {
  const all = new Map(Object.keys(RECORDED).map((name) => [name, recorded(name as keyof typeof RECORDED)]));
  const names = (namespace: string, listed: string[]) =>
    selectPolicies(all, { namespace, names: listed }).policies.map(({ name }) => name);

  test("those of its namespace, and those that it names", () => {
    expect(names("shop", [])).toEqual(["shop/ns-allow"]);
    expect(names("vms", ["vms/we-sel"])).toEqual(["vms/we-sel"]);
    expect(names("other", [])).toEqual([]);
  });

  test("an unknown name denies everything, STRICT or not, with or without an identity", () => {
    const selected = selectPolicies(all, { namespace: "other", names: ["other/later"] });
    expect(selected.unknown).toEqual(["other/later"]);
    expect(judge(selected.policies, "1.2.3.4", 80, VM)).toMatchObject({
      allowed: false,
      policy: "other/later",
    });
  });

  test("dry run is shown and not enforced", () => {
    const dry = new Map([["n/p", { ...recorded("shop/l7-deny"), name: "n/p", dryRun: true }]]);
    expect(selectPolicies(dry, { namespace: "x", names: ["n/p"] })).toEqual({
      policies: [],
      dryRun: ["n/p"],
      unknown: [],
    });
  });
});

describe("malformed", () => {
  const encoded = (message: security.Authorization.$Properties) =>
    security.Authorization.encode(
      security.Authorization.create({ name: "p", namespace: "n", ...message }),
    ).finish();
  const match = (each: security.Match.$Properties) => encoded({ groups: [{ rules: [{ matches: [each] }] }] });
  const refused: Record<string, Uint8Array> = {
    "an address of 5 bytes": match({ sourceIps: [{ address: new Uint8Array(5), length: 8 }] }),
    "no address": match({ notSourceIps: [{ length: 8 }] }),
    "a prefix beyond its family": match({ destinationIps: [{ address: new Uint8Array(4), length: 33 }] }),
    "a prefix beyond IPv6": match({ notDestinationIps: [{ address: new Uint8Array(16), length: 129 }] }),
    "a port beyond 65535": match({ destinationPorts: [65536] }),
    "an unknown scope": encoded({ scope: 3 }),
    "an unknown action": encoded({ action: 2 }),
    "a text match without content": match({ principals: [{}] }),
    "another name": encoded({ name: "q" }),
    truncated: match({ destinationPorts: [80] }).subarray(0, 9),
  };
  for (const [what, given] of Object.entries(refused))
    test(what, () => {
      expect(() => parseAuthorization("n/p", given)).toThrow(MalformedResource);
    });

  test("2,000 mutations of what was recorded give a policy or MalformedResource, nothing else", () => {
    const random = generator(7);
    const all = Object.entries(RECORDED);
    let parsed = 0;
    for (let i = 0; i < 2000; i++) {
      const [name, base64] = all[i % all.length] ?? ["", ""];
      const given = bytes(base64);
      for (let n = random(4); n >= 0; n--) given[random(given.length)] = random(256);
      const cut = random(3) === 0 ? given.subarray(0, random(given.length)) : given;
      try {
        const { policy } = parseAuthorization(name, cut);
        // What is taken is decided by, compiled, and read back as it was written.
        judge([policy], "10.0.0.1", 80);
        compileInbound(inbound([policy]));
        const text = inboundText(inbound([policy]));
        expect(inboundText(parseInbound(text))).toBe(text);
        parsed++;
      } catch (error) {
        expect(error).toBeInstanceOf(MalformedResource);
      }
    }
    expect(parsed).toBeGreaterThan(50);
  });
});

test("3,000 generated sets of policies decide as a plain reading of the messages does", () => {
  const random = generator(42);
  const seen = { allowed: 0, refused: 0, sure: 0 };
  for (let round = 0; round < 3000; round++) {
    const messages = Array.from({ length: random(4) }, () => randomAuthorization(random));
    const policies = messages.map(
      (message, i) =>
        parseAuthorization(
          `n/p${i}`,
          security.Authorization.encode(
            security.Authorization.create({ ...message, name: `p${i}`, namespace: "n" }),
          ).finish(),
        ).policy,
    );
    const source = pick(random, ["10.0.0.1", "10.0.0.2", "10.1.0.1", "fd00::1", "fd00:1::1"]);
    const to = pick(random, ["10.0.1.1", "fd00::2"]);
    const port = pick(random, [80, 8080]);
    const peer = pick(random, [undefined, VM, "cluster.local/ns/a/sa/x", "td/ns/b/sa/y"]);
    const wanted = plainly(messages, source, to, port, peer);
    const set = inbound(policies);
    const connection = { sourceAddress: source, destinationAddress: to, destinationPort: port };
    const got = decide(set, peer ? { ...connection, identity: identity(peer) } : connection);
    expect(got.allowed).toBe(wanted);
    seen[wanted ? "allowed" : "refused"]++;
    // What is refused whoever asks is refused for each identity.
    if (judgeOf(set).refusesAnybody(connection)) {
      seen.sure++;
      for (const any of [VM, "cluster.local/ns/a/sa/x", "td/ns/b/sa/y"])
        expect(decide(set, { ...connection, identity: identity(any) }).allowed).toBe(false);
    }
  }
  expect(Math.min(seen.allowed, seen.refused, seen.sure)).toBeGreaterThan(300);
});

test("10,000 addresses and 1,000 rules", () => {
  const addresses = Array.from({ length: 10_000 }, (_, i) => ({
    address: Uint8Array.of(10, i >> 8, i & 255, 1),
    length: 32,
  }));
  const groups = Array.from({ length: 1000 }, (_, i) => ({
    rules: [
      {
        matches: [
          {
            destinationPorts: [80],
            sourceIps:
              i === 999 ? addresses : [{ address: Uint8Array.of(11, i >> 8, i & 255, 0), length: 24 }],
          },
        ],
      },
    ],
  }));
  const { policy } = parseAuthorization(
    "n/p",
    security.Authorization.encode(
      security.Authorization.create({ name: "p", namespace: "n", action: 1, groups }),
    ).finish(),
  );
  const set = inbound([policy]);
  expect(
    decide(set, { sourceAddress: "10.39.15.1", destinationAddress: "10.0.0.1", destinationPort: 80 }),
  ).toEqual({
    allowed: false,
    reason: "denied",
    policy: "n/p",
    rule: "rule 1000",
  });
  expect(
    decide(set, { sourceAddress: "10.39.16.1", destinationAddress: "10.0.0.1", destinationPort: 80 }).allowed,
  ).toBe(true);
});

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

function pick<T>(random: Random, list: readonly T[]): T {
  return list[random(list.length)] as T;
}

function randomMatch(random: Random): security.Match.$Properties {
  const match: security.Match.$Properties = {};
  const some = <T>(make: () => T) => Array.from({ length: 1 + random(2) }, make);
  const text = () =>
    pick(random, [
      { exact: "a" },
      { prefix: "cluster" },
      { suffix: "/x" },
      { presence: {} },
      { exact: VM },
      { exact: "vms" },
    ]);
  const block = () =>
    pick(random, [
      { address: Uint8Array.of(10, 0, 0, 0), length: 24 },
      { address: Uint8Array.of(10, 0, 0, 1), length: 32 },
      { address: Uint8Array.of(0, 0, 0, 0), length: 0 },
      { address: new Uint8Array(16), length: 0 },
      { address: Uint8Array.of(0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), length: 32 },
    ]);
  const account = () =>
    pick(random, [
      { namespace: "vms", serviceAccount: "vm" },
      { namespace: "a", serviceAccount: "x" },
    ]);
  const port = () => pick(random, [80, 8080]);
  const fields: (() => void)[] = [
    () => {
      match.namespaces = some(text);
    },
    () => {
      match.notNamespaces = some(text);
    },
    () => {
      match.principals = some(text);
    },
    () => {
      match.notPrincipals = some(text);
    },
    () => {
      match.serviceAccounts = some(account);
    },
    () => {
      match.notServiceAccounts = some(account);
    },
    () => {
      match.sourceIps = some(block);
    },
    () => {
      match.notSourceIps = some(block);
    },
    () => {
      match.destinationIps = some(block);
    },
    () => {
      match.notDestinationIps = some(block);
    },
    () => {
      match.destinationPorts = some(port);
    },
    () => {
      match.notDestinationPorts = some(port);
    },
  ];
  for (let n = random(3); n > 0; n--) pick(random, fields)();
  return match;
}

function randomAuthorization(random: Random): security.Authorization.$Properties {
  const list = <T>(most: number, make: () => T) => Array.from({ length: random(most + 1) }, make);
  return {
    action: random(2),
    groups: list(2, () => ({ rules: list(2, () => ({ matches: list(2, () => randomMatch(random)) })) })),
  };
}

/** The order and the rules of dual-engine authorization, read directly from the messages. */
function plainly(
  messages: readonly security.Authorization.$Properties[],
  source: string,
  to: string,
  port: number,
  peer: string | undefined,
): boolean {
  const who = peer === undefined ? undefined : identity(peer);
  const text = (value: string | undefined, list: readonly security.StringMatch.$Properties[]) =>
    value !== undefined &&
    list.some(({ exact, prefix, suffix, presence }) =>
      exact
        ? value === exact
        : prefix
          ? value.startsWith(prefix)
          : suffix
            ? value.endsWith(suffix)
            : !!presence,
    );
  const within = (address: string, list: readonly security.Block.$Properties[]) =>
    list.some(({ address: bytes, length = 0 }) => {
      const v4 = !address.includes(":");
      if (!bytes || v4 !== (bytes.length === 4)) return false;
      const bits = (given: Uint8Array | number[]) =>
        [...given].map((byte) => byte.toString(2).padStart(8, "0")).join("");
      const words = address.split("::");
      const own = v4
        ? address.split(".").map(Number)
        : [
            ...(words[0] ?? "")
              .split(":")
              .flatMap((w) => [Number.parseInt(w, 16) >> 8, Number.parseInt(w, 16) & 255]),
            ...new Array(16).fill(0),
          ]
            .slice(0, 15)
            .concat(Number(words[1]));
      return bits(own).slice(0, length ?? 0) === bits(bytes).slice(0, length ?? 0);
    });
  const holds = (match: security.Match.$Properties, action: number): boolean => {
    if (Object.keys(match).length === 0) return action === 1;
    const checks: [unknown[] | null | undefined, () => boolean, boolean][] = [
      [match.namespaces, () => text(who?.namespace, match.namespaces ?? []), true],
      [match.notNamespaces, () => text(who?.namespace, match.notNamespaces ?? []), false],
      [match.principals, () => text(peer, match.principals ?? []), true],
      [match.notPrincipals, () => text(peer, match.notPrincipals ?? []), false],
      [
        match.serviceAccounts,
        () =>
          (match.serviceAccounts ?? []).some(
            (one) => one.namespace === who?.namespace && one.serviceAccount === who?.serviceAccount,
          ),
        true,
      ],
      [
        match.notServiceAccounts,
        () =>
          (match.notServiceAccounts ?? []).some(
            (one) => one.namespace === who?.namespace && one.serviceAccount === who?.serviceAccount,
          ),
        false,
      ],
      [match.sourceIps, () => within(source, match.sourceIps ?? []), true],
      [match.notSourceIps, () => within(source, match.notSourceIps ?? []), false],
      [match.destinationIps, () => within(to, match.destinationIps ?? []), true],
      [match.notDestinationIps, () => within(to, match.notDestinationIps ?? []), false],
      [match.destinationPorts, () => (match.destinationPorts ?? []).includes(port), true],
      [match.notDestinationPorts, () => (match.notDestinationPorts ?? []).includes(port), false],
    ];
    return checks.every(([list, check, wanted]) => !list || list.length === 0 || check() === wanted);
  };
  const matches = ({ groups, action = 0 }: security.Authorization.$Properties) =>
    (groups ?? []).some(({ rules }) =>
      (rules ?? []).every(
        ({ matches: list }) => !list || list.length === 0 || list.some((match) => holds(match, action ?? 0)),
      ),
    );
  if (messages.some((each) => each.action === 1 && matches(each))) return false;
  const allow = messages.filter((each) => (each.action ?? 0) === 0);
  return allow.length === 0 || allow.some(matches);
}
