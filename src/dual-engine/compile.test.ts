import { describe, expect, test } from "bun:test";
import { MalformedResource } from "../istiod/stream/sink.ts";
import { envoy } from "../kernel-native/resources/envoy.gen.js";
import type { Transport } from "../mesh/transport.ts";
import { WorkloadIndex } from "../mesh/workload.ts";
import { decide } from "../policy/decide.ts";
import { security } from "../policy/security.gen.js";
import { workload } from "./records/workload.gen.js";
import { bytesOf, Fixture, HERE, pod, service } from "./testdata/resources.ts";

const { Mode, Scope, HealthPolicy } = workload.LoadBalancing;
const { TunnelProtocol, WorkloadStatus, NetworkMode } = workload;
const A = "outbound|80||a.shop";

function frontends(fixture: Fixture): Record<string, string> {
  return Object.fromEntries(
    [...fixture.mesh.frontends].map(([key, { service: name }]) => [key.replace("tcp ", ""), name]),
  );
}

function notes(fixture: Fixture, name = "a.shop:80"): string[] {
  return (fixture.mesh.services.get(name)?.notes ?? []).map(({ kind, text }) => `${kind}: ${text}`);
}

describe("mutual TLS of sidecars, of which EDS alone knows", () => {
  const pods = [
    service("a", { addresses: ["10.96.0.1"], ports: { 80: 0 } }),
    pod("p1", { addresses: ["10.1.0.1"], serviceAccount: "one", services: { "shop/a.shop": { 80: 8080 } } }),
    pod("p2", { addresses: ["10.1.0.2"], serviceAccount: "two", services: { "shop/a.shop": { 80: 8080 } } }),
  ];
  /** What istiod says of the endpoints at port 8080: those with mutual TLS. */
  const assignment = (tls: string[], plain: string[]) =>
    envoy.ClusterLoadAssignment.encode({
      clusterName: A,
      endpoints: [
        {
          lbEndpoints: [...tls, ...plain].map((address) => ({
            endpoint: { address: { socketAddress: { address, portValue: 8080 } } },
            metadata: {
              filterMetadata: tls.includes(address)
                ? { "envoy.transport_socket_match": { fields: { tlsMode: { stringValue: "istio" } } } }
                : {},
            },
          })),
        },
      ],
    }).finish();
  const carried = (fixture: Fixture) => {
    const { transports = [], localities = [] } = fixture.mesh.clusters.get(A) ?? {};
    return Object.fromEntries(
      localities.flatMap(({ endpoints }) =>
        endpoints.map(({ address, transport = 0 }) => [address, transports[transport - 1] ?? "plaintext"]),
      ),
    );
  };
  const istio = (account: string): Transport => ({
    kind: "istio",
    sni: "outbound_.80_._.a.shop",
    sans: [{ kind: "exact", value: `spiffe://cluster.local/ns/shop/sa/${account}` }],
  });

  test("each endpoint is reached as EDS says, with the identity that the workload has", () => {
    const fixture = new Fixture().push(...pods);
    expect([...fixture.engine.wanted("endpoints")]).toEqual([A]);
    expect([...fixture.engine.wanted("route")]).toEqual([]);
    expect(carried(fixture)).toEqual({ "10.1.0.1": "plaintext", "10.1.0.2": "plaintext" });
    fixture.engine.upsert("endpoints", A, assignment(["10.1.0.1"], ["10.1.0.2"]));
    fixture.push();
    expect(carried(fixture)).toEqual({ "10.1.0.1": istio("one"), "10.1.0.2": "plaintext" });
    fixture.engine.upsert("endpoints", A, assignment(["10.1.0.1", "10.1.0.2"], []));
    fixture.push();
    expect(carried(fixture)).toEqual({ "10.1.0.1": istio("one"), "10.1.0.2": istio("two") });
    fixture.engine.remove("endpoints", A);
    fixture.push();
    expect(carried(fixture)).toEqual({ "10.1.0.1": "plaintext", "10.1.0.2": "plaintext" });
  });

  test("nothing is asked of services that go, that a waypoint has, of whom all take HBONE, and without a tunnel", () => {
    const fixture = new Fixture().push(...pods);
    fixture.push(service("a", { addresses: ["10.96.0.1"], ports: { 80: 0, 81: 0 } }));
    expect(fixture.engine.wanted("endpoints").size).toBe(2);
    fixture.remove("shop/a.shop");
    expect(fixture.engine.wanted("endpoints").size).toBe(0);
    const hbone = pods.slice(1).map(([uid]) =>
      pod(uid, {
        ...{ addresses: ["10.1.0.1"], serviceAccount: "one", tunnelProtocol: TunnelProtocol.HBONE },
        services: { "shop/a.shop": { 80: 8080 } },
      }),
    );
    fixture.push(...pods.slice(0, 1), ...hbone);
    expect(fixture.engine.wanted("endpoints").size).toBe(0);
    expect(new Fixture({ tunnel: false }).push(...pods).engine.wanted("endpoints").size).toBe(0);
  });

  test("a malformed assignment is refused, and what was known stays", () => {
    const fixture = new Fixture().push(...pods);
    fixture.engine.upsert("endpoints", A, assignment(["10.1.0.1"], []));
    fixture.push();
    expect(() => fixture.engine.upsert("endpoints", A, Uint8Array.of(0x12, 9, 1))).toThrow(MalformedResource);
    fixture.push();
    expect(carried(fixture)["10.1.0.1"]).toEqual(istio("one"));
  });
});

