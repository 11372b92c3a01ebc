/** Decisions case by case as ztunnel makes them (its src/rbac.rs, src/state.rs and src/state/policy.rs), and where kmesh differs. */
import { describe, expect, test } from "bun:test";
import { selectPolicies } from "./authorization.ts";
import { compileInbound, lookUp } from "./compile.ts";
import type { security } from "./security.gen.js";
import { authorization, inbound, judge } from "./testdata/authorization.ts";

const [ALLOW, DENY] = [0, 1];
const [GLOBAL, NAMESPACE, SELECTOR] = [0, 1, 2];
const TD = "td/ns/namespace/sa/account";
/** Three connections: source, destination, port, identity. */
const PLAINTEXT = ["127.0.1.1", "127.0.0.2", 8080, undefined] as const;
const TLS = ["127.0.1.1", "127.0.0.2", 8080, TD] as const;
const OTHER = ["127.0.1.3", "127.0.0.4", 80, "td-alt/ns/ns-alt/sa/sa-alt"] as const;

/** Source, destination, port, identity. */
type Asked = readonly [string, string, number, (string | undefined)?];
type Match = security.Match.$Properties;
type Groups = security.Group.$Properties[];

const policy = (action: number, groups: Groups, name = "p") => authorization({ action, groups, name }).policy;
const one = (match: Match): Groups => [{ rules: [{ matches: [match] }] }];
const block = (address: number[], length: number) => ({ address: Uint8Array.from(address), length });
const decided = (groups: Groups, [source, to, port, peer]: Asked) => {
  const [allow, deny] = [ALLOW, DENY].map((action) =>
    judge([policy(action ?? 0, groups)], source, port, peer, to),
  );
  return { allow: allow?.allowed, deny: !deny?.allowed };
};
/** Whether the groups match, which an ALLOW and a DENY must agree on. */
const matches = (groups: Groups, connection: Asked) => {
  const { allow, deny } = decided(groups, connection);
  expect(deny).toBe(allow as boolean);
  return allow;
};

describe("each field and its negation: plaintext, with an identity, and another peer", () => {
  const [exact, account] = [
    [{ exact: "namespace" }],
    [{ namespace: "namespace", serviceAccount: "account" }],
  ];
  const principal = [{ exact: TD }];
  const [source, to] = [[block([127, 0, 1, 1], 32)], [block([127, 0, 0, 2], 32)]];
  const cases: [string, Match, boolean, boolean, boolean][] = [
    ["namespaces", { namespaces: exact }, false, true, false],
    ["not_namespaces", { notNamespaces: exact }, true, false, true],
    ["service_accounts", { serviceAccounts: account }, false, true, false],
    ["not_service_accounts", { notServiceAccounts: account }, true, false, true],
    ["principals", { principals: principal }, false, true, false],
    ["not_principals", { notPrincipals: principal }, true, false, true],
    ["source_ips", { sourceIps: source }, true, true, false],
    ["not_source_ips", { notSourceIps: source }, false, false, true],
    ["destination_ips", { destinationIps: to }, true, true, false],
    ["not_destination_ips", { notDestinationIps: to }, false, false, true],
    [
      "a block whose address has more bits than its prefix",
      { destinationIps: [block([127, 0, 0, 1], 24)] },
      true,
      true,
      true,
    ],
    ["destination_ports", { destinationPorts: [8080] }, true, true, false],
    ["not_destination_ports", { notDestinationPorts: [8080] }, false, false, true],
    ["several values: one of them", { destinationPorts: [1, 8080] }, true, true, false],
    ["several negated values: none of them", { notDestinationPorts: [1, 8080] }, false, false, true],
    ["several fields: all of them", { destinationPorts: [8080], namespaces: exact }, false, true, false],
    [
      "a field and its own negation",
      { destinationPorts: [8080, 80], notDestinationPorts: [80] },
      true,
      true,
      false,
    ],
    ["presence of a principal", { principals: [{ presence: {} }] }, false, true, true],
    ["no principal at all, which is STRICT", { notPrincipals: [{ presence: {} }] }, true, false, false],
    ["a port beyond the machine's", { destinationPorts: [9090] }, false, false, false],
  ];
  for (const [what, match, ...wanted] of cases)
    test(what, () => {
      expect([PLAINTEXT, TLS, OTHER].map((each) => matches(one(match), each))).toEqual(wanted);
      // The kernel's tables agree about plaintext.
      for (const action of [ALLOW, DENY]) {
        const cell = lookUp(compileInbound(inbound([policy(action, one(match))])), {
          ...{ sourceAddress: PLAINTEXT[0], destinationAddress: PLAINTEXT[1], destinationPort: PLAINTEXT[2] },
        });
        expect(cell?.plaintext === undefined).toBe(
          action === ALLOW ? wanted[0] === true : wanted[0] === false,
        );
      }
    });
});

