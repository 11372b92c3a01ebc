import { describe, expect, test } from "bun:test";
import { EndpointList } from "./endpoint-list.ts";
import type { Cluster, Frontend, Service, Split, Target } from "./model.ts";
import { sameCluster, sameFrontend, sameService, sameSplit, sameTarget } from "./same.ts";

function cluster(): Cluster {
  return {
    name: "c",
    service: "s:80",
    kind: "endpoints",
    reason: "none",
    port: 0,
    balance: { policy: "maglev", tableSize: 1021 },
    localities: [
      {
        region: "r",
        zone: "z",
        subzone: "",
        priority: 0,
        weight: 3,
        endpoints: EndpointList.of([{ address: "10.0.0.1", port: 80, weight: 1, healthy: true }]),
      },
    ],
    localityWeighted: false,
    overprovisioning: 140,
    panicThreshold: 0,
    maxConnections: 0,
    ejection: { after: 5, base: 30_000, longest: 300_000, percent: 10, enforcing: 100 },
    transports: [
      { kind: "istio", sni: "outbound_.80_._.c", sans: [{ kind: "exact", value: "spiffe://a/ns/b/sa/c" }] },
      {
        kind: "hbone",
        authority: "10.0.0.1:80",
        port: 15008,
        sans: [{ kind: "prefix", value: "spiffe://a/" }],
        inner: { authority: "a:80", sans: [{ kind: "suffix", value: "/sa/c" }] },
      },
      {
        kind: "tls",
        sni: "c",
        sans: [],
        roots: "/r",
        certificate: "/c",
        key: "/k",
        alpn: ["h2"],
      },
      { kind: "proxy-protocol", version: 1, over: { kind: "istio", sni: "s", sans: [] } },
    ],
    pending: false,
  };
}

/** Every leaf of a value, as a function that changes it. */
function changes(value: object, path: string[] = []): { path: string; apply: (root: object) => void }[] {
  return Object.entries(value).flatMap(([key, field]) => {
    const here = [...path, key];
    if (typeof field === "object" && field !== null) return changes(field, here);
    const apply = (root: object) => {
      let at = root as Record<string, unknown>;
      for (const step of path) at = at[step] as Record<string, unknown>;
      at[key] = typeof field === "boolean" ? !field : typeof field === "number" ? field + 1 : `${field}x`;
    };
    return [{ path: here.join("."), apply }];
  });
}

describe("a change of any field is seen", () => {
  const frontend = (): Frontend => ({
    match: { kind: "prefix", address: "10.0.0.0", length: 8, port: 80 },
    protocol: "tcp",
    service: "s:80",
    target: { kind: "cluster", cluster: "c" },
  });
  const service = (): Service => ({
    name: "s:80",
    host: "s",
    port: 80,
    notes: [{ kind: "layer7", text: "t" }],
  });
  const split = (): Split => ({ name: "p", shares: [{ cluster: "c", weight: 1 }] });
  const kinds: [string, () => object, (a: never, b: never) => boolean][] = [
    ["cluster", cluster, sameCluster],
    ["frontend", frontend, sameFrontend],
    ["service", service, sameService],
    ["split", split, sameSplit],
  ];
  for (const [kind, make, same] of kinds) {
    test(`${kind}: equal ones are the same`, () => {
      expect(same(make() as never, make() as never)).toBe(true);
    });
    for (const { path, apply } of changes(make())) {
      test(`${kind}.${path}`, () => {
        const other = make();
        apply(other);
        expect(same(make() as never, other as never)).toBe(false);
        expect(same(other as never, make() as never)).toBe(false);
      });
    }
  }

  test("more or fewer of anything", () => {
    const more = cluster();
    more.localities = [...more.localities, ...more.localities];
    expect(sameCluster(cluster(), more)).toBe(false);
    expect(sameCluster(cluster(), { ...cluster(), transports: cluster().transports.slice(1) })).toBe(false);
    expect(sameSplit(split(), { name: "p", shares: [] })).toBe(false);
    expect(sameService(service(), { ...service(), notes: [] })).toBe(false);
  });
});

test("targets of all kinds", () => {
  const targets: Target[] = [
    { kind: "cluster", cluster: "a" },
    { kind: "cluster", cluster: "b" },
    { kind: "split", split: "a" },
    { kind: "split", split: "b" },
    { kind: "passthrough" },
    { kind: "refuse", reason: "policy" },
    { kind: "refuse", reason: "undecidable" },
  ];
  for (const a of targets) for (const b of targets) expect(sameTarget(a, { ...b })).toBe(a === b);
});
