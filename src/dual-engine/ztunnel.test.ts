/**
 * The choice of a workload, waypoint or gateway, case by case as ztunnel makes it (its src/state.rs, src/state/service.rs and
 * src/proxy/outbound.rs), and where kmesh differs.
 */
import { describe, expect, test } from "bun:test";
import type { Cluster } from "../mesh/model.ts";
import { workload } from "./records/workload.gen.js";
import { bytesOf, Fixture, HERE, pod, service } from "./testdata/resources.ts";

const { Mode, Scope, HealthPolicy } = workload.LoadBalancing;
const { TunnelProtocol, WorkloadStatus } = workload;
const A = "outbound|80||a.shop";
const gatewayOf = (address: string, network: string, hboneMtlsPort = 15008) => ({
  ...{ address: { network, address: bytesOf(address) }, hboneMtlsPort },
});
const spiffe = (account: string, namespace = "shop") =>
  `spiffe://cluster.local/ns/${namespace}/sa/${account}`;

/** The addresses of the first rank with a healthy workload: ztunnel chooses among these. */
function chosen(cluster: Cluster | undefined): string[] {
  const healthy = (cluster?.localities ?? []).flatMap(({ priority, endpoints }) =>
    endpoints.toJSON().flatMap(({ address, healthy: up }) => (up ? [{ priority, address }] : [])),
  );
  const best = Math.min(...healthy.map(({ priority }) => priority));
  return healthy.flatMap(({ priority, address }) => (priority === best ? [address] : [])).sort();
}

describe("ranks by network, region and zone", () => {
  const [MATCH, ALMOST, NOWHERE, OTHER] = ["192.168.0.2", "192.168.0.3", "192.168.0.1", "192.168.0.9"];
  const locality = (region: string, zone: string) => ({ locality: { region, zone } });
  /** Four workloads; the one of another network is behind the gateway 192.168.0.9, one has no address. */
  const resources = (mode: workload.LoadBalancing.Mode, more: Record<string, unknown> = {}) => [
    service("a", {
      ...{ addresses: ["10.96.0.1"], network: "net" },
      loadBalancing: { mode, routingPreference: [Scope.NETWORK, Scope.REGION, Scope.ZONE], ...more },
    }),
    pod("no-locality", { addresses: [NOWHERE], network: "net" }),
    pod("match", { addresses: [MATCH], network: "net", ...locality("reg", "zone") }),
    pod("almost", { addresses: [ALMOST], network: "net", ...locality("reg", "other") }),
    pod("other", {
      ...{ addresses: ["192.168.0.5"], network: "far", ...locality("reg", "zone") },
      networkGateway: gatewayOf(OTHER, "far"),
    }),
    pod("gateway", { addresses: [OTHER], network: "far", services: {} }),
    pod("no-address", { network: "net", ...locality("reg", "zone") }),
  ];
  const from = (network: string, region: string, zone: string, mode = Mode.FAILOVER) =>
    chosen(
      new Fixture({ here: { ...HERE, network, region, zone } }).push(...resources(mode)).mesh.clusters.get(A),
    );
  const cases: [what: string, from: [string, string, string, workload.LoadBalancing.Mode?], to: string[]][] =
    [
      ["strict, nothing matches", ["net", "x", "x", Mode.STRICT], []],
      ["strict, another network", ["far", "reg", "zone", Mode.STRICT], ["192.168.0.5"]],
      ["strict, all match", ["net", "reg", "zone", Mode.STRICT], [MATCH]],
      ["network, region and zone", ["net", "reg", "zone"], [MATCH]],
      ["network and region", ["net", "reg", ""], [ALMOST, MATCH].sort()],
      ["network alone: no region is as good as another", ["net", "x", "x"], [NOWHERE, ALMOST, MATCH].sort()],
      [
        "no scope was given: all of them",
        ["net", "reg", "zone", Mode.UNSPECIFIED_MODE],
        [NOWHERE, ALMOST, MATCH, OTHER].sort(),
      ],
    ];
  for (const [what, place, wanted] of cases) test(what, () => expect(from(...place)).toEqual(wanted));

  test("of other networks the nearest by the scopes after the network", () => {
    const behind = (uid: string, gateway: string, zone: string) =>
      pod(uid, {
        ...{ addresses: ["192.168.1.1"], network: `net-${uid}`, ...locality("reg", zone) },
        networkGateway: gatewayOf(gateway, `net-${uid}`),
      });
    const fixture = new Fixture({ here: { ...HERE, network: "here", region: "reg", zone: "zone" } }).push(
      service("a", {
        ...{ addresses: ["10.96.0.1"], network: "here" },
        loadBalancing: { mode: Mode.FAILOVER, routingPreference: [Scope.NETWORK, Scope.REGION, Scope.ZONE] },
      }),
      behind("n1", "10.9.0.1", "zone"),
      behind("n2", "10.9.0.2", "elsewhere"),
      pod("g1", { addresses: ["10.9.0.1"], network: "net-n1", services: {} }),
      pod("g2", { addresses: ["10.9.0.2"], network: "net-n2", services: {} }),
    );
    expect(chosen(fixture.mesh.clusters.get(A))).toEqual(["10.9.0.1"]);
    // One of this network goes before them, wherever it is.
    fixture.push(pod("p", { addresses: ["10.1.0.1"], network: "here", ...locality("far", "far") }));
    expect(chosen(fixture.mesh.clusters.get(A))).toEqual(["10.1.0.1"]);
    const priorities = fixture.mesh.clusters.get(A)?.localities.map(({ priority }) => priority);
    expect(priorities).toEqual([2, 3, 4]);
  });

  test("an unhealthy workload is never chosen, unless the service takes all", () => {
    const down = pod("match", {
      addresses: [MATCH],
      network: "net",
      ...locality("reg", "zone"),
      status: WorkloadStatus.UNHEALTHY,
    });
    const here = { ...HERE, network: "net", region: "reg", zone: "zone" };
    const fixture = new Fixture({ here }).push(...resources(Mode.FAILOVER), down);
    expect(chosen(fixture.mesh.clusters.get(A))).toEqual([ALMOST]);
    fixture.push(...resources(Mode.FAILOVER, { healthPolicy: HealthPolicy.ALLOW_ALL }), down);
    expect(chosen(fixture.mesh.clusters.get(A))).toEqual([MATCH]);
  });

  test("no workload at all: the service refuses, and is not passed through", () => {
    const fixture = new Fixture().push(service("a", { addresses: ["10.96.0.1"] }));
    expect(fixture.mesh.clusters.get(A)).toMatchObject({ kind: "endpoints", localities: [], pending: false });
  });
});

