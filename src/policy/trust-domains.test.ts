import { expect, test } from "bun:test";
import type { Condition, TextMatch } from "../mesh/inbound.ts";
import { withAliases, withTrustDomains } from "./trust-domains.ts";

const DOMAINS = ["mesh.example", "old.example"];

function principalsOf(match: TextMatch[], domains = DOMAINS): TextMatch[] {
  const when: Condition = {
    kind: "all",
    of: [{ kind: "any", of: [{ kind: "not", of: { kind: "principal", match } }] }],
  };
  const policy = { name: "shop/a", action: "deny", rules: [{ name: "rule 1", when }] } as const;
  const [rule] = withTrustDomains(policy, domains).rules;
  if (!rule) throw new Error("the rule is lost");
  const { of } = rule.when as Extract<Condition, { kind: "all" }>;
  const [not] = (of[0] as Extract<Condition, { kind: "any" }>).of;
  return [
    ...((not as Extract<Condition, { kind: "not" }>).of as Extract<Condition, { kind: "principal" }>).match,
  ];
}

const exact = (value: string): TextMatch => ({ kind: "exact", value });

test.each<[TextMatch, TextMatch[]]>([
  // Of the mesh, of an alias, and of what stands for the mesh.
  ...["mesh.example", "old.example", "cluster.local"].map((domain): [TextMatch, TextMatch[]] => [
    exact(`${domain}/ns/shop/sa/web`),
    [exact("mesh.example/ns/shop/sa/web"), exact("old.example/ns/shop/sa/web")],
  ]),
  [exact("third.example/ns/shop/sa/web"), [exact("third.example/ns/shop/sa/web")]],
  [
    { kind: "prefix", value: "old.example/ns/shop/sa/" },
    [
      { kind: "prefix", value: "old.example/ns/shop/sa/" },
      { kind: "prefix", value: "mesh.example/ns/shop/sa/" },
    ],
  ],
  // Of any trust domain.
  [{ kind: "suffix", value: "/ns/shop/sa/web" }, [{ kind: "suffix", value: "/ns/shop/sa/web" }]],
  [
    { kind: "suffix", value: ".example/ns/shop/sa/web" },
    [{ kind: "suffix", value: ".example/ns/shop/sa/web" }],
  ],
  [
    { kind: "suffix", value: "d.example/ns/shop/sa/web" },
    [{ kind: "suffix", value: "d.example/ns/shop/sa/web" }, exact("mesh.example/ns/shop/sa/web")],
  ],
  [{ kind: "prefix", value: "old.example" }, [{ kind: "prefix", value: "old.example" }]],
  [{ kind: "presence" }, [{ kind: "presence" }]],
])("a principal %j", (given, wanted) => {
  const found = principalsOf([given]);
  expect(found).toHaveLength(wanted.length);
  expect(found).toEqual(expect.arrayContaining(wanted));
});

test("nothing changes in a mesh that is called cluster.local and has no alias", () => {
  expect(principalsOf([exact("cluster.local/ns/shop/sa/web")], ["cluster.local"])).toEqual([
    exact("cluster.local/ns/shop/sa/web"),
  ]);
});

test("identities under aliases: each once, and what is no SPIFFE id alone", () => {
  expect(withAliases(["spiffe://a/ns/x/sa/y", "spiffe://b/ns/x/sa/y", "web.example"], ["b", "c"])).toEqual([
    "spiffe://a/ns/x/sa/y",
    "spiffe://b/ns/x/sa/y",
    "spiffe://c/ns/x/sa/y",
    "web.example",
  ]);
  expect(withAliases(["spiffe://a/ns/x/sa/y"], [])).toEqual(["spiffe://a/ns/x/sa/y"]);
});
