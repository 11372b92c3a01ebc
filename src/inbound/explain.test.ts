import { describe, expect, test } from "bun:test";
import type { Inbound } from "../mesh/inbound.ts";
import { explainPeerBy } from "./explain.ts";

/** Web of both trust domains of the mesh is allowed, as istiod writes a policy where a mesh has an alias. */
const inbound: Inbound = {
  ports: [8080],
  mtls: { default: "strict", ports: [] },
  policies: [
    {
      name: "shop/web",
      action: "allow",
      rules: [
        {
          name: "rule[0]",
          when: {
            kind: "principal",
            match: ["cluster.local", "old.example"].map((domain) => ({
              kind: "exact",
              value: `${domain}/ns/shop/sa/web`,
            })),
          },
        },
      ],
    },
  ],
  trustDomains: ["cluster.local", "old.example"],
};

describe("a peer by its identity", () => {
  const explain = (
    from: string,
    more: Partial<Inbound> = {},
    trustDomain: string | undefined = "cluster.local",
  ) => {
    const basis = { inbound: { ...inbound, ...more }, enforced: true, trustDomain };
    const { decision, why } = explainPeerBy(basis, from, "8080");
    return { ...decision, why: why.join("\n") };
  };

  test("of the machine's own trust domain is judged by the policies", () => {
    expect(explain("spiffe://cluster.local/ns/shop/sa/web")).toMatchObject({
      allowed: true,
      policy: "shop/web",
    });
    expect(explain("cluster.local/ns/shop/sa/mallory")).toMatchObject({
      allowed: false,
      reason: "no-allow-matched",
      why: expect.stringContaining("cluster.local is this machine's trust domain"),
    });
  });

  test("of an alias, too", () => {
    expect(explain("old.example/ns/shop/sa/web")).toMatchObject({
      allowed: true,
      reason: "allowed",
      why: expect.stringContaining("istiod names old.example as a trust domain of the mesh"),
    });
    expect(explain("old.example/ns/shop/sa/mallory").reason).toBe("no-allow-matched");
  });

  test("of another one is refused by the tunnel, whatever the policies say", () => {
    const refused = {
      allowed: false,
      reason: "wrong-san",
      why: expect.stringContaining(
        "elsewhere.example is none of the mesh's trust domains (cluster.local, old.example)",
      ),
    };
    expect(explain("elsewhere.example/ns/shop/sa/web")).toMatchObject(refused);
    expect(explain("elsewhere.example/ns/shop/sa/web", { policies: [] })).toMatchObject(refused);
    expect(explain("elsewhere.example/ns/shop/sa/web@10.0.0.7")).toMatchObject(refused);
    // Where istiod names none, the machine's own alone is let in.
    const { trustDomains: _, ...alone } = inbound;
    const basis = { inbound: alone, enforced: true, trustDomain: "cluster.local" };
    expect(explainPeerBy(basis, "old.example/ns/shop/sa/web", "8080").decision.reason).toBe("wrong-san");
    expect(explainPeerBy(basis, "cluster.local/ns/shop/sa/web", "8080").decision.reason).toBe("allowed");
  });

  test("without a certificate of ours those that istiod names decide, and without those the policies alone", () => {
    expect(
      explainPeerBy({ inbound, enforced: true }, "elsewhere.example/ns/shop/sa/web", "8080").decision.reason,
    ).toBe("wrong-san");
    const { trustDomains: _, ...alone } = inbound;
    expect(
      explainPeerBy({ inbound: alone, enforced: true }, "old.example/ns/shop/sa/web", "8080").decision.reason,
    ).toBe("allowed");
  });

  test("at a port that is nobody's, and in plaintext, the trust domain says nothing", () => {
    expect(explain("elsewhere.example/ns/shop/sa/web", { ports: [] }).reason).toBe("not-governed");
    expect(explain("10.0.0.7").reason).toBe("strict");
  });
});