describe("ports", () => {
  const target = (own: Record<number, number>, services: Record<number, number>) =>
    new Fixture()
      .push(
        service("a", { addresses: ["10.96.0.1"], ports: services }),
        pod("p", { addresses: ["10.1.0.1"], services: { "shop/a.shop": own } }),
      )
      .endpoints(A);
  test("the workload's own number goes before the service's", () => {
    expect(target({ 80: 9000 }, { 80: 8000 })).toEqual(["10.1.0.1:9000"]);
    expect(target({}, { 80: 8000 })).toEqual(["10.1.0.1:8000"]);
    expect(target({}, { 80: 0 })).toEqual([]);
  });
});

describe("which of several services an address belongs to", () => {
  const owner = (...resources: [string, Uint8Array][]) =>
    new Fixture().push(...resources).mesh.frontends.get("tcp 10.96.0.1:80")?.service;
  const at = { addresses: ["10.96.0.1"] };
  const [first, ours, canonical] = [
    service("b", { ...at, namespace: "alpha" }),
    service("z", { ...at, namespace: "shop" }),
    service("c", { ...at, namespace: "beta", canonical: true }),
  ];
  test("the one of this machine's namespace, then the canonical one, then the first", () => {
    expect(owner(first, ours, canonical)).toBe("z.shop:80");
    expect(owner(first, canonical)).toBe("c.shop:80");
    expect(owner(first, service("c", { ...at, namespace: "beta" }))).toBe("b.shop:80");
  });

  test("one that becomes canonical takes it over; one that is only for its namespace has none here", () => {
    const fixture = new Fixture().push(first, service("c", { ...at, namespace: "beta" }));
    fixture.push(canonical);
    expect(fixture.mesh.frontends.get("tcp 10.96.0.1:80")?.service).toBe("c.shop:80");
    fixture.push(
      service("c", { ...at, namespace: "beta", canonical: true, visibility: workload.Visibility.NAMESPACE }),
    );
    expect(fixture.mesh.frontends.get("tcp 10.96.0.1:80")?.service).toBe("b.shop:80");
    expect([...fixture.mesh.names.keys()]).toEqual(["b.shop"]);
    const own = service("z", { ...at, visibility: workload.Visibility.NAMESPACE });
    expect(owner(first, own)).toBe("z.shop:80");
    expect(owner(service("b", { ...at, namespace: "alpha", visibility: 7 as workload.Visibility }))).toBe(
      "b.shop:80",
    );
  });
});

