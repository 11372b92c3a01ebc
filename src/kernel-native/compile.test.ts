/** From resources to the mesh, in cases that the recordings lack, and what a change publishes. */
import { describe, expect, test } from "bun:test";
import type { ResourceType } from "../istiod/stream/sink.ts";
import type { Mesh } from "../mesh/model.ts";
import type { Answer } from "./resolver.ts";
import { observed } from "./testdata/recorded.ts";
import {
  any,
  catchAll,
  chain,
  cluster,
  dnsCluster,
  endpoints,
  type GivenChain,
  listener,
  names,
  routes,
  toCluster,
  toShares,
} from "./testdata/resources.ts";

type Given = [ResourceType, string, Uint8Array];

const eds = (name: string): Given => ["cluster", name, cluster(name)];
const at = (name: string, ...addresses: string[]): Given => [
  "endpoints",
  name,
  endpoints(name, [{ endpoints: addresses.map((address) => ({ address, port: 80 })) }]),
];
const lds = (given: [string, Uint8Array]): Given => ["listener", ...given];
const exact = (address: string, port: number, ...chains: GivenChain[]) =>
  lds(listener(address, port, chains));
const rds = (name: string, hosts: Parameters<typeof routes>[1]): Given => [
  "route",
  name,
  routes(name, hosts),
];
const nds = (table: Record<string, string[]>): Given => ["names", "", names(table)];
/** The listener of a whole port, for HTTP. */
const http = (port: number): Given => exact("0.0.0.0", port, { routes: String(port) });

function compiled(...given: Given[]): Mesh {
  const { native } = observed();
  for (const one of given) native.upsert(...one);
  native.commit();
  native.close();
  return native.mesh;
}

const target = (mesh: Mesh, key: string) => mesh.frontends.get(`tcp ${key}`)?.target;
const notes = (mesh: Mesh, service: string) =>
  mesh.services.get(service)?.notes.map(({ text }) => text) ?? [];
const to = (name: string) => ({ kind: "cluster" as const, cluster: name });