test("aliases of the trust domain: peers and callers may be of one, and policies mean all of them", () => {
  const fixture = new Fixture({
    trustDomains: ["mesh.example", "an.example", "old.example"],
    self: { addresses: ["10.1.0.1"] },
  });
  const policy = security.Authorization.encode({
    name: "web",
    namespace: "shop",
    scope: 1,
    groups: [{ rules: [{ matches: [{ principals: [{ exact: "cluster.local/ns/shop/sa/web" }] }] }] }],
  }).finish();
  fixture.engine.upsert("authorization", "shop/web", policy);
  const of = { trustDomain: "mesh.example", tunnelProtocol: TunnelProtocol.HBONE, serviceAccount: "one" };
  fixture.push(
    service("a", { addresses: ["10.96.0.1"], ports: { 80: 8080 } }),
    pod("p1", { ...of, addresses: ["10.1.0.1"] }),
  );
  const sans = ["mesh", "an", "old"].map((domain) => `spiffe://${domain}.example/ns/shop/sa/one`);
  expect(fixture.mesh.clusters.get(A)?.transports).toEqual([
    { kind: "hbone", authority: "", port: 15008, sans: sans.map((value) => ({ kind: "exact", value })) },
  ]);
  const { inbound } = fixture.mesh;
  if (!inbound) throw new Error("the machine is no server");
  expect(inbound.trustDomains).toEqual(["an.example", "old.example"]);
  const allows = (trustDomain: string, serviceAccount = "web") =>
    decide(inbound, {
      ...{ sourceAddress: "10.1.0.2", destinationAddress: "10.1.0.1", destinationPort: 8080 },
      identity: { trustDomain, namespace: "shop", serviceAccount },
    }).allowed;
  expect(["mesh.example", "an.example", "old.example"].map((domain) => allows(domain))).toEqual([
    true,
    true,
    true,
  ]);
  expect([allows("cluster.local"), allows("old.example", "mallory")]).toEqual([false, false]);
});

