import { expect, test } from "bun:test";
import type { Transport } from "../mesh/transport.ts";
import { carriedText, parseCarried, workloadText } from "./carried.ts";
import { parseWorkload } from "./labels.ts";

const exact = (value: string) => ({ kind: "exact" as const, value });
const ID = "spiffe://cluster.local/ns/shop/sa/cart";
const istio = (...values: string[]): Transport => ({ kind: "istio", sni: "s", sans: values.map(exact) });

test("a workload's text holds how it is reached, and reads as it did without", () => {
  const text = workloadText("cart-0;shop;cart;v1;Kubernetes", carriedText(istio(ID)));
  expect(parseCarried(text)).toEqual({ by: "istio", mutualTls: true, principal: ID });
  expect(parseWorkload(text)).toEqual({
    ...{ name: "cart-0", namespace: "shop", canonicalService: "cart" },
    ...{ canonicalRevision: "v1", cluster: "Kubernetes" },
  });
  // Kept from before, and without a workload.
  expect(workloadText(text, "hbone")).toBe("cart-0;shop;cart;v1;Kubernetes;hbone");
  expect(workloadText("", "tls")).toBe(";;;;;tls");
  for (const plain of ["", "cart-0;shop;cart;v1;Kubernetes", ";;;;;later-word x"])
    expect(parseCarried(plain)).toBeUndefined();
});

test.each<[string, Transport, string]>([
  ["several identities", istio(ID, `${ID}-2`), "istio"],
  ["any of the mesh", istio(), "istio"],
  ["a prefix", { kind: "istio", sni: "", sans: [{ kind: "prefix", value: "spiffe://m/" }] }, "istio"],
  ["a name that would end the text", istio("spiffe://m/a;b c"), "istio"],
  [
    "double HBONE: who is behind the gateway",
    {
      ...{ kind: "hbone", authority: "", port: 15008, sans: [exact("spiffe://m/ns/a/sa/gateway")] },
      inner: { authority: "", sans: [exact(ID)] },
    },
    `hbone ${ID}`,
  ],
  ["PROXY over TLS", { kind: "proxy-protocol", version: 2, over: istio(ID) }, `istio ${ID}`],
  ["PROXY alone", { kind: "proxy-protocol", version: 1 }, "proxy-protocol"],
])("%s", (_, transport, text) => {
  expect(carriedText(transport)).toBe(text);
});