describe("frontends", () => {
  test("routes to PassthroughCluster pass, to BlackHoleCluster are refused", () => {
    const mesh = compiled(
      exact("10.0.0.1", 80, { cluster: "PassthroughCluster" }),
      exact("10.0.0.2", 80, { cluster: "BlackHoleCluster" }),
    );
    expect(target(mesh, "10.0.0.1:80")).toEqual({ kind: "passthrough" });
    expect(target(mesh, "10.0.0.2:80")).toEqual({ kind: "refuse", reason: "policy" });
  });

  test("destinationSubnets inside the listener of an address: the longest prefix that has it", () => {
    const mesh = compiled(
      exact(
        "10.0.0.1",
        80,
        { cluster: "outbound|80||a" },
        { cluster: "outbound|81||a", prefixes: ["10.0.0.0/24"] },
        { cluster: "outbound|82||a", prefixes: ["10.0.0.0/30"] },
        { cluster: "outbound|83||a", prefixes: ["10.9.0.0/30"] },
      ),
    );
    expect(target(mesh, "10.0.0.1:80")).toEqual(to("outbound|82||a"));
    expect([...mesh.services.keys()]).toEqual(["a:80"]);
  });

  test("no chain takes the connection: Envoy would close it", () => {
    const mesh = compiled(exact("10.0.0.1", 80, { cluster: "outbound|80||a", prefixes: ["10.9.0.0/30"] }));
    expect(target(mesh, "10.0.0.1:80")).toEqual({ kind: "refuse", reason: "policy" });
  });

  test("server names that lead to different clusters: the own cluster", () => {
    const mesh = compiled(
      nds({ "tls.shop": ["10.0.0.1"] }),
      exact(
        "10.0.0.1",
        443,
        { cluster: "outbound|443||x", serverNames: ["x"] },
        { cluster: "outbound|443||y", serverNames: ["y"] },
      ),
    );
    expect(target(mesh, "10.0.0.1:443")).toEqual(to("outbound|443||tls.shop"));
    expect(notes(mesh, "tls.shop:443")[0]).toStartWith("routes by TLS server name");
  });

  describe("sniffed", () => {
    const own = "outbound|80||a";
    const sniffed = (tcp: GivenChain, ...hosts: Parameters<typeof routes>[1]) =>
      compiled(
        eds(own),
        lds(
          listener(
            "10.0.0.1",
            80,
            [{ routes: "a:80", applications: ["http/1.1"], transport: "raw_buffer" }],
            {
              defaultFilterChain: chain(tcp),
            },
          ),
        ),
        ...(hosts.length > 0 ? [rds("a:80", hosts)] : []),
      );

    test("both say the same", () => {
      const mesh = sniffed({ cluster: own }, { name: "a:80", domains: ["*"] });
      expect(target(mesh, "10.0.0.1:80")).toEqual(to(own));
      expect(notes(mesh, "a:80")).toEqual([]);
    });

    test("only TCP is configured: TCP", () => {
      const mesh = sniffed({ cluster: "outbound|80|v1|a" }, { name: "a:80", domains: ["*"] });
      expect(target(mesh, "10.0.0.1:80")).toEqual(to("outbound|80|v1|a"));
      expect(notes(mesh, "a:80")[0]).toContain("the TCP route takes all connections");
    });

    test("only HTTP is configured: HTTP", () => {
      const mesh = sniffed(
        { cluster: own },
        { name: "a:80", domains: ["*"], routes: [toCluster("outbound|80|v2|a")] },
      );
      expect(target(mesh, "10.0.0.1:80")).toEqual(to("outbound|80|v2|a"));
    });

    test("the routes have not come: TCP", () => {
      expect(target(sniffed({ cluster: own }), "10.0.0.1:80")).toEqual(to(own));
    });
  });

  test("2b.6 HTTP headless without names: the addresses of its endpoints, and they follow", () => {
    const { native, published } = observed();
    const name = "outbound|80||h";
    for (const one of [
      http(80),
      rds("80", [{ name: "h:80", domains: ["*.h"] }]),
      eds(name),
      at(name, "10.0.0.1"),
    ]) {
      native.upsert(...one);
    }
    native.commit();
    expect([...native.mesh.frontends.keys()]).toEqual(["tcp 10.0.0.1:80"]);
    native.upsert(...at(name, "10.0.0.2", "10.0.0.1"));
    native.commit();
    expect(published[1]).toMatchObject({ frontends: ["tcp 10.0.0.2:80"], clusters: [name] });
    expect(target(native.mesh, "10.0.0.2:80")).toEqual(to(name));
    native.close();
  });

  test.each([
    ["127.0.0.1", "127.0.0.0/8 (loopback)"],
    ["169.254.169.254", "169.254.0.0/16 (link-local)"],
    ["224.0.0.9", "224.0.0.0/4 (multicast)"],
    ["::1", "::/127 (unspecified or loopback)"],
    ["fe80::1", "fe80::/10 (link-local)"],
  ])("2b.5 a frontend at %s is listed: no connection ever reaches it", (address, block) => {
    const mesh = compiled(exact(address, 8702, { cluster: "outbound|8702||a" }));
    const match = address.includes(":") ? `[${address}]:8702` : `${address}:8702`;
    expect(notes(mesh, "a:8702")).toContain(
      `no connection to ${match} is governed: ${block} is always exempt`,
    );
  });

  test("240.0.0.0/4 is governed, and nothing is listed", () => {
    const mesh = compiled(exact("240.1.2.3", 7100, { cluster: "outbound|7100||a" }));
    expect(notes(mesh, "a:7100").filter((text) => text.includes("is governed"))).toEqual([]);
  });

  test("frontends within what the operator excludes are listed, for as long as they are", () => {
    const excluded = [
      { address: "10.0.0.0", length: 8, port: 0 },
      { address: "fd00:1::", length: 32, port: 81 },
    ];
    const { native, published } = observed({ excluded });
    native.upsert(...exact("10.9.9.9", 80, { cluster: "outbound|80||a" }));
    native.upsert(...exact("fd00:1::1", 81, { cluster: "outbound|81||a" }));
    native.upsert(...exact("fd00:1::1", 82, { cluster: "outbound|82||a" }));
    native.upsert(
      ...exact(
        "0.0.0.0",
        83,
        { cluster: "outbound|83||wide", prefixes: ["10.0.0.0/7"] },
        { cluster: "outbound|83||narrow", prefixes: ["10.5.0.0/16"] },
      ),
    );
    native.commit();
    const listed = (service: string) =>
      notes(native.mesh, service).filter((text) => text.startsWith("no connection"));
    expect(listed("a:80")).toEqual([
      "no connection to 10.9.9.9:80 is governed: 10.0.0.0/8 is excluded by the configuration (exclude)",
    ]);
    expect(listed("a:81")).toEqual([
      "no connection to [fd00:1::1]:81 is governed: [fd00:1::/32]:81 is excluded by the configuration (exclude)",
    ]);
    expect(listed("narrow:83").length).toBe(1);
    expect([...listed("a:82"), ...listed("wide:83")]).toEqual([]);
    native.exclude([]);
    expect(listed("a:80")).toEqual([]);
    expect(published[1]).toEqual({
      everything: false,
      services: ["a:80", "a:81", "narrow:83"],
      frontends: [],
      splits: [],
      clusters: [],
    });
    native.close();
  });

  test("server names are not looked at: what happens instead stands beside the service", () => {
    const named = (cluster: string, ...serverNames: string[]) => ({ cluster, serverNames });
    const mesh = compiled(
      // The one name of a TLS service.
      exact("10.0.0.1", 443, named("outbound|443||one", "one")),
      // Its names and a way for all others.
      exact("10.0.0.2", 443, named("outbound|443|v1|two", "a", "b", "c", "d"), {
        cluster: "outbound|443||two",
      }),
      // A block: of one for two names, and of one for a name and for all others, in whichever order.
      exact(
        "0.0.0.0",
        444,
        { cluster: "outbound|444|v1|three", serverNames: ["x"], prefixes: ["10.1.0.0/16"] },
        { cluster: "outbound|444|v2|three", serverNames: ["y"], prefixes: ["10.1.0.0/16"] },
        { cluster: "outbound|444||four", serverNames: ["z"], prefixes: ["10.2.0.0/16"] },
        { cluster: "outbound|444||five", prefixes: ["10.2.0.0/16"] },
      ),
    );
    expect(target(mesh, "10.0.0.1:443")).toEqual(to("outbound|443||one"));
    expect(notes(mesh, "one:443")[0]).toBe(
      "taken for the TLS server name one alone: the name is not looked at, connections with another one, or without TLS, go the same way",
    );
    expect(target(mesh, "10.0.0.2:443")).toEqual(to("outbound|443||two"));
    expect(notes(mesh, "two:443")[0]).toBe(
      "routes by TLS server name (a, b, c and 1 more): the name is not looked at, these connections go where those with any other name do",
    );
    expect(target(mesh, "10.1.0.0/16:444")).toEqual(to("outbound|444||three"));
    expect(notes(mesh, "three:444")).toContain(
      "routes by TLS server name (x, y) lead to different clusters: the name is not looked at, all connections go to outbound|444||three",
    );
    expect(target(mesh, "10.2.0.0/16:444")).toEqual(to("outbound|444||five"));
  });

  test("a wildcard listener of one family takes the other one along, and says so", () => {
    const port = (more: string[]) =>
      lds(
        listener("0.0.0.0", 85, [{ cluster: "outbound|85||a" }], {
          additionalAddresses: more.map((address) => ({
            address: { socketAddress: { address, portValue: 85 } },
          })),
        }),
      );
    const along = (mesh: Mesh) => notes(mesh, "a:85").filter((text) => text.includes("taken along"));
    expect(along(compiled(port([])))).toEqual([
      "istiod's listener takes IPv4 connections to every address of port 85: those of the other family are taken along",
    ]);
    expect(along(compiled(port(["::"])))).toEqual([]);
    expect(target(compiled(port([])), "*:85")).toEqual(to("outbound|85||a"));
  });

  test("the default chain of a port leads to a cluster that is not the mesh's fallback", () => {
    const mesh = compiled(
      lds(
        listener("0.0.0.0", 80, [{ routes: "80" }], {
          defaultFilterChain: chain({ cluster: "outbound|80||p" }),
        }),
      ),
    );
    expect(target(mesh, "*:80")).toEqual(to("outbound|80||p"));
  });

  describe("REGISTRY_ONLY", () => {
    test("hosts without addresses open their port, others don't", () => {
      const mesh = compiled(
        lds(catchAll("BlackHoleCluster")),
        http(80),
        http(81),
        rds("80", [{ name: "vs.only:80" }, { name: "a:80", domains: ["10.0.0.1"] }]),
        rds("81", [
          { name: "a:81", domains: ["10.0.0.1"] },
          { name: "block_all:0", domains: ["*"] },
        ]),
      );
      expect(mesh.fallback).toEqual({ kind: "refuse", reason: "not-in-registry" });
      expect([...mesh.frontends.keys()].sort()).toEqual(["tcp *:80", "tcp 10.0.0.1:80", "tcp 10.0.0.1:81"]);
      expect(target(mesh, "*:80")).toEqual({ kind: "passthrough" });
      expect(mesh.services.get("*:80")).toMatchObject({ host: "*", port: 80 });
      expect(mesh.notes.map(({ text }) => text)).toEqual([
        "port 80 is open to every address that is no service: vs.only can't be told apart at connect time",
      ]);
    });

    test("hosts whose only address istiod allocated open their port too, and keep that address", () => {
      const mesh = compiled(
        lds(catchAll("BlackHoleCluster")),
        http(80),
        rds("80", [
          { name: "auto:80", domains: ["240.240.0.7"] },
          { name: "named:80" },
          { name: "own:80", domains: ["10.0.0.1"] },
        ]),
        http(81),
        rds("81", [{ name: "own:81", domains: ["10.0.0.1"] }]),
        // TCP and TLS; the last one has an address of its own beside.
        exact("240.240.0.7", 7100, { cluster: "outbound|7100||auto" }),
        exact("2001:2::7", 7100, { cluster: "outbound|7100||auto" }),
        exact("240.240.0.7", 443, { cluster: "outbound|443||auto", serverNames: ["auto"] }),
        exact("240.240.0.8", 7200, { cluster: "outbound|7200||both" }),
        exact("10.0.0.2", 7200, { cluster: "outbound|7200||both" }),
        nds({
          auto: ["240.240.0.7", "2001:2::7"],
          named: ["240.240.0.9"],
          own: ["10.0.0.1"],
          both: ["10.0.0.2", "240.240.0.8"],
        }),
      );
      for (const port of [80, 443, 7100]) expect(target(mesh, `*:${port}`)).toEqual({ kind: "passthrough" });
      for (const port of [81, 7200]) expect(target(mesh, `*:${port}`)).toBeUndefined();
      for (const at of ["240.240.0.7:7100", "[2001:2::7]:7100"])
        expect(target(mesh, at)).toEqual(to("outbound|7100||auto"));
      expect(target(mesh, "240.240.0.7:80")).toEqual(to("outbound|80||auto"));
      expect(target(mesh, "240.240.0.9:80")).toEqual(to("outbound|80||named"));
      const allocated = (service: string) =>
        notes(mesh, service).filter((text) => text.startsWith("istiod allocated its only address"));
      for (const service of ["auto:80", "named:80", "auto:7100", "auto:443"])
        expect(allocated(service).length).toBe(1);
      for (const service of ["own:80", "own:81", "both:7200"]) expect(allocated(service)).toEqual([]);
      expect(mesh.notes.map(({ text }) => text)).toEqual([
        "port 443 is open to every address that is no service: auto can't be told apart at connect time",
        "port 7100 is open to every address that is no service: auto can't be told apart at connect time",
        "port 80 is open to every address that is no service: auto, named can't be told apart at connect time",
      ]);
    });

    test("in an open mesh the same hosts only say so", () => {
      const mesh = compiled(
        lds(catchAll("PassthroughCluster")),
        exact("240.240.0.7", 7100, { cluster: "outbound|7100||auto" }),
        nds({ auto: ["240.240.0.7"] }),
      );
      expect([...mesh.frontends.keys()]).toEqual(["tcp 240.240.0.7:7100"]);
      expect(notes(mesh, "auto:7100")).toContain(
        "istiod allocated its only address: connections to a real address of it go there as they are, without balancing or failover",
      );
    });

    test("a port that leads to one cluster as a whole stays so", () => {
      const mesh = compiled(
        lds(catchAll("BlackHoleCluster")),
        exact(
          "0.0.0.0",
          80,
          { cluster: "outbound|80||x", serverNames: ["*.x"] },
          { cluster: "outbound|80||p" },
        ),
      );
      expect(target(mesh, "*:80")).toEqual(to("outbound|80||p"));
    });
  });

  test("the catch-all with weights", () => {
    const given = listener(
      "0.0.0.0",
      15001,
      [
        {
          shares: [
            ["a", 1],
            ["b", 3],
          ],
        },
      ],
      { name: "virtualOutbound" },
    );
    const mesh = compiled(lds(given));
    expect(mesh.fallback).toEqual({ kind: "split", split: "virtualOutbound" });
    expect([...mesh.splits.keys()]).toEqual(["virtualOutbound"]);
  });

  test("2b.10 what is valid and can't be honoured is accepted: a tunnel is refused at connect, and listed", () => {
    const mesh = compiled(
      exact("10.0.0.1", 80, { cluster: "c", more: { tunnelingConfig: { hostname: "x" } } }),
    );
    expect(target(mesh, "10.0.0.1:80")).toEqual({ kind: "refuse", reason: "undecidable" });
    expect(notes(mesh, "10.0.0.1:80")[0]).toContain("HTTP tunnel");
  });

  test("splits of routes that were not taken are not there", () => {
    const mesh = compiled(
      http(80),
      rds("80", [
        { name: "a:80", domains: ["10.0.0.1"], routes: [toShares(["x", 1], ["y", 1])] },
        { name: "b:80", domains: ["10.0.0.1"], routes: [toShares(["x", 1], ["y", 2])] },
      ]),
    );
    expect([...mesh.splits.keys()]).toEqual(["80 a:80"]);
    expect(notes(mesh, "b:80")).toContain("10.0.0.1:80 belongs to a:80");
  });
});