describe("services and workloads", () => {
  test("a service's addresses lead to the ports that its workloads say", () => {
    const fixture = new Fixture().push(
      service("a", { addresses: ["10.96.0.1", "fd00::1"], ports: { 80: 0, 443: 8443 } }),
      pod("p1", { addresses: ["10.1.0.1"], services: { "shop/a.shop": { 80: 8080, 443: 8443 } } }),
      pod("p2", { addresses: ["10.1.0.2", "fd01::2"], services: { "shop/a.shop": { 80: 8081 } } }),
    );
    expect(frontends(fixture)).toEqual({
      "10.96.0.1:80": "a.shop:80",
      "[fd00::1]:80": "a.shop:80",
      "10.96.0.1:443": "a.shop:443",
      "[fd00::1]:443": "a.shop:443",
    });
    expect(fixture.endpoints(A)).toEqual([
      "10.1.0.1:8080",
      "10.1.0.2:8081",
      "[fd01::2]:8081".replace(/[[\]]/g, ""),
    ]);
    // A workload without an entry for the port has the service's number.
    expect(fixture.endpoints("outbound|443||a.shop")).toEqual([
      "10.1.0.1:8443",
      "10.1.0.2:8443",
      "fd01::2:8443",
    ]);
  });

  test("a workload that lacks a port with a name is no endpoint of it", () => {
    const fixture = new Fixture().push(
      service("a", { addresses: ["10.96.0.1"], ports: { 80: 0 } }),
      pod("p1", { addresses: ["10.1.0.1"], services: { "shop/a.shop": { 81: 8080 } } }),
    );
    expect(fixture.endpoints(A)).toEqual([]);
  });

  test("blocks, weights, health and the health policy", () => {
    const fixture = new Fixture().push(
      service("a", { addresses: ["10.97.0.7/24"] }),
      service("all", { addresses: ["10.96.0.2"], loadBalancing: { healthPolicy: HealthPolicy.ALLOW_ALL } }),
      pod("p1", {
        addresses: ["10.1.0.1"],
        capacity: 7,
        services: { "shop/a.shop": { 80: 1 }, "shop/all.shop": { 80: 1 } },
      }),
      pod("p2", {
        ...{ addresses: ["10.1.0.2"], status: WorkloadStatus.UNHEALTHY },
        services: { "shop/a.shop": { 80: 1 }, "shop/all.shop": { 80: 1 } },
      }),
    );
    expect(frontends(fixture)).toMatchObject({ "10.97.0.0/24:80": "a.shop:80" });
    const [locality] = fixture.mesh.clusters.get(A)?.localities ?? [];
    expect(locality?.endpoints.toJSON()).toEqual([
      { address: "10.1.0.1", port: 1, weight: 7, healthy: true },
      { address: "10.1.0.2", port: 1, weight: 1, healthy: false },
    ]);
    const [every] = fixture.mesh.clusters.get("outbound|80||all.shop")?.localities ?? [];
    expect(every?.endpoints.map(({ healthy }) => healthy)).toEqual([true, true]);
  });

  test("one workload changes: one cluster, nothing else; the same again: nothing at all", () => {
    const fixture = new Fixture().push(
      service("a", { addresses: ["10.96.0.1"] }),
      service("b", { addresses: ["10.96.0.2"] }),
      pod("p1", { addresses: ["10.1.0.1"] }),
    );
    fixture.push(pod("p1", { addresses: ["10.1.0.1"] }));
    expect(fixture.published).toHaveLength(1);
    fixture.push(pod("p1", { addresses: ["10.1.0.1"], status: WorkloadStatus.UNHEALTHY }));
    const changes = fixture.published[1];
    if (changes === undefined || changes.everything) throw new Error("no difference");
    expect([...changes.clusters]).toEqual([A]);
    expect(changes.frontends.size + changes.services.size + changes.splits.size + changes.names.size).toBe(0);
  });

  test("a workload before its service, and without it", () => {
    const fixture = new Fixture().push(pod("p1", { addresses: ["10.1.0.1"] }));
    expect(fixture.mesh.clusters.size).toBe(0);
    fixture.push(service("a", { addresses: ["10.96.0.1"] }));
    expect(fixture.endpoints(A)).toEqual(["10.1.0.1:8080"]);
    fixture.remove("shop/a.shop");
    expect([fixture.mesh.clusters.size, fixture.mesh.frontends.size, fixture.mesh.services.size]).toEqual([
      0, 0, 0,
    ]);
  });

  test("addresses of another network are none of ours, and that is said", () => {
    const fixture = new Fixture().push(service("a", { addresses: ["10.96.0.1"], network: "n2" }));
    expect(fixture.mesh.frontends.size).toBe(0);
    expect(fixture.mesh.notes.map(({ text }) => text)).toEqual([
      "1 service has addresses only in other networks: this machine has no network (setting network)",
    ]);
  });

  test("two services at one address: the first by name has it, the other says so", () => {
    const fixture = new Fixture().push(
      service("b", { addresses: ["10.96.0.1"] }),
      service("a", { addresses: ["10.96.0.1"] }),
    );
    expect(frontends(fixture)).toEqual({ "10.96.0.1:80": "a.shop:80" });
    expect(notes(fixture, "b.shop:80")).toEqual(["conflict: 10.96.0.1:80 belongs to a.shop:80"]);
    fixture.remove("shop/a.shop");
    expect(frontends(fixture)).toEqual({ "10.96.0.1:80": "b.shop:80" });
    expect(notes(fixture, "b.shop:80")).toEqual([]);
  });

  test("one host in two namespaces: ours has the name, the other's cluster its namespace", () => {
    const fixture = new Fixture().push(
      service("a", { addresses: ["10.96.0.1"], namespace: "aaa" }),
      service("a", { addresses: ["10.96.0.2"] }),
      pod("p1", { addresses: ["10.1.0.1"] }),
      pod("p2", { addresses: ["10.1.0.2"], services: { "aaa/a.shop": { 80: 8080 } } }),
    );
    expect(fixture.endpoints(A)).toEqual(["10.1.0.1:8080"]);
    expect(fixture.endpoints("outbound|80|aaa|a.shop")).toEqual(["10.1.0.2:8080"]);
    fixture.remove("shop/a.shop");
    expect(fixture.endpoints(A)).toEqual(["10.1.0.2:8080"]);
    expect(fixture.mesh.clusters.has("outbound|80|aaa|a.shop")).toBe(false);
  });

  test("the workload of an endpoint is known by its address", () => {
    const workloads = new WorkloadIndex();
    new Fixture({ workloads }).push(
      service("a", { addresses: ["10.96.0.1"] }),
      pod("p1", { addresses: ["10.1.0.1"], canonicalName: "a", canonicalRevision: "v1", clusterId: "k" }),
    );
    expect(workloads.find("10.1.0.1", 8080)).toBe("p1;shop;a;v1;k");
  });
});