describe("waypoints", () => {
  const [one, two] = [gatewayOf("10.0.0.1", ""), gatewayOf("10.0.0.2", "")];
  const waypoints = [
    pod("w1", { addresses: ["10.0.0.1"], services: {} }),
    pod("w2", { addresses: ["10.0.0.2"], services: {} }),
  ];
  const weights = (...of: [typeof one, number][]) => {
    const { mesh } = new Fixture().push(
      service("a", {
        ...{ addresses: ["10.96.0.1"], waypoint: one },
        weightedWaypoints: of.map(([destination, weight]) => ({ destination, weight })),
      }),
      ...waypoints,
    );
    const shares = mesh.splits.get("shop/a.shop 80")?.shares;
    const to = (name: string) => mesh.clusters.get(name)?.localities[0]?.endpoints.toJSON()[0]?.address;
    return shares ? shares.map(({ cluster, weight }) => [to(cluster), weight]) : [[to(A), 1]];
  };
  test("by weight; one of weight 0 gets nothing; all of weight 0: the single one", () => {
    expect(weights([one, 75], [two, 25])).toEqual([
      ["10.0.0.1", 75],
      ["10.0.0.2", 25],
    ]);
    expect(weights([one, 100], [two, 0])).toEqual([["10.0.0.1", 1]]);
    expect(weights([one, 0], [two, 100])).toEqual([["10.0.0.2", 1]]);
    expect(weights([one, 0], [two, 0])).toEqual([["10.0.0.1", 1]]);
    expect(weights()).toEqual([["10.0.0.1", 1]]);
  });

  test("by the address of a service, whose workloads say the port", () => {
    const fixture = new Fixture().push(
      service("a", { addresses: ["10.96.0.1"], waypoint: gatewayOf("10.96.0.9", "") }),
      service("wp", { addresses: ["10.96.0.9"], ports: { 15008: 0 }, waypoint: gatewayOf("10.96.0.9", "") }),
      pod("w", { addresses: ["10.1.0.9"], services: { "shop/wp.shop": { 15008: 16008 } } }),
    );
    expect(fixture.endpoints(A)).toEqual(["10.1.0.9:16008"]);
    // The waypoint's own service does not go through it.
    expect(fixture.mesh.clusters.get("outbound|15008||wp.shop")?.transports).toEqual([]);
  });

  test("by the hostname of a workload", () => {
    const waypoint = { hostname: { namespace: "shop", hostname: "wp.example" }, hboneMtlsPort: 15008 };
    const fixture = new Fixture({
      lookup: (_host, family) => Promise.resolve({ addresses: family === 4 ? ["192.0.2.1"] : [], ttl: 60 }),
    }).push(
      service("a", { addresses: ["10.96.0.1"], waypoint }),
      pod("w", { hostname: "wp.example", services: {} }),
    );
    expect(fixture.mesh.clusters.get(A)).toMatchObject({ kind: "endpoints", pending: true });
    fixture.engine.close();
  });

  test("in another network: HBONE to it inside HBONE to its gateway; without a gateway it refuses", () => {
    const waypoint = { hostname: { namespace: "shop", hostname: "wp.shop" }, hboneMtlsPort: 15008 };
    const instance = (more: Record<string, unknown>) =>
      pod("w", {
        addresses: ["10.1.0.9"],
        network: "far",
        serviceAccount: "wp",
        services: { "shop/wp.shop": { 15008: 15008 } },
        ...more,
      });
    const fixture = new Fixture({ here: { ...HERE, network: "here" } }).push(
      service("a", { addresses: ["10.96.0.1"], network: "here", waypoint }),
      service("wp", { ports: { 15008: 15008 }, subjectAltNames: [spiffe("other-wp")] }),
      pod("p", {
        addresses: ["10.1.0.1"],
        network: "here",
        waypoint,
        services: { "shop/a.shop": { 80: 8080 } },
      }),
      instance({}),
    );
    expect(fixture.mesh.clusters.get(A)).toMatchObject({ kind: "refuse", reason: "no-endpoint" });
    fixture.push(
      instance({ networkGateway: gatewayOf("192.0.2.9", "far", 15443) }),
      pod("g", {
        addresses: ["192.0.2.9"],
        network: "far",
        namespace: "istio-system",
        serviceAccount: "gw",
        services: {},
      }),
    );
    expect(fixture.endpoints(A)).toEqual(["192.0.2.9:15443"]);
    expect(fixture.mesh.clusters.get(A)?.transports).toEqual([
      {
        ...{ kind: "hbone", authority: "a.shop:80", port: 15443 },
        sans: [{ kind: "exact", value: spiffe("gw", "istio-system") }],
        inner: {
          authority: "a.shop:80",
          sans: [
            { kind: "exact", value: spiffe("wp") },
            { kind: "exact", value: spiffe("other-wp") },
          ],
        },
      },
    ]);
    // A workload that is addressed itself has no name in the other network.
    expect(fixture.mesh.clusters.get("outbound|8080|10.1.0.1|a.shop")).toMatchObject({ kind: "refuse" });
    fixture.push(
      pod("g", { addresses: ["192.0.2.9"], network: "far", status: WorkloadStatus.UNHEALTHY, services: {} }),
    );
    expect(fixture.mesh.clusters.get(A)).toMatchObject({ kind: "refuse", reason: "no-endpoint" });
  });
});