describe("clusters", () => {
  test("consistent hashing follows the routes: no frontend changes with it", () => {
    const { native, published } = observed();
    const name = "outbound|80||a";
    const hashed = toCluster(name, { hashPolicy: [{ connectionProperties: { sourceIp: true } }] });
    native.upsert("cluster", name, cluster(name, { lbPolicy: 5 }));
    native.upsert(...http(80));
    native.upsert(...rds("80", [{ name: "a:80", domains: ["10.0.0.1"], routes: [hashed] }]));
    native.commit();
    expect(native.mesh.clusters.get(name)?.balance).toEqual({ policy: "maglev", tableSize: 0 });
    native.upsert(...rds("80", [{ name: "a:80", domains: ["10.0.0.1"], routes: [toCluster(name)] }]));
    native.commit();
    expect(native.mesh.clusters.get(name)?.balance).toEqual({ policy: "random" });
    expect(published[1]).toEqual({
      everything: false,
      services: ["a:80"],
      frontends: [],
      splits: [],
      clusters: [name],
    });
    native.close();
  });

  test("STATIC clusters with endpoints that prefer mutual TLS", () => {
    const name = "outbound|80||a";
    const more = {
      type: 0,
      loadAssignment: {
        endpoints: [
          {
            lbEndpoints: [
              {
                endpoint: { address: { socketAddress: { address: "10.0.0.1", portValue: 80 } } },
                metadata: {
                  filterMetadata: {
                    "envoy.transport_socket_match": { fields: { tlsMode: { stringValue: "istio" } } },
                  },
                },
              },
            ],
          },
        ],
      },
    };
    const mesh = compiled(["cluster", name, cluster(name, more)]);
    expect(mesh.clusters.get(name)?.localities[0]?.endpoints.length).toBe(1);
    expect(notes(mesh, "a:80")).toEqual(["peers prefer mutual TLS: plaintext is sent"]);
  });

  test("two clusters with the endpoints of one name both follow them", () => {
    const { native, published } = observed();
    for (const name of ["a", "b"])
      native.upsert("cluster", name, cluster(name, { edsClusterConfig: { serviceName: "e" } }));
    native.commit();
    native.upsert(...at("e", "10.0.0.1"));
    native.commit();
    expect(published[1]?.clusters).toEqual(["a", "b"]);
    native.remove("cluster", "a");
    expect([...native.wanted("endpoints")]).toEqual(["e"]);
    native.remove("cluster", "b");
    expect([...native.wanted("endpoints")]).toEqual([]);
    native.close();
  });
});