describe("load balancing", () => {
  const near = { region: "r1", zone: "z1", subzone: "s1" };
  const pods = [
    pod("here", { addresses: ["10.1.0.1"], locality: near }),
    pod("zone", { addresses: ["10.1.0.2"], locality: { ...near, subzone: "s2" } }),
    pod("region", { addresses: ["10.1.0.3"], locality: { ...near, zone: "z2", subzone: "s1" } }),
    pod("far", { addresses: ["10.1.0.4"], locality: { ...near, region: "r2" } }),
  ];
  const scopes = [Scope.REGION, Scope.ZONE, Scope.SUBZONE];
  const priorities = (fixture: Fixture) =>
    Object.fromEntries(
      (fixture.mesh.clusters.get(A)?.localities ?? []).flatMap(({ priority, endpoints }) =>
        endpoints.map(({ address }) => [address, priority]),
      ),
    );

  test("FAILOVER: the scopes that match in order are the rank", () => {
    const loadBalancing = { mode: Mode.FAILOVER, routingPreference: scopes };
    const fixture = new Fixture().push(service("a", { addresses: ["10.96.0.1"], loadBalancing }), ...pods);
    expect(priorities(fixture)).toEqual({ "10.1.0.1": 0, "10.1.0.2": 1, "10.1.0.3": 2, "10.1.0.4": 3 });
  });

  test("STRICT: only what matches every scope; nothing here: nothing", () => {
    const loadBalancing = { mode: Mode.STRICT, routingPreference: [Scope.REGION, Scope.ZONE] };
    const fixture = new Fixture().push(service("a", { addresses: ["10.96.0.1"], loadBalancing }), ...pods);
    expect(priorities(fixture)).toEqual({ "10.1.0.1": 0, "10.1.0.2": 0 });
    const node = { mode: Mode.STRICT, routingPreference: [Scope.NODE] };
    const elsewhere = [pod("here", { addresses: ["10.1.0.1"], node: "n1" })];
    expect(
      priorities(
        new Fixture().push(service("a", { addresses: ["10.96.0.1"], loadBalancing: node }), ...elsewhere),
      ),
    ).toEqual({});
  });

  test("the locality of the machine's own workload counts, and its change is followed", () => {
    const loadBalancing = { mode: Mode.FAILOVER, routingPreference: [Scope.REGION] };
    const own = (region: string) =>
      pod("x/WorkloadEntry/shop/vm", { addresses: ["10.0.0.9"], locality: { region }, services: {} });
    const fixture = new Fixture({ self: { addresses: ["10.0.0.9"], entry: "vm" } });
    fixture.push(service("a", { addresses: ["10.96.0.1"], loadBalancing }), ...pods, own("r2"));
    expect(priorities(fixture)).toMatchObject({ "10.1.0.1": 1, "10.1.0.4": 0 });
    fixture.push(own("r1"));
    expect(priorities(fixture)).toMatchObject({ "10.1.0.1": 0, "10.1.0.4": 1 });
  });

  test("PASSTHROUGH: the address that the app asked for; an address that istiod made up is refused", () => {
    const loadBalancing = { mode: Mode.PASSTHROUGH };
    const fixture = new Fixture().push(
      service("a", { addresses: ["10.97.0.0/24"], loadBalancing }),
      service("b", { addresses: ["240.240.0.3"], loadBalancing }),
    );
    expect(fixture.mesh.clusters.get(A)?.kind).toBe("passthrough");
    expect(fixture.mesh.clusters.get("outbound|80||b.shop")).toMatchObject({
      kind: "refuse",
      reason: "undecidable",
    });
  });
});