describe("workloads of another network", () => {
  const here = { ...HERE, network: "here" };
  const behind = (more: Record<string, unknown> = {}) =>
    pod("far/SplitHorizonWorkload/gw/shop/a.shop", {
      ...{ network: "far", tunnelProtocol: TunnelProtocol.HBONE, capacity: 3 },
      networkGateway: gatewayOf("192.0.2.9", "far"),
      ...more,
    });
  const gateway = (more: Record<string, unknown> = {}) =>
    pod("NetworkGateway/far/192.0.2.9/15008", {
      ...{
        addresses: ["192.0.2.9"],
        network: "far",
        namespace: "istio-system",
        serviceAccount: "gw",
        services: {},
      },
      ...more,
    });
  const a = (subjectAltNames: string[]) =>
    service("a", { addresses: ["10.96.0.1"], network: "here", subjectAltNames });
  const notes = (fixture: Fixture) =>
    (fixture.mesh.services.get("a.shop:80")?.notes ?? []).map(({ text }) => text);

  test("one that stands for all of its network: the service's identities count, and not a default one", () => {
    const fixture = new Fixture({ here }).push(a([spiffe("web"), spiffe("db")]), behind(), gateway());
    expect(fixture.endpoints(A)).toEqual(["192.0.2.9:15008"]);
    expect(fixture.mesh.clusters.get(A)?.transports).toMatchObject([
      {
        ...{ authority: "a.shop:80", sans: [{ value: spiffe("gw", "istio-system") }] },
        inner: { sans: [{ value: spiffe("web") }, { value: spiffe("db") }] },
      },
    ]);
  });

  test("without any identity it is left out: no certificate would be checked", () => {
    const fixture = new Fixture({ here }).push(a([]), behind(), gateway());
    expect(fixture.endpoints(A)).toEqual([]);
    expect(notes(fixture)).toEqual([
      "workloads behind gateway 192.0.2.9 are left out: istiod gives no identity of them",
    ]);
  });

  test("the gateway comes later, becomes unhealthy, and goes", () => {
    const fixture = new Fixture({ here }).push(a([spiffe("web")]), behind());
    expect(notes(fixture)).toEqual([
      "workloads behind gateway 192.0.2.9 are left out: it has no healthy instance",
    ]);
    fixture.push(gateway());
    expect(fixture.endpoints(A)).toEqual(["192.0.2.9:15008"]);
    fixture.push(gateway({ status: WorkloadStatus.UNHEALTHY }));
    expect(fixture.endpoints(A)).toEqual([]);
    fixture.push(gateway({ serviceAccount: "new" }));
    expect(fixture.mesh.clusters.get(A)?.transports).toMatchObject([
      { sans: [{ value: spiffe("new", "istio-system") }] },
    ]);
    fixture.remove("NetworkGateway/far/192.0.2.9/15008");
    expect(fixture.endpoints(A)).toEqual([]);
  });

  test("a gateway known by a name: its addresses are looked up", async () => {
    const asked: string[] = [];
    const fixture = new Fixture({
      here,
      lookup: (host, family) => {
        asked.push(host);
        return Promise.resolve({ addresses: family === 4 ? ["192.0.2.7"] : [], ttl: 60 });
      },
    });
    const named = { hostname: { namespace: "istio-system", hostname: "gw.example" }, hboneMtlsPort: 15008 };
    fixture.push(
      a([spiffe("web")]),
      behind({ networkGateway: named }),
      gateway({ addresses: [], hostname: "gw.example" }),
    );
    for (let i = 0; i < 100 && fixture.published.length < 2; i++) await Bun.sleep(5);
    expect(fixture.endpoints(A)).toEqual(["192.0.2.7:15008"]);
    expect(asked).toContain("gw.example");
    fixture.engine.close();
  });

  test("in this machine's own network a gateway is not used", () => {
    const own = pod("p", {
      addresses: ["10.1.0.1"],
      network: "here",
      networkGateway: gatewayOf("192.0.2.9", "here"),
    });
    expect(new Fixture({ here }).push(a([]), own, gateway()).endpoints(A)).toEqual(["10.1.0.1:8080"]);
  });

  test("without a tunnel they are refused, also where plaintext is allowed", () => {
    const fixture = new Fixture({ here, tunnel: false, allowPlaintext: true }).push(
      a([spiffe("web")]),
      behind(),
      gateway(),
    );
    expect(fixture.mesh.clusters.get(A)).toMatchObject({ kind: "refuse", reason: "tls-required" });
  });
});