describe("what is not known yet", () => {
  const given = (...more: Given[]) => {
    const { native, published } = observed();
    for (const one of more) native.upsert(...one);
    native.commit();
    native.close();
    return { native, published, pending: native.mesh.pending };
  };

  test("routes that did not come: their port, and the exact listeners that wait for them", () => {
    const sniffed = lds(
      listener("10.0.0.2", 82, [{ cluster: "outbound|82||b" }, { routes: "b:82", transport: "raw_buffer" }]),
    );
    const { native, published, pending } = given(
      http(80),
      exact("10.0.0.1", 81, { routes: "a:81" }),
      sniffed,
      exact("10.0.0.3", 83, { cluster: "outbound|83||c" }),
    );
    expect(pending).toEqual({ ports: new Set([80, 81, 82]), fallback: false });
    expect([...native.mesh.frontends.values()].map(({ match, pending }) => [match.port, pending])).toEqual([
      [82, true],
      [83, undefined],
    ]);
    expect(native.mesh.notes.map(({ text }) => text)).toEqual([
      "istiod's configuration for port 80, 81, 82 has not come, or is malformed: what the kernel had before stays",
    ]);
    for (const name of ["80", "a:81", "b:82"])
      native.upsert(...rds(name, [{ name: `${name}-host:80`, domains: ["10.0.0.9"] }]));
    native.commit();
    expect(native.mesh.pending).toBeUndefined();
    // The kernel's tables are compared as a whole: what only they had goes now.
    expect(published.map(({ everything }) => everything)).toEqual([true, true]);
    expect(native.mesh.frontends.get("tcp 10.0.0.2:82")?.pending).toBeUndefined();
  });

  test.each([
    ["listener", "10.0.0.1_9000", { ports: new Set([9000]), fallback: false }],
    ["listener", "virtualOutbound", { ports: new Set(), fallback: true }],
    ["listener", "virtualInbound", undefined],
    ["listener", "custom", { ports: "all", fallback: false }],
    ["names", "", { ports: "all", fallback: false }],
    ["endpoints", "e", undefined],
  ] as const)("a malformed %s %s without an earlier form", (type, name, pending) => {
    const { native } = observed();
    expect(() => native.upsert(type, name, new Uint8Array([0xff]))).toThrow();
    native.commit();
    expect(native.mesh.pending).toEqual(pending as never);
    native.remove(type, name);
    native.commit();
    expect(native.mesh.pending).toBeUndefined();
    native.close();
  });

  test("a malformed cluster without an earlier form is pending; one with keeps it", () => {
    const { native } = observed();
    const name = "outbound|80||a";
    const bad = new Uint8Array([0xff]);
    expect(() => native.upsert("cluster", name, bad)).toThrow();
    native.commit();
    expect(native.mesh.clusters.get(name)).toMatchObject({ kind: "endpoints", pending: true });
    expect(notes(native.mesh, "a:80")).toEqual([
      "istiod's cluster is malformed: what was known of it before stays",
    ]);
    native.upsert(...eds(name));
    native.upsert(...at(name, "10.0.0.1"));
    native.commit();
    expect(native.mesh.clusters.get(name)).toMatchObject({ pending: false });
    expect(() => native.upsert("cluster", name, bad)).toThrow();
    native.commit();
    expect(native.mesh.clusters.get(name)).toMatchObject({ pending: false });
    native.close();
  });

  test("of one that is malformed later the earlier form stays, and nothing is pending", () => {
    const { native, pending } = given(exact("10.0.0.1", 80, { cluster: "outbound|80||a" }));
    expect(pending).toBeUndefined();
    expect(() => native.upsert("listener", "10.0.0.1_80", new Uint8Array([0xff]))).toThrow();
    native.commit();
    expect(native.mesh.pending).toBeUndefined();
    expect(native.mesh.frontends.has("tcp 10.0.0.1:80")).toBe(true);
  });
});

