/** What real connections do under the configuration that a real istiod sends. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { eventually } from "../lab/process.ts";
import { MeshLab, missing, type Tally } from "./mesh-lab.ts";
import {
  destinationRule,
  hostOf,
  inNamespace,
  pod,
  running,
  service,
  serviceEntry,
  shares,
  slice,
  virtualService,
  wildcard,
} from "./objects.ts";

setDefaultTimeout(60_000);
const why = missing();
if (why !== undefined) console.warn(`interop tests are skipped: ${why}`);

describe.skipIf(why !== undefined)("traffic under a real istiod", () => {
  let lab: MeshLab;

  beforeAll(async () => {
    lab = await MeshLab.create();
    await lab.serve({
      a: "172.31.1.1:8080",
      b: "172.31.1.2:8080",
      c: "172.31.1.3:8080",
      d: "172.31.1.4:8080",
      "a-tcp": "172.31.1.1:9000",
      "b-tcp": "172.31.1.2:9000",
      a6: "[fd00:31::1]:8080",
      b6: "[fd00:31::2]:8080",
    });
    const web = [
      { name: "http", port: 80, targetPort: 8080 },
      { name: "tcp-raw", port: 9000 },
    ];
    const only = [{ name: "tcp", port: 8080 }];
    const tcp = (number: number) => [{ number, name: "tcp", protocol: "TCP", targetPort: 8080 }];
    const http = (number: number) => [{ number, name: "http", protocol: "HTTP", targetPort: 8080 }];
    const v1 = { address: "172.31.1.1", labels: { version: "v1" } };
    const v2 = { address: "172.31.1.2", labels: { version: "v2" } };
    const subsets = [
      { name: "v1", labels: { version: "v1" } },
      { name: "v2", labels: { version: "v2" } },
    ];
    const roundRobin = { loadBalancer: { simple: "ROUND_ROBIN" } };
    const balanced = (name: string, loadBalancer: Record<string, unknown>, vip: string) => [
      serviceEntry(name, {
        addresses: [vip],
        ports: tcp(7000),
        endpoints: ["172.31.1.1", "172.31.1.2", "172.31.1.3"].map((address) => ({ address })),
      }),
      destinationRule(name, hostOf(name), { trafficPolicy: { loadBalancer } }),
    ];
    const pods = [pod("db-0", "db"), pod("db-1", "db")];
    const podAddresses = ["172.31.1.1", "172.31.1.2"];
    await lab.plane.kube.apply(...pods);
    for (const [index, one] of pods.entries())
      await lab.plane.kube.applyStatus(running(one, podAddresses[index] ?? ""));
    await lab.plane.kube.apply(
      service("db", undefined, only),
      {
        ...slice("db", podAddresses, only),
        endpoints: podAddresses.map((address, index) => ({
          addresses: [address],
          conditions: { ready: true },
          hostname: `db-${index}`,
          targetRef: { kind: "Pod", name: `db-${index}`, namespace: "shop" },
        })),
      },
      inNamespace("other", service("far", "10.96.2.1", only)),
      inNamespace("other", slice("far", ["172.31.1.2"], only)),
      wildcard("wild", { addresses: ["10.97.5.1"], ports: http(80), endpoints: [v1] }),
      serviceEntry("auto", { ports: http(80), endpoints: [v2] }),
      service("web", "10.96.1.1", web),
      slice("web", ["172.31.1.1", "172.31.1.2"], web),
      destinationRule("web", "web.shop.svc.cluster.local", { trafficPolicy: roundRobin }),
      service("headless", undefined, only),
      slice("headless", ["172.31.1.3"], only),
      service("dual", ["10.96.1.2", "fd00:10:96::2"], only),
      slice("dual", ["172.31.1.1"], only),
      slice("dual", ["fd00:31::1"], only),
      service("nobody", "10.96.1.3", only),
      serviceEntry("several", {
        addresses: ["10.97.0.1", "10.97.0.2", "fd00:97::1"],
        ports: [...tcp(7000), ...http(7080)],
        endpoints: [v1, { address: "fd00:31::1" }],
      }),
      serviceEntry("v4only", { addresses: ["fd00:97::4"], ports: tcp(7000), endpoints: [v1] }),
      serviceEntry("v6only", {
        addresses: ["10.97.0.6"],
        ports: tcp(7000),
        endpoints: [{ address: "fd00:31::2" }],
      }),
      serviceEntry("cidr", { addresses: ["10.98.0.0/16"], ports: tcp(7100), endpoints: [v1] }),
      serviceEntry("cidr6", {
        addresses: ["fd00:98::/64"],
        ports: tcp(7100),
        endpoints: [{ address: "fd00:31::2" }],
      }),
      serviceEntry("exact", { addresses: ["10.98.5.5"], ports: tcp(7100), endpoints: [v2] }),
      serviceEntry("split", {
        addresses: ["10.97.1.1"],
        ports: [...tcp(7000), ...http(7080)],
        endpoints: [v1, v2],
      }),
      destinationRule("split", hostOf("split"), { subsets }),
      virtualService("split", hostOf("split"), {
        tcp: [{ match: [{ port: 7000 }], route: shares(hostOf("split"), { v1: 80, v2: 20 }) }],
        http: [
          {
            match: [{ uri: { prefix: "/admin" } }],
            route: [{ destination: { host: hostOf("split"), subset: "v2" } }],
          },
          { route: shares(hostOf("split"), { v1: 80, v2: 20 }) },
        ],
      }),
      serviceEntry("subnets", { addresses: ["10.97.2.0/24"], ports: tcp(7200), endpoints: [v1, v2] }),
      destinationRule("subnets", hostOf("subnets"), { subsets }),
      virtualService("subnets", hostOf("subnets"), {
        tcp: [
          {
            match: [{ destinationSubnets: ["10.97.2.128/25"], port: 7200 }],
            route: shares(hostOf("subnets"), { v2: 100 }),
          },
          { match: [{ port: 7200 }], route: shares(hostOf("subnets"), { v1: 100 }) },
        ],
      }),
      serviceEntry("half", { addresses: ["10.97.1.2"], ports: tcp(7000), endpoints: [v1] }),
      destinationRule("half", hostOf("half"), { subsets }),
      virtualService("half", hostOf("half"), {
        tcp: [{ route: shares(hostOf("half"), { v1: 50, nowhere: 50 }) }],
      }),
      ...balanced("robin", { simple: "ROUND_ROBIN" }, "10.97.3.1"),
      ...balanced("random", { simple: "RANDOM" }, "10.97.3.2"),
      ...balanced("least", { simple: "LEAST_REQUEST" }, "10.97.3.3"),
      ...balanced("ring", { consistentHash: { useSourceIp: true } }, "10.97.3.4"),
      ...balanced(
        "maglev",
        { consistentHash: { useSourceIp: true, maglev: { tableSize: 1021 } } },
        "10.97.3.5",
      ),
      serviceEntry("weighted", {
        addresses: ["10.97.3.6"],
        ports: tcp(7000),
        endpoints: [
          { ...v1, weight: 3 },
          { ...v2, weight: 1 },
        ],
      }),
      destinationRule("weighted", hostOf("weighted"), { trafficPolicy: roundRobin }),
      serviceEntry("ledger", {
        addresses: ["10.97.4.9"],
        ports: tcp(7000),
        endpoints: [
          {
            address: "172.31.1.4",
            labels: {
              app: "books",
              "service.istio.io/canonical-name": "ledger-app",
              "service.istio.io/canonical-revision": "v3",
            },
          },
        ],
      }),
      serviceEntry("limited", { addresses: ["10.97.4.1"], ports: tcp(7000), endpoints: [v1] }),
      destinationRule("limited", hostOf("limited"), {
        trafficPolicy: { connectionPool: { tcp: { maxConnections: 5 } } },
      }),
      serviceEntry("mutual", { addresses: ["10.97.4.2"], ports: tcp(7000), endpoints: [v1] }),
      destinationRule("mutual", hostOf("mutual"), { trafficPolicy: { tls: { mode: "ISTIO_MUTUAL" } } }),
      serviceEntry("local", {
        addresses: ["10.97.4.3"],
        ports: tcp(7000),
        endpoints: [
          { ...v1, locality: "here/z1" },
          { ...v2, locality: "there/z1" },
        ],
      }),
      destinationRule("local", hostOf("local"), {
        trafficPolicy: {
          loadBalancer: { simple: "ROUND_ROBIN", localityLbSetting: { enabled: true } },
          outlierDetection: { consecutive5xxErrors: 5 },
        },
      }),
      serviceEntry("named", {
        addresses: ["10.97.4.4"],
        ports: tcp(7000),
        resolution: "DNS",
        endpoints: [{ address: "localhost.example.invalid" }, { address: "172.31.1.3" }],
      }),
    );
    await lab.startedAgent("--locality=here/z1", "--ip=172.31.0.1", "--ip=fd00:31::ff");
    await lab.connectUntil("the last object arrived", "10.97.4.3", 7000, ({ made }) => made === 1);
  }, 600_000);

  afterAll(async () => {
    await lab?.remove();
  }, 60_000);

  /** All of them reached one of `servers` and saw the address that they asked for. */
  function expectOnly(tally: Tally, peer: string, ...servers: string[]): void {
    expect({
      errors: tally.errors,
      by: Object.keys(tally.by).sort(),
      peers: Object.keys(tally.peers),
    }).toEqual({
      errors: {},
      by: servers.sort(),
      peers: [peer],
    });
  }

  test("an HTTP service's port, by curl and by its address", async () => {
    const answer = await lab.curl("http://10.96.1.1/", "-w", " %{remote_ip}:%{remote_port}");
    expect(answer).toMatchObject({ code: 0 });
    expect(answer.stdout).toMatch(/^[ab] 10\.96\.1\.1:80$/);
    const tally = await lab.connect("10.96.1.1", 80, { count: 100 });
    expectOnly(tally, "10.96.1.1 80", "a", "b");
    expect(tally.by).toEqual({ a: 50, b: 50 });
  });

  test("a TCP port of the same service", async () => {
    expectOnly(await lab.connect("10.96.1.1", 9000, { count: 10 }), "10.96.1.1 9000", "a-tcp", "b-tcp");
  });

  test("a port that the service does not have, and an app that is not enrolled, are left alone", async () => {
    expect((await lab.connect("10.96.1.1", 81)).errors).toEqual({ ENETUNREACH: 1 });
    expect((await lab.connectOutside("10.96.1.1", 80)).errors).toEqual({ ENETUNREACH: 1 });
    expectOnly(await lab.connect("172.31.1.2", 8080, { count: 5 }), "172.31.1.2 8080", "b");
  });

  test("a v4-mapped socket", async () => {
    const tally = await lab.connect("10.96.1.1", 80, { mapped: true, count: 4 });
    expectOnly(tally, "::ffff:10.96.1.1 80", "a", "b");
  });

  test("a dual-stack service by both families", async () => {
    expectOnly(
      await lab.connect("fd00:10:96::2", 8080, { count: 4, v6only: true }),
      "fd00:10:96::2 8080",
      "a6",
    );
    expectOnly(await lab.connect("10.96.1.2", 8080, { count: 4 }), "10.96.1.2 8080", "a");
  });

  test("a headless service by its pod's address", async () => {
    expectOnly(await lab.connect("172.31.1.3", 8080, { count: 2 }), "172.31.1.3 8080", "c");
  });

  test("every address of a ServiceEntry, TCP and HTTP, IPv4 and IPv6", async () => {
    for (const address of ["10.97.0.1", "10.97.0.2"]) {
      for (const port of [7000, 7080]) {
        expectOnly(await lab.connect(address, port, { count: 3 }), `${address} ${port}`, "a");
      }
    }
    const tally = await lab.connect("fd00:97::1", 7000, { count: 4, v6only: true });
    expectOnly(tally, "fd00:97::1 7000", "a6");
  });

  test("families: IPv6 sockets reach IPv4 endpoints unless V6ONLY, IPv4 ones never IPv6", async () => {
    expectOnly(await lab.connect("fd00:97::4", 7000, { count: 2 }), "fd00:97::4 7000", "a");
    const strict = await lab.connect("fd00:97::4", 7000, { v6only: true });
    const v4 = await lab.connect("10.97.0.6", 7000);
    for (const { made, errors } of [strict, v4]) {
      expect(made).toBe(0);
      expect(Object.keys(errors)[0]).toBeOneOf(["EHOSTUNREACH", "ECONNREFUSED", "EPERM"]);
    }
  });

  test("CIDR addresses, and an exact one inside that wins", async () => {
    expectOnly(await lab.connect("10.98.7.7", 7100, { count: 2 }), "10.98.7.7 7100", "a");
    expectOnly(await lab.connect("10.98.5.5", 7100, { count: 2 }), "10.98.5.5 7100", "b");
    expectOnly(await lab.connect("fd00:98::77", 7100, { count: 2 }), "fd00:98::77 7100", "b6");
    expect((await lab.connect("10.99.7.7", 7100)).errors).toEqual({ ENETUNREACH: 1 });
  });

  test("80/20 is 800/200 in 1,000 connections, TCP and HTTP", async () => {
    for (const port of [7000, 7080]) {
      const { by, errors } = await lab.connect("10.97.1.1", port, { count: 1000 });
      expect(errors).toEqual({});
      expect(Math.abs((by.a ?? 0) - 800)).toBeLessThanOrEqual(10);
      expect((by.a ?? 0) + (by.b ?? 0)).toBe(1000);
    }
  });

  test("a route that needs the request is listed, the catch-all is taken", async () => {
    const status = await lab.status();
    const notes = status.mesh.serviceNotes.filter(({ service: name }) => name.startsWith(hostOf("split")));
    expect(notes.flatMap((one) => one.notes.map(({ kind }) => kind))).toContain("layer7");
  });

  test("destinationSubnets", async () => {
    expectOnly(await lab.connect("10.97.2.7", 7200, { count: 3 }), "10.97.2.7 7200", "a");
    expectOnly(await lab.connect("10.97.2.200", 7200, { count: 3 }), "10.97.2.200 7200", "b");
  });

  test("the share of a subset that does not exist is refused, the other half works", async () => {
    const { made, by, errors } = await lab.connect("10.97.1.2", 7000, { count: 100 });
    expect([made, by.a]).toEqual([50, 50]);
    expect(Object.values(errors)).toEqual([50]);
    expect(Object.keys(errors)[0]).toBeOneOf(["ECONNREFUSED", "EHOSTUNREACH", "EPERM"]);
  });

  test("round robin takes turns", async () => {
    const { by } = await lab.connect("10.97.3.1", 7000, { count: 99 });
    expect(by).toEqual({ a: 33, b: 33, c: 33 });
  });

  test("random reaches all, about evenly", async () => {
    const { by } = await lab.connect("10.97.3.2", 7000, { count: 600 });
    for (const name of ["a", "b", "c"]) expect(Math.abs((by[name] ?? 0) - 200)).toBeLessThan(80);
  });

  test("least request evens out connections that stay", async () => {
    const { client, tally } = await lab.keep({ address: "10.97.3.3", port: 7000, count: 300 });
    await client.close();
    for (const name of ["a", "b", "c"]) expect(Math.abs((tally.by[name] ?? 0) - 100)).toBeLessThan(20);
  });

  test("ring hash and Maglev by source address: one source, one server", async () => {
    for (const address of ["10.97.3.4", "10.97.3.5"]) {
      const { by, errors } = await lab.connect(address, 7000, { count: 30 });
      expect([Object.keys(by).length, errors]).toEqual([1, {}]);
    }
  });

  test("endpoint weights", async () => {
    const { by } = await lab.connect("10.97.3.6", 7000, { count: 400 });
    expect(Math.abs((by.a ?? 0) - 300)).toBeLessThanOrEqual(4);
  });

  test("locality: the own one while it is healthy", async () => {
    expectOnly(await lab.connect("10.97.4.3", 7000, { count: 20 }), "10.97.4.3 7000", "a");
  });

  test("max_connections: the sixth is refused, and welcome once another has ended", async () => {
    const spec = { address: "10.97.4.1", port: 7000, count: 8 };
    const { client, tally } = await lab.keep(spec);
    expect(tally.made).toBe(5);
    expect(Object.values(tally.errors)).toEqual([3]);
    await client.close();
    await lab.connectUntil("room again", "10.97.4.1", 7000, ({ made }) => made === 1);
  });

  test("explicit ISTIO_MUTUAL is refused, with that reason in the status", async () => {
    const { made, errors } = await lab.connect("10.97.4.2", 7000);
    expect([made, Object.keys(errors)[0]]).toEqual([0, "EPERM"]);
    const explained = await lab.kmesh("explain", "10.97.4.2:7000");
    expect(explained.stdout).toMatch(/tls/i);
  });

  test("a service without endpoints refuses at once", async () => {
    const began = performance.now();
    const { errors } = await lab.connect("10.96.1.3", 8080);
    expect(Object.keys(errors)[0]).toBeOneOf(["ECONNREFUSED", "EHOSTUNREACH", "EPERM"]);
    expect(performance.now() - began).toBeLessThan(2_000);
  });

  test("a STRICT_DNS cluster takes the literal address beside a name that does not resolve", async () => {
    await lab.connectUntil("the literal endpoint", "10.97.4.4", 7000, ({ by }) => by.c === 1);
  });

  test("explain tells frontend, service, cluster and endpoints", async () => {
    const explained = await lab.kmesh("explain", "10.97.3.1:7000", "--output", "json");
    expect(explained.code).toBe(0);
    for (const word of ["10.97.3.1", "robin.shop.internal", "172.31.1.1", "172.31.1.3"]) {
      expect(explained.stdout).toContain(word);
    }
  });

  describe("names", () => {
    /** What an enrolled app's getent says, by family; empty when the name has no such address. */
    const addresses = async (name: string, family: 4 | 6 = 4): Promise<string[]> => {
      const { stdout } = await lab.resolving(`getent ahostsv${family} ${name}`);
      const found = stdout.split("\n").map((line) => line.split(" ")[0] ?? "");
      // getent gives a mapped address where a name has only IPv4.
      return [...new Set(found)].filter((one) => one !== "" && !one.startsWith("::ffff:")).sort();
    };
    const resolved = async (names: readonly string[], family: 4 | 6 = 4) =>
      Object.fromEntries(await Promise.all(names.map(async (name) => [name, await addresses(name, family)])));
    const all = (names: readonly string[], ...found: string[]) =>
      Object.fromEntries(names.map((name) => [name, found]));

    test("a service of the own namespace has four names, one of another namespace three", async () => {
      const own = ["web", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local"];
      expect(await resolved(own)).toEqual(all(own, "10.96.1.1"));
      const other = ["far.other", "far.other.svc", "far.other.svc.cluster.local"];
      expect(await resolved(other)).toEqual(all(other, "10.96.2.1"));
      expect(await resolved(["far", "web.other", "nosuch.shop.svc.cluster.local"])).toEqual(
        all(["far", "web.other", "nosuch.shop.svc.cluster.local"]),
      );
    });

    test("a headless service has its endpoints' addresses, and each pod a name below it", async () => {
      const names = ["db", "db.shop.svc.cluster.local"];
      expect(await resolved(names)).toEqual(all(names, "172.31.1.1", "172.31.1.2"));
      const first = ["db-0.db", "db-0.db.shop", "db-0.db.shop.svc", "db-0.db.shop.svc.cluster.local"];
      expect(await resolved(first)).toEqual(all(first, "172.31.1.1"));
      expect(await addresses("db-1.db.shop.svc.cluster.local")).toEqual(["172.31.1.2"]);
      const page = await lab.resolving("curl -sS -m 5 http://db-1.db:8080/");
      expect(page).toMatchObject({ code: 0, stdout: "b" });
    });

    test("a wildcard host answers all below it, at any depth, and not itself", async () => {
      const below = ["any.wild.shop.internal", "a.b.c.wild.shop.internal"];
      expect(await resolved(below)).toEqual(all(below, "10.97.5.1"));
      expect(await addresses("wild.shop.internal")).toEqual([]);
      expect(await lab.resolving("curl -sS -m 5 http://any.wild.shop.internal/")).toMatchObject({
        code: 0,
        stdout: "a",
      });
    });

    test("a ServiceEntry has its host's name alone, and an address that istiod allocated is connected to by name", async () => {
      expect(await resolved(["auto", "auto.shop", "split"])).toEqual(all(["auto", "auto.shop", "split"]));
      expect(await addresses("several.shop.internal")).toEqual(["10.97.0.1", "10.97.0.2"]);
      const [allocated, ...more] = await addresses("auto.shop.internal");
      expect(allocated).toStartWith("240.240.");
      expect(more).toEqual([]);
      for (const family of ["-4", "-6"]) {
        const page = await lab.resolving(
          `curl ${family} -sS -m 5 -w ' %{remote_ip}' http://auto.shop.internal/`,
        );
        expect(page).toMatchObject({ code: 0, stdout: expect.stringMatching(/^b (240\.240\.|2001:2::)/) });
      }
    });

    test("both families of a dual-stack service, and none of the one that a service lacks", async () => {
      const dual = ["dual", "dual.shop.svc.cluster.local"];
      expect(await resolved(dual)).toEqual(all(dual, "10.96.1.2"));
      expect(await resolved(dual, 6)).toEqual(all(dual, "fd00:10:96::2"));
      expect(await addresses("web.shop.svc.cluster.local", 6)).toEqual([]);
      expect(await addresses("v4only.shop.internal", 6)).toEqual(["fd00:97::4"]);
      const page = await lab.resolving("curl -6 -sS -m 5 http://dual.shop:8080/");
      expect(page).toMatchObject({ code: 0, stdout: "a6" });
    });

    test("kmesh resolve says the same, and a name that istiod takes away is gone", async () => {
      const told = await lab.kmesh("resolve", "db-0.db.shop.svc", "--output", "json");
      expect(told.stdout).toContain("172.31.1.1");
      const gone = serviceEntry("auto", { ports: [], endpoints: [] });
      await lab.plane.kube.remove(gone);
      await eventually(
        "the name is gone",
        async () => (await addresses("auto.shop.internal")).length === 0,
        10_000,
        200,
      );
    });
  });

  test("REGISTRY_ONLY refuses what is no service, with EPERM, and ALLOW_ANY lets it pass again", async () => {
    await lab.plane.setMeshConfig({ outboundTrafficPolicy: { mode: "REGISTRY_ONLY" } });
    await lab.connectUntil("a refusal", "203.0.113.9", 7777, ({ errors }) => errors.EPERM === 1);
    expectOnly(await lab.connect("10.96.1.1", 80, { count: 2 }), "10.96.1.1 80", "a", "b");
    await lab.plane.setMeshConfig({ outboundTrafficPolicy: { mode: "ALLOW_ANY" } });
    await lab.connectUntil("passing", "203.0.113.9", 7777, ({ errors }) => errors.ENETUNREACH === 1);
  });

  test("metrics name workload, service, revision, namespace and cluster in istiod's words", async () => {
    await lab.connect("10.97.4.9", 7000, { count: 3 });
    await lab.connect("10.96.1.1", 9000, { count: 1 });
    const text = await lab.metrics();
    /** Labels of the series with this one, but for those that every series of a source has alike. */
    const labels = (name: string, value: string) => {
      const line = text
        .split("\n")
        .find(
          (each) =>
            each.startsWith("istio_tcp_connections_opened_total{") && each.includes(`${name}="${value}"`),
        );
      return Object.fromEntries(
        [...(line ?? "").matchAll(/(\w+)="([^"]*)"/g)].map(([, key, is]) => [key, is]),
      );
    };
    expect(labels("destination_service", "ledger.shop.internal")).toMatchObject({
      reporter: "source",
      source_workload_namespace: "shop",
      source_cluster: "Kubernetes",
      destination_workload: "ledger-0",
      destination_workload_namespace: "shop",
      destination_service_name: "ledger",
      destination_service_namespace: "shop",
      destination_canonical_service: "ledger-app",
      destination_canonical_revision: "v3",
      destination_cluster: "Kubernetes",
      destination_principal: "unknown",
      connection_security_policy: "unknown",
      response_flags: "-",
    });
    // The pod that has the endpoint's address, though no EndpointSlice refers to it; without labels, its own name.
    expect(labels("destination_service", "web.shop.svc.cluster.local")).toMatchObject({
      destination_workload_namespace: "shop",
      destination_workload: expect.stringMatching(/^db-[01]$/),
      destination_canonical_service: expect.stringMatching(/^db-[01]$/),
      destination_canonical_revision: "latest",
      destination_service_name: "web",
    });
  });
});