describe("tunnels", () => {
  const hbone = { tunnelProtocol: TunnelProtocol.HBONE, serviceAccount: "web" };
  const sans = [{ kind: "exact" as const, value: "spiffe://cluster.local/ns/shop/sa/web" }];

  test("a workload that takes HBONE gets a transport with its identity; also when it is addressed itself", () => {
    const fixture = new Fixture().push(
      service("a", { addresses: ["10.96.0.1"] }),
      pod("p1", { addresses: ["10.1.0.1"], ...hbone }),
      pod("p2", { addresses: ["10.1.0.2"] }),
      pod("host", { addresses: ["10.1.0.3"], ...hbone, networkMode: NetworkMode.HOST_NETWORK }),
    );
    const cluster = fixture.mesh.clusters.get(A);
    expect(cluster?.transports).toEqual([{ kind: "hbone", authority: "", port: 15008, sans }]);
    expect(cluster?.localities[0]?.endpoints.map(({ transport }) => transport ?? 0)).toEqual([1, 0, 1]);
    expect(frontends(fixture)).toEqual({ "10.96.0.1:80": "a.shop:80", "10.1.0.1:8080": "a.shop:80" });
    expect(fixture.mesh.clusters.get("outbound|8080|10.1.0.1|a.shop")?.transports).toEqual([
      { kind: "hbone", authority: "", port: 15008, sans },
    ]);
    fixture.push(pod("p1", { addresses: ["10.1.0.1"] }));
    expect(frontends(fixture)).toEqual({ "10.96.0.1:80": "a.shop:80" });
  });

  test("without a tunnel: left out, refused when nobody else is left, plaintext when that is allowed", () => {
    const resources = [
      service("a", { addresses: ["10.96.0.1"] }),
      pod("p1", { addresses: ["10.1.0.1"], ...hbone }),
    ];
    const without = new Fixture({ tunnel: false }).push(...resources);
    expect(without.mesh.clusters.get(A)).toMatchObject({ kind: "refuse", reason: "tls-required" });
    without.push(pod("p2", { addresses: ["10.1.0.2"] }));
    expect(without.endpoints(A)).toEqual(["10.1.0.2:8080"]);
    expect(notes(without).join()).toContain("1 workload takes only connections through a tunnel");
    const allowed = new Fixture({ tunnel: false, allowPlaintext: true }).push(...resources);
    expect(allowed.endpoints(A)).toEqual(["10.1.0.1:8080"]);
    expect(notes(allowed).join()).toContain("plaintext: workloads take a tunnel");
  });

  const waypoint = { hostname: { namespace: "shop", hostname: "wp.shop" }, hboneMtlsPort: 15008 };
  const waypointPod = (status = WorkloadStatus.HEALTHY) =>
    pod("wp-1", {
      addresses: ["10.1.0.8"],
      serviceAccount: "wp",
      status,
      services: { "shop/wp.shop": { 15008: 15008 } },
    });

  test("a waypoint's instances stand for the service, and with none healthy it refuses: never past it", () => {
    const fixture = new Fixture({ allowPlaintext: true }).push(
      service("a", { addresses: ["10.96.0.1"], waypoint }),
      pod("p1", { addresses: ["10.1.0.1"] }),
    );
    expect(fixture.mesh.clusters.get(A)).toMatchObject({ kind: "refuse", reason: "no-endpoint" });
    expect(notes(fixture)).toEqual([
      "refused: waypoint shop/wp.shop has no healthy instance that this machine can reach",
    ]);
    // The service of a waypoint carries itself when its namespace has the label.
    fixture.push(
      service("wp", { addresses: ["10.96.0.8"], ports: { 15008: 15008 }, waypoint }),
      waypointPod(),
    );
    expect(fixture.endpoints(A)).toEqual(["10.1.0.8:15008"]);
    expect(fixture.mesh.clusters.get(A)?.transports).toEqual([
      {
        ...{ kind: "hbone", authority: "10.96.0.1:80", port: 15008 },
        sans: [{ kind: "exact", value: "spiffe://cluster.local/ns/shop/sa/wp" }],
      },
    ]);
    expect(fixture.mesh.clusters.get("outbound|15008||wp.shop")?.transports).toEqual([]);
    expect(fixture.engine.status().waypoints).toEqual([{ name: "shop/wp.shop", services: 1 }]);
    fixture.push(waypointPod(WorkloadStatus.UNHEALTHY));
    expect(fixture.mesh.clusters.get(A)).toMatchObject({ kind: "refuse", reason: "no-endpoint" });
  });

  test("waypoints by address, of a workload, weighted, and without a tunnel", () => {
    const byAddress = { address: { address: bytesOf("10.96.0.8") }, hboneMtlsPort: 15009 };
    const fixture = new Fixture().push(
      service("wp", { addresses: ["10.96.0.8"], ports: { 15008: 15008 } }),
      waypointPod(),
      service("a", { addresses: ["10.96.0.1"], waypoint: byAddress }),
      service("b", {
        addresses: ["10.96.0.2"],
        weightedWaypoints: [
          { destination: waypoint, weight: 80 },
          { destination: byAddress, weight: 20 },
        ],
      }),
      pod("p1", { addresses: ["10.1.0.1"], waypoint, services: { "shop/h.shop": { 90: 9090 } } }),
      service("h", { ports: { 90: 9090 } }),
    );
    expect(fixture.endpoints(A)).toEqual(["10.1.0.8:15009"]);
    expect(fixture.mesh.splits.get("shop/b.shop 80")?.shares).toEqual([
      { cluster: "outbound|80|shop/wp.shop|b.shop", weight: 80 },
      { cluster: "outbound|80|10.96.0.8|b.shop", weight: 20 },
    ]);
    expect(frontends(fixture)).toMatchObject({ "10.1.0.1:9090": "h.shop:90" });
    const direct = fixture.mesh.clusters.get("outbound|9090|10.1.0.1|h.shop");
    expect(direct?.transports).toMatchObject([{ authority: "10.1.0.1:9090", port: 15008 }]);
    const without = new Fixture({ tunnel: false, allowPlaintext: true }).push(
      service("a", { addresses: ["10.96.0.1"], waypoint }),
    );
    expect(without.mesh.clusters.get(A)).toMatchObject({ kind: "refuse", reason: "tls-required" });
  });

  test("workloads of another network are one endpoint, their gateway, with HBONE inside HBONE", () => {
    const gateway = { hostname: { namespace: "istio-system", hostname: "gw" }, hboneMtlsPort: 15008 };
    const remote = (uid: string) =>
      pod(uid, { addresses: ["10.1.0.1"], network: "n2", networkGateway: gateway, capacity: 2, ...hbone });
    const fixture = new Fixture({ here: { ...HERE, network: "n1" } }).push(
      service("a", { addresses: ["10.96.0.1"], network: "n1" }),
      remote("r1"),
      remote("r2"),
      service("gw", { namespace: "istio-system", hostname: "gw", ports: { 15008: 15008 } }),
      pod("gw-1", {
        addresses: ["10.9.0.1"],
        network: "n1",
        serviceAccount: "gw",
        services: { "istio-system/gw": { 15008: 15008 } },
      }),
    );
    const cluster = fixture.mesh.clusters.get(A);
    expect(cluster?.localities[0]?.endpoints.toJSON()).toEqual([
      { address: "10.9.0.1", port: 15008, weight: 4, healthy: true, transport: 1 },
    ]);
    expect(cluster?.transports).toMatchObject([
      {
        kind: "hbone",
        authority: "a.shop:80",
        sans: [{ value: "spiffe://cluster.local/ns/shop/sa/gw" }],
        inner: { authority: "a.shop:80", sans },
      },
    ]);
    fixture.push(pod("r1", { addresses: ["10.1.0.1"], network: "n2" })).remove("r2");
    expect(fixture.endpoints(A)).toEqual([]);
    const gatewayTo = (network: string) =>
      `istiod knows no gateway to ${network} (a Gateway with the label topology.istio.io/network: ${network} and a listener of protocol HBONE)`;
    expect(notes(fixture)).toEqual([
      `refused: 1 workload of network n2 can't be reached: this machine is in n1, and ${gatewayTo("n2")}`,
    ]);
    // Others are reached.
    fixture.push(
      pod("r2", { addresses: ["10.1.0.2"], network: "n1" }),
      pod("r3", { addresses: ["10.1.0.3"], network: "n3" }),
      pod("r4", { addresses: ["10.1.0.4"], network: "n3" }),
      pod("r5", { addresses: ["10.1.0.5"] }),
    );
    expect(fixture.endpoints(A)).toEqual(["10.1.0.2:8080"]);
    expect(notes(fixture)).toEqual([
      "not-enforced: 1 workload of network n2 can't be reached: this machine is in n1, and " +
        gatewayTo("n2"),
      "not-enforced: 1 workload of no network can't be reached: this machine is in n1",
      "not-enforced: 2 workloads of network n3 can't be reached: this machine is in n1, and " +
        gatewayTo("n3"),
    ]);
  });
});