describe("texts", () => {
  const cases: [security.StringMatch.$Properties, string, boolean][] = [
    [{ exact: "foo" }, "foo", true],
    [{ exact: "foo" }, "not", false],
    [{ prefix: "foo" }, "foobar", true],
    [{ prefix: "foo" }, "notfoo", false],
    [{ suffix: "foo" }, "barfoo", true],
    [{ suffix: "foo" }, "foonot", false],
    [{ presence: {} }, "foo", true],
  ];
  for (const [match, namespace, wanted] of cases)
    test(`${JSON.stringify(match)} and ${namespace}`, () => {
      const peer = ["1.2.3.4", "10.0.1.1", 80, `td/ns/${namespace}/sa/x`] as const;
      expect(matches(one({ namespaces: [match] }), peer)).toBe(wanted);
      expect(matches(one({ namespaces: [match] }), ["1.2.3.4", "10.0.1.1", 80])).toBe(false);
    });
  test("a principal is compared without spiffe://", () => {
    for (const principal of [TD, `spiffe://${TD}`])
      expect(matches(one({ principals: [{ exact: principal }] }), TLS)).toBe(true);
  });
});

describe("groups, rules and matches", () => {
  const peer = (namespace: string, port: number) =>
    ["1.2.3.4", "10.0.1.1", port, `td/ns/${namespace}/sa/x`] as const;
  const inNamespace = (namespace: string): Match => ({ namespaces: [{ exact: namespace }] });

  test("no group matches nothing, a group without rules and rules without matches match everything", () => {
    expect(matches([], PLAINTEXT)).toBe(false);
    expect(matches([{ rules: [] }], PLAINTEXT)).toBe(true);
    expect(matches([{ rules: [{ matches: [] }] }], PLAINTEXT)).toBe(true);
  });

  test("an empty match, which istiod leaves of layer 7, matches in a DENY (ztunnel: nothing), and not in an ALLOW", () => {
    expect(decided(one({}), PLAINTEXT)).toEqual({ allow: false, deny: true });
    // Beside another match, and beside another rule.
    expect(decided([{ rules: [{ matches: [{ destinationPorts: [1] }, {}] }] }], PLAINTEXT)).toEqual({
      allow: false,
      deny: true,
    });
    expect(
      decided([{ rules: [{ matches: [{ destinationPorts: [1] }] }, { matches: [{}] }] }], PLAINTEXT),
    ).toEqual({
      allow: false,
      deny: false,
    });
  });

  test("matches or, rules and: namespace a or b, and port 80", () => {
    const groups = [
      {
        rules: [{ matches: [inNamespace("a"), inNamespace("b")] }, { matches: [{ destinationPorts: [80] }] }],
      },
    ];
    expect(
      [peer("a", 80), peer("b", 80), peer("bad", 80), peer("b", 8080)].map((each) => matches(groups, each)),
    ).toEqual([...[true, true, false, false]]);
  });

  test("groups or: namespace a, or namespace b", () => {
    const groups = [...one(inNamespace("a")), ...one(inNamespace("b"))];
    expect([peer("a", 80), peer("b", 80), peer("bad", 80)].map((each) => matches(groups, each))).toEqual([
      true,
      true,
      false,
    ]);
  });
});