describe("what is published", () => {
  test("the first mesh is everything, even an empty one; a push without a difference is nothing", () => {
    const { native, published } = observed();
    native.commit();
    native.commit();
    expect(published.length).toBe(1);
    expect(published[0]?.everything).toBe(true);
    native.upsert(...nds({ a: ["10.0.0.1"] }));
    native.commit();
    native.upsert(...nds({ a: ["10.0.0.1"] }));
    native.commit();
    expect(published.length).toBe(2);
    expect(published[1]).toMatchObject({ frontends: [], services: [] });
    expect(native.mesh.names.get("a")?.addresses).toEqual(["10.0.0.1"]);
    native.close();
  });

  test("nothing before commit", () => {
    const { native, published } = observed();
    native.commit();
    native.upsert(...exact("10.0.0.1", 80, { cluster: "c" }));
    expect(published.length).toBe(1);
    expect(native.mesh.frontends.size).toBe(0);
    native.commit();
    expect(published[1]).toMatchObject({ frontends: ["tcp 10.0.0.1:80"], services: ["c"] });
    native.close();
  });

  test("endpoints in another order are no change; one more is a change of its cluster alone", () => {
    const { native, published } = observed();
    const name = "outbound|80||a";
    for (const one of [
      eds(name),
      at(name, "10.0.0.1", "10.0.0.2"),
      exact("10.9.0.1", 80, { cluster: name }),
    ]) {
      native.upsert(...one);
    }
    native.commit();
    native.upsert(...at(name, "10.0.0.2", "10.0.0.1"));
    native.commit();
    expect(published.length).toBe(1);
    native.upsert(...at(name, "10.0.0.2", "10.0.0.1", "10.0.0.3"));
    native.commit();
    expect(published[1]).toEqual({
      everything: false,
      services: [],
      frontends: [],
      splits: [],
      clusters: [name],
    });
    native.close();
  });

  test("new weights change the split, not its frontends", () => {
    const { native, published } = observed();
    const given = (a: number, b: number) =>
      rds("80", [{ name: "a:80", domains: ["10.0.0.1"], routes: [toShares(["x", a], ["y", b])] }]);
    native.upsert(...http(80));
    native.upsert(...given(90, 10));
    native.commit();
    native.upsert(...given(50, 50));
    native.commit();
    expect(published[1]).toEqual({
      everything: false,
      services: [],
      frontends: [],
      splits: ["80 a:80"],
      clusters: [],
    });
    native.close();
  });

  test("a cluster that comes takes the note of its absence away", () => {
    const { native, published } = observed();
    native.upsert(...exact("10.0.0.1", 80, { cluster: "outbound|80||a" }));
    native.commit();
    expect(notes(native.mesh, "a:80")).toEqual([
      "cluster outbound|80||a does not exist: its share is refused",
    ]);
    native.upsert(...eds("outbound|80||a"));
    native.commit();
    expect(notes(native.mesh, "a:80")).toEqual([]);
    expect(published[1]).toMatchObject({ services: ["a:80"], clusters: ["outbound|80||a"], frontends: [] });
    native.close();
  });

  test("the fallback or the mesh's notes alone: published with nothing named", () => {
    const { native, published } = observed();
    native.upsert(...lds(catchAll("PassthroughCluster")));
    native.commit();
    native.upsert(...lds(catchAll("BlackHoleCluster")));
    native.commit();
    expect(published[1]).toEqual({
      everything: false,
      services: [],
      frontends: [],
      splits: [],
      clusters: [],
    });
    expect(native.mesh.fallback).toEqual({ kind: "refuse", reason: "not-in-registry" });
    native.close();
  });

  test("a malformed resource leaves the one before, and the rest of the push applies", () => {
    const { native } = observed();
    native.upsert(...exact("10.0.0.1", 80, { cluster: "a" }));
    native.commit();
    const [name] = listener("10.0.0.1", 80, []);
    expect(() => native.upsert("listener", name, new Uint8Array([10, 200, 1]))).toThrow();
    native.upsert(...exact("10.0.0.2", 80, { cluster: "b" }));
    native.commit();
    expect(target(native.mesh, "10.0.0.1:80")).toEqual(to("a"));
    expect(target(native.mesh, "10.0.0.2:80")).toEqual(to("b"));
    native.close();
  });

  test("2b.10 typed configuration of unknown messages is no reason to fail", () => {
    const name = "outbound|80||a";
    const more = { typedExtensionProtocolOptions: { x: any("x.Y", new Uint8Array([255, 255])) } };
    expect(compiled(["cluster", name, cluster(name, more)]).clusters.has(name)).toBe(true);
  });
});