test("workloads known by a name: its addresses are looked up, and until then the kernel's stay", async () => {
  const answers = new Map([["db.example", ["192.0.2.7"]]]);
  const fixture = new Fixture({
    lookup: (host, family) =>
      Promise.resolve({ addresses: family === 4 ? (answers.get(host) ?? []) : [], ttl: 60 }),
  });
  fixture.push(service("a", { addresses: ["10.96.0.1"] }), pod("dns", { hostname: "db.example" }));
  expect(fixture.mesh.clusters.get(A)?.pending).toBe(true);
  for (let i = 0; i < 100 && fixture.published.length < 2; i++) await Bun.sleep(5);
  expect(fixture.endpoints(A)).toEqual(["192.0.2.7:8080"]);
  expect(fixture.mesh.clusters.get(A)?.pending).toBe(false);
  fixture.engine.close();
});

test("istiod gives a workload without labels every policy with a selector: that is said", () => {
  const own = pod("x/WorkloadEntry/shop/vm", {
    services: {},
    authorizationPolicies: ["shop/p", "shop/converted_x"],
  });
  const said = (labelled: boolean) =>
    new Fixture({ self: { addresses: [], entry: "vm", labelled } })
      .push(own)
      .mesh.notes.map(({ text }) => text);
  expect(said(true)).toEqual([]);
  expect(said(false).join()).toEndWith("every policy with a selector, as here: shop/p");
});