describe("several policies", () => {
  const everybody: Groups = [{ rules: [] }];
  const from = (account: string) =>
    one({ principals: [{ exact: `cluster.local/ns/default/sa/${account}` }] });
  const asked = (policies: Parameters<typeof judge>[0], account: string) =>
    judge(policies, "1.2.3.4", 80, `cluster.local/ns/default/sa/${account}`);

  test("DENY goes before ALLOW; an ALLOW that matches nothing refuses; no ALLOW admits", () => {
    const both = [policy(ALLOW, everybody, "yes"), policy(DENY, everybody, "no")];
    expect(judge(both, "1.2.3.4", 80)).toEqual({
      allowed: false,
      reason: "denied",
      policy: "n/no",
      rule: "rule 1",
    });
    expect(judge([policy(ALLOW, [])], "1.2.3.4", 80).reason).toBe("no-allow-matched");
    expect(judge([policy(DENY, [])], "1.2.3.4", 80)).toEqual({ allowed: true, reason: "no-policy" });
    expect(judge([], "1.2.3.4", 80)).toEqual({ allowed: true, reason: "no-policy" });
    expect(judge([policy(DENY, everybody)], "1.2.3.4", 22)).toEqual({
      allowed: true,
      reason: "not-governed",
    });
  });

  test("an ALLOW and a DENY by principal", () => {
    const set = [policy(ALLOW, from("good"), "yes"), policy(DENY, from("bad"), "no")];
    expect(asked(set, "good")).toMatchObject({ allowed: true, policy: "n/yes" });
    expect(asked(set, "other")).toMatchObject({
      allowed: false,
      reason: "no-allow-matched",
      policy: "n/yes",
    });
    expect(asked(set, "bad")).toMatchObject({ allowed: false, reason: "denied", policy: "n/no" });
    // A second ALLOW is an alternative.
    expect(asked([...set, policy(ALLOW, from("other"), "also")], "other")).toMatchObject({
      allowed: true,
      policy: "n/also",
    });
  });

  test("of dry run: neither a DENY nor an ALLOW counts, beside real ones and alone", () => {
    const all = new Map(
      [
        authorization({ name: "real-deny", action: DENY, scope: NAMESPACE, groups: from("bad") }),
        authorization({ name: "dry-deny", action: DENY, scope: NAMESPACE, dryRun: true, groups: everybody }),
        authorization({ name: "real-allow", action: ALLOW, scope: NAMESPACE, groups: from("good") }),
        authorization({
          name: "dry-allow",
          action: ALLOW,
          scope: NAMESPACE,
          dryRun: true,
          groups: everybody,
        }),
      ].map((each) => [each.name, each] as const),
    );
    const { policies, dryRun } = selectPolicies(all, { namespace: "n", names: [] });
    expect(dryRun).toEqual(["n/dry-deny", "n/dry-allow"]);
    expect(["good", "other", "bad"].map((account) => asked(policies, account).allowed)).toEqual([
      true,
      false,
      false,
    ]);
    // An ALLOW of dry run alone is no ALLOW: everybody is admitted.
    const alone = new Map([...all].filter(([name]) => name === "n/dry-allow"));
    expect(asked(selectPolicies(alone, { namespace: "n", names: [] }).policies, "other").reason).toBe(
      "no-policy",
    );
  });

  test("global ones govern everybody, those of a namespace its workloads, those of a selector who names them", () => {
    const all = new Map(
      [
        authorization({ name: "global", namespace: "istio-system", scope: GLOBAL }),
        authorization({ name: "here", scope: NAMESPACE }),
        authorization({ name: "elsewhere", namespace: "m", scope: NAMESPACE }),
        authorization({ name: "named", scope: SELECTOR }),
      ].map((each) => [each.name, each] as const),
    );
    const of = (namespace: string, names: string[]) =>
      selectPolicies(all, { namespace, names }).policies.map(({ name }) => name);
    expect(of("n", [])).toEqual(["istio-system/global", "n/here"]);
    expect(of("n", ["n/named", "n/named"])).toEqual(["istio-system/global", "n/here", "n/named"]);
    expect(of("m", [])).toEqual(["istio-system/global", "m/elsewhere"]);
    // Named as well, it still counts once.
    expect(of("n", ["n/here"])).toEqual(["istio-system/global", "n/here"]);
    // A policy whose scope changes.
    all.set("n/here", authorization({ name: "here", scope: SELECTOR }));
    expect(of("n", [])).toEqual(["istio-system/global"]);
    expect(of("n", ["n/here"])).toEqual(["istio-system/global", "n/here"]);
  });

  test("one that the workload names and that is not known denies everybody (ztunnel: nobody)", () => {
    const { policies } = selectPolicies(new Map(), { namespace: "n", names: ["n/later"] });
    expect(asked(policies, "good")).toMatchObject({ allowed: false, reason: "denied", policy: "n/later" });
  });
});