test("of a large table of names only what changed is compiled again", () => {
  const table = Object.fromEntries(
    Array.from({ length: 400 }, (_, i) => [`svc-${1000 + i}.internal`, [`10.0.1.${i % 250}`]]),
  );
  const { native } = observed();
  native.upsert(...nds(table));
  native.commit();
  const before = new Map(native.mesh.names);
  table["svc-1001.internal"] = ["10.0.9.9"];
  table["svc-1002.internal"] = [];
  table["svc-1003a.internal"] = ["10.0.9.10"];
  const sorted = Object.fromEntries(Object.entries(table).sort(([one], [other]) => (one < other ? -1 : 1)));
  native.upsert(...nds(sorted));
  native.commit();
  native.close();
  const others = [...native.mesh.names].filter(([host, name]) => before.get(host) !== name);
  expect(others.map(([host]) => host)).toEqual(["svc-1001.internal", "svc-1003a.internal"]);
  expect(native.mesh.names).toEqual(compiled(nds(sorted)).names);
});

describe("names of DNS clusters", () => {
  const settled = () => new Promise((resolve) => setTimeout(resolve, 5));

  test.each([
    ["V4_ONLY", 1, ["192.0.2.1"]],
    ["V6_ONLY", 2, ["2001:db8::1"]],
    ["AUTO", 0, ["2001:db8::1"]],
    ["V4_PREFERRED", 3, ["192.0.2.1"]],
    ["ALL", 4, ["192.0.2.1", "2001:db8::1"]],
  ])("2b.12 %s", async (_, dnsLookupFamily, expected) => {
    const asked = new Set<number>();
    const { native } = observed({
      lookup: async (_host, family) => {
        asked.add(family);
        return { addresses: [family === 4 ? "192.0.2.1" : "2001:db8::1"], ttl: 60 };
      },
    });
    native.upsert("cluster", "c", dnsCluster("c", ["x.example"], { dnsLookupFamily }));
    native.commit();
    await settled();
    expect(native.mesh.clusters.get("c")?.localities[0]?.endpoints.map(({ address }) => address)).toEqual(
      expected,
    );
    if (dnsLookupFamily === 1) expect([...asked]).toEqual([4]);
    if (dnsLookupFamily === 2) expect([...asked]).toEqual([6]);
    native.close();
  });

  test("AUTO and V4_PREFERRED fall back to the other family", async () => {
    const { native } = observed({
      lookup: async (_host, family) => ({ addresses: family === 4 ? ["192.0.2.1"] : [], ttl: 60 }),
    });
    native.upsert("cluster", "c", dnsCluster("c", ["x.example"], { dnsLookupFamily: 0 }));
    native.commit();
    await settled();
    expect(native.mesh.clusters.get("c")?.localities[0]?.endpoints.address(0)).toBe("192.0.2.1");
    native.close();
  });

  test("LOGICAL_DNS takes one address", async () => {
    const { native } = observed({ lookup: async () => ({ addresses: ["192.0.2.2", "192.0.2.1"], ttl: 60 }) });
    native.upsert("cluster", "c", dnsCluster("c", ["x.example"], { type: 2 }));
    native.commit();
    await settled();
    expect(native.mesh.clusters.get("c")?.localities[0]?.endpoints.map(({ address }) => address)).toEqual([
      "192.0.2.1",
    ]);
    native.close();
  });

  test("names that give the same address count once", async () => {
    const { native } = observed({ lookup: async () => ({ addresses: ["192.0.2.1"], ttl: 60 }) });
    native.upsert("cluster", "c", dnsCluster("c", ["x.example", "y.example", "192.0.2.1"]));
    native.commit();
    await settled();
    expect(native.mesh.clusters.get("c")?.localities[0]?.endpoints.length).toBe(1);
    native.close();
  });

  test("pending until every name was tried; one that nobody answers does not hold up the others", async () => {
    const answers = new Map<string, (answer: Answer | Error) => void>();
    const { native } = observed({
      lookup: (host) =>
        new Promise((resolve, reject) => {
          answers.set(host, (answer) => (answer instanceof Error ? reject(answer) : resolve(answer)));
        }),
    });
    native.upsert("cluster", "c", dnsCluster("c", ["x.example", "y.example"]));
    native.commit();
    answers.get("x.example")?.({ addresses: ["192.0.2.1"], ttl: 60 });
    await settled();
    expect(native.mesh.clusters.get("c")).toMatchObject({ pending: true });
    answers.get("y.example")?.(new Error("timeout"));
    await settled();
    const cluster = native.mesh.clusters.get("c");
    expect(cluster?.pending).toBe(false);
    expect(cluster?.localities[0]?.endpoints.map(({ address }) => address)).toEqual(["192.0.2.1"]);
    expect(notes(native.mesh, "c")).toEqual(["a name of its endpoints has not been resolved yet"]);
    native.close();
  });

  test("a name that nobody answers keeps the cluster pending, one that does not exist empties it", async () => {
    const { native } = observed({
      lookup: (host) =>
        host === "x.example" ? Promise.reject(new Error("x")) : Promise.resolve({ addresses: [], ttl: 9 }),
    });
    native.upsert("cluster", "c", dnsCluster("c", ["x.example"]));
    native.upsert("cluster", "d", dnsCluster("d", ["gone.example"]));
    native.commit();
    await settled();
    expect(native.mesh.clusters.get("c")?.pending).toBe(true);
    expect(native.mesh.clusters.get("d")).toMatchObject({ pending: false, localities: [] });
    native.close();
  });

  test("an answer amid an open push goes live with the push", async () => {
    let answer: (answer: Answer) => void = () => undefined;
    const { native, published } = observed({
      lookup: () =>
        new Promise((resolve) => {
          answer = resolve;
        }),
    });
    native.upsert("cluster", "c", dnsCluster("c", ["x.example"]));
    native.commit();
    native.upsert(...exact("10.0.0.1", 80, { cluster: "c" }));
    answer({ addresses: ["192.0.2.1"], ttl: 60 });
    await settled();
    expect(published.length).toBe(1);
    native.commit();
    expect(published[1]).toMatchObject({ clusters: ["c"], frontends: ["tcp 10.0.0.1:80"] });
    native.close();
  });
});