test("a push waits for the policies of the machine's own workload that changed with it, and for no others", () => {
  const fixture = new Fixture({ self: { addresses: [], entry: "vm" } });
  const { engine } = fixture;
  const policy = (name: string) => {
    const message = security.Authorization.create({ namespace: "shop", name, scope: 2, action: 1 });
    engine.upsert("authorization", `shop/${name}`, security.Authorization.encode(message).finish());
  };
  const own = (...names: string[]) =>
    engine.upsert(
      "address",
      ...pod("x/WorkloadEntry/shop/vm", {
        services: {},
        authorizationPolicies: names.map((name) => `shop/${name}`),
      }),
    );
  own();
  expect(engine.awaitsPolicies).toBe(false);
  engine.commit();
  // One that is new.
  own("one");
  expect(engine.awaitsPolicies).toBe(true);
  policy("one");
  expect(engine.awaitsPolicies).toBe(false);
  engine.commit();
  // One that never came is waited for once.
  own("one", "never");
  expect(engine.awaitsPolicies).toBe(true);
  engine.commit();
  own("one", "never");
  fixture.push(service("a", { addresses: ["10.96.0.1"] }));
  expect(engine.awaitsPolicies).toBe(false);
  // One that goes.
  own("never");
  expect(engine.awaitsPolicies).toBe(true);
  engine.remove("authorization", "shop/one");
  expect(engine.awaitsPolicies).toBe(false);
  // What a PeerAuthentication became may stay for others.
  policy("converted_x");
  own("never", "converted_x");
  engine.commit();
  own("never");
  expect(engine.awaitsPolicies).toBe(false);
  engine.remove("address", "x/WorkloadEntry/shop/vm");
  expect(engine.awaitsPolicies).toBe(false);
});

test("an istiod without ambient sends nothing: nothing is published", () => {
  const fixture = new Fixture();
  fixture.engine.commit();
  expect(fixture.published).toEqual([]);
  expect(fixture.engine.status().ambientLacking).toBe(true);
  fixture.push(service("a", { addresses: ["10.96.0.1"] }));
  expect(fixture.engine.status().ambientLacking).toBe(false);
  fixture.remove("shop/a.shop");
  expect(fixture.mesh.services.size).toBe(0);
});

describe("odd, and valid", () => {
  test("a workload of a service that is not there waits for it; one without ports is no frontend", () => {
    const fixture = new Fixture().push(
      pod("p1", {
        addresses: ["10.1.0.1"],
        services: { "shop/a.shop": { 80: 8080 }, "shop/none.shop": { 1: 1 } },
      }),
      service("bare", { addresses: ["10.96.0.9"], ports: {} }),
    );
    expect(frontends(fixture)).toEqual({});
    expect(fixture.mesh.services.size).toBe(0);
    fixture.push(service("a", { addresses: ["10.96.0.1"] }));
    expect(fixture.endpoints(A)).toEqual(["10.1.0.1:8080"]);
    fixture.push(service("bare", { addresses: ["10.96.0.9"] }));
    expect(frontends(fixture)).toEqual({ "10.96.0.1:80": "a.shop:80", "10.96.0.9:80": "bare.shop:80" });
  });

  test("duplicates: an address twice, two workloads at one address, the same port twice, a resource twice", () => {
    const twice = pod("p1", { addresses: ["10.1.0.1", "10.1.0.1"] });
    const fixture = new Fixture().push(
      service("a", { addresses: ["10.96.0.1", "10.96.0.1"] }),
      service("a", { addresses: ["10.96.0.1", "10.96.0.1"] }),
      twice,
      twice,
      pod("p2", { addresses: ["10.1.0.1"] }),
    );
    expect(fixture.endpoints(A)).toEqual(["10.1.0.1:8080"]);
    expect(frontends(fixture)).toEqual({ "10.96.0.1:80": "a.shop:80" });
    fixture.remove("p2");
    expect(fixture.endpoints(A)).toEqual(["10.1.0.1:8080"]);
  });
});

describe("malformed resources are rejected, and the one before stays", () => {
  const bad: Record<string, [string, Uint8Array]> = {
    "an address has 5 bytes, not 4 or 16": encode("p1", {
      workload: { uid: "p1", addresses: [new Uint8Array(5)] },
    }),
    "the prefix 10.0.0.1/33 is beyond its family": service("a", { addresses: ["10.0.0.1/33"] }),
    "tunnel_protocol has the unknown value 9": pod("p1", { tunnelProtocol: 9 as workload.TunnelProtocol }),
    "status has the unknown value 7": pod("p1", { status: 7 as workload.WorkloadStatus }),
    "load_balancing.mode has the unknown value 8": service("a", {
      loadBalancing: { mode: 8 as workload.LoadBalancing.Mode },
    }),
    "it is neither a workload nor a service": ["p1", new Uint8Array(0)],
    "the workload has no uid": encode("p1", { workload: { name: "p1" } }),
    "service_port is 0": service("a", { ports: { 0: 80 } }),
    "target_port is 70000": pod("p1", { services: { "shop/a.shop": { 80: 70_000 } } }),
    "not a valid message": ["p1", pod("p1", { addresses: ["10.1.0.1"] })[1].subarray(0, 9)],
    "the message inside is called shop/b.shop": ["shop/a.shop", service("b")[1]],
  };
  for (const [reason, [name, bytes]] of Object.entries(bad))
    test(reason, () => {
      const fixture = new Fixture().push(
        service("a", { addresses: ["10.96.0.1"] }),
        pod("p1", { addresses: ["10.1.0.1"] }),
      );
      expect(() => fixture.engine.upsert("address", name, bytes)).toThrow(MalformedResource);
      expect(() => fixture.engine.upsert("address", name, bytes)).toThrow(reason);
      fixture.engine.commit();
      expect(fixture.endpoints(A)).toEqual(["10.1.0.1:8080"]);
      expect(fixture.published).toHaveLength(1);
    });

  function encode(name: string, address: workload.Address.$Properties): [string, Uint8Array] {
    return [name, workload.Address.encode(address).finish()];
  }
});
