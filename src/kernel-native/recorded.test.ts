/** The mesh of what a real istiod sent (testdata/), and the numbered points of what was seen on it. */
import { describe, expect, test } from "bun:test";
import type { Frontend, Match, Mesh, Target } from "../mesh/model.ts";
import { feed, meshOf, observed, type Recording, recorded } from "./testdata/recorded.ts";

const meshes = new Map<Recording, Mesh>();
function mesh(name: Recording): Mesh {
  const known = meshes.get(name) ?? meshOf(name);
  meshes.set(name, known);
  return known;
}

function at(key: string, name: Recording = "v4"): Frontend {
  const found = mesh(name).frontends.get(`tcp ${key}`);
  if (found === undefined) throw new Error(`${name} has no frontend ${key}`);
  return found;
}

const to = (cluster: string): Target => ({ kind: "cluster", cluster });
const notesOf = (service: string, name: Recording = "v4") =>
  (mesh(name).services.get(service)?.notes ?? []).map(({ kind, text }) => `${kind}: ${text}`);
const clusterOf = (cluster: string, name: Recording = "v4") => {
  const found = mesh(name).clusters.get(cluster);
  if (found === undefined) throw new Error(`${name} has no cluster ${cluster}`);
  return found;
};
const meshNotes = (name: Recording) => mesh(name).notes.map(({ text }) => text);

/** As JSON shows it: lists of endpoints are packed. */
const plain = (value: unknown): unknown => JSON.parse(JSON.stringify(value));

describe("frontends", () => {
  test("TCP services: one for each address and port", () => {
    expect(at("10.96.1.1:9000")).toEqual({
      match: { kind: "address", address: "10.96.1.1", port: 9000 },
      protocol: "tcp",
      service: "web.shop.svc.cluster.local:9000",
      target: to("outbound|9000||web.shop.svc.cluster.local"),
    });
  });

  test("2b.2 HTTP services: addresses of the virtual host and all of NDS's", () => {
    for (const address of ["10.97.0.1", "10.97.0.2", "[fd00:97::1]"]) {
      expect(at(`${address}:7080`)).toMatchObject({
        service: "multi.shop.internal:7080",
        target: { kind: "split", split: "7080 multi.shop.internal:7080" },
      });
    }
    expect(mesh("v4").splits.get("7080 multi.shop.internal:7080")?.shares).toEqual([
      { cluster: "outbound|7080|v1|multi.shop.internal", weight: 80 },
      { cluster: "outbound|7080|v2|multi.shop.internal", weight: 20 },
    ]);
  });

  test("2b.2 a restart of istiod moves no frontend", () => {
    // But for the blocks of an HTTP service: istiod tells one of them, and no other table has the rest.
    // And but for the service that was deleted in between.
    const keys = (name: Recording) => [...mesh(name).frontends].filter(([key]) => !/:(7180|9100)$/.test(key));
    expect(keys("restarted").sort()).toEqual(keys("v4").sort());
  });

  test("2b.2 CIDR services: TCP by prefix_ranges, HTTP by a domain, bracketed for IPv6", () => {
    expect(at("10.98.0.0/16:7100").target).toEqual(to("outbound|7100||cidr.shop.internal"));
    expect(at("[fd00:201::/64]:7100").target).toEqual(to("outbound|7100||cidr.shop.internal"));
    const http = to("outbound|7180||cidr.shop.internal");
    const blocks: Record<string, Match> = {
      "tcp 10.98.0.0/16:7180": { kind: "prefix", address: "10.98.0.0", length: 16, port: 7180 },
      "tcp [fd00:201::/64]:7180": { kind: "prefix", address: "fd00:201::", length: 64, port: 7180 },
    };
    const seen = new Set<string>();
    for (const name of ["v4", "v6", "dual-stack", "restarted", "no-dns-capture", "registry-only"] as const) {
      const found = [...mesh(name).frontends].filter(([key]) => key.endsWith(":7180"));
      expect(found.length).toBe(1);
      for (const [key, { match, target }] of found) {
        seen.add(key);
        expect(match).toEqual(blocks[key] as Match);
        expect(target).toEqual(http);
      }
    }
    expect([...seen].sort()).toEqual(Object.keys(blocks));
  });

  test("2b.2 a dual-stack node reaches auto-allocated services by both families", () => {
    expect(at("240.240.0.5:8600", "dual-stack").service).toBe("auto1.shop.internal:8600");
    expect(at("[2001:2::5]:8600", "dual-stack").service).toBe("auto1.shop.internal:8600");
  });

  test("dual-stack Services: additional addresses of a TCP listener, both families of an HTTP one", () => {
    for (const address of ["10.96.11.2", "[fd00:10:96::2]"]) {
      expect(at(`${address}:8201`, "dual-stack").service).toBe("both.shop.svc.cluster.local:8201");
      expect(at(`${address}:8202`, "dual-stack").service).toBe("both.shop.svc.cluster.local:8202");
    }
  });

  test("an IPv6-only node: ::_PORT listeners and bracketed addresses", () => {
    expect(at("[2001:2::5]:8600", "v6").target).toEqual(to("outbound|8600||auto1.shop.internal"));
    expect(at("[2001:2::5]:8500", "v6").target).toEqual(to("outbound|8500||auto1.shop.internal"));
  });

  test("2b.5 a TCP service without addresses takes its whole port", () => {
    expect(at("*:8501")).toEqual({
      match: { kind: "port", port: 8501 },
      protocol: "tcp",
      service: "any8501.shop.internal:8501",
      target: to("outbound|8501||any8501.shop.internal"),
    });
    expect(clusterOf("outbound|8501||any8501.shop.internal").kind).toBe("passthrough");
  });

  test("2b.5 without DNS capture the first service without an address takes the port", () => {
    expect(at("*:8500", "no-dns-capture").target).toEqual(to("outbound|8500||auto1.shop.internal"));
  });

  test("2b.5 destinationSubnets: a longer prefix with a cluster of another port", () => {
    expect(at("10.97.2.16/28:8901").target).toEqual(to("outbound|8900||nets.shop.internal"));
    expect(at("10.97.2.0/24:8901").target).toEqual(to("outbound|8901||nets.shop.internal"));
    expect(at("10.97.2.16/28:8901").service).toBe("nets.shop.internal:8901");
  });

  test("2b.5 the catch-all can be a cluster (egressProxy)", () => {
    expect(mesh("egress-proxy").fallback).toEqual(to("outbound|8101||web.shop.svc.cluster.local"));
    expect([...mesh("egress-proxy").frontends.keys()].filter((key) => key.startsWith("tcp *"))).toEqual([
      "tcp *:8501",
    ]);
  });

  test("a Sidecar's listener on a unix socket is listed, not taken over", () => {
    expect(meshNotes("egress-proxy")).toEqual([
      "listener unix:///run/x.sock_0 is not applied: it listens on the unix socket /run/x.sock",
    ]);
  });

  test("ALLOW_ANY passes what is no service", () => {
    expect(mesh("v4").fallback).toEqual({ kind: "passthrough" });
  });

  test("2b.6 REGISTRY_ONLY refuses what is no service, and opens the ports that can't be decided", () => {
    expect(mesh("registry-only").fallback).toEqual({ kind: "refuse", reason: "not-in-registry" });
    expect(at("*:7310", "registry-only").target).toEqual({ kind: "passthrough" });
    expect(at("*:7311", "registry-only").target).toEqual({ kind: "passthrough" });
    const open = meshNotes("registry-only").filter((text) => text.includes("open to every address"));
    expect(open.map((text) => /^port \d+/.exec(text)?.[0])).toEqual(
      [7200, 7201, 7202, 7300, 7301, 7310, 7311, 8500, 8600].map((port) => `port ${port}`),
    );
    expect(open[5]).toContain("*.wild.internal");
    // Their only address is one that istiod allocated: TCP, HTTP, DNS and dynamic DNS hosts.
    for (const port of [7200, 7300, 7301, 8500, 8600])
      expect(at(`*:${port}`, "registry-only").target).toEqual({ kind: "passthrough" });
    expect(mesh("v4").frontends.has("tcp *:7310")).toBe(false);
  });

  test("2b.6 headless: TCP by listeners of the pods, HTTP by their addresses in the table of names", () => {
    for (const address of ["172.31.2.1", "172.31.2.2"]) {
      expect(at(`${address}:5432`).target).toEqual(to("outbound|5432||db.shop.svc.cluster.local"));
      expect(at(`${address}:8103`).target).toEqual(to("outbound|8103||db.shop.svc.cluster.local"));
    }
    expect(clusterOf("outbound|8103||db.shop.svc.cluster.local").kind).toBe("passthrough");
  });

  test("2b.7 weights of clusters that don't exist stay, and are listed", () => {
    expect(mesh("v4").splits.get("10.97.0.1_7000")?.shares).toEqual([
      { cluster: "outbound|7000|v1|multi.shop.internal", weight: 80 },
      { cluster: "outbound|7000|nowhere|multi.shop.internal", weight: 20 },
    ]);
    expect(mesh("v4").clusters.has("outbound|7000|nowhere|multi.shop.internal")).toBe(false);
    expect(notesOf("multi.shop.internal:7000")).toContain(
      "refused: cluster outbound|7000|nowhere|multi.shop.internal does not exist: its share is refused",
    );
  });

  test("a TCP route to another host counts for the service whose address it is", () => {
    expect(at("10.97.3.2:7700")).toMatchObject({
      service: "simple2.shop.internal:7700",
      target: to("outbound|7500||mtls.shop.internal"),
    });
  });

  test("sniffed: the exact listener wins over the shared routes, and the configured route is taken", () => {
    expect(at("10.97.3.3:7080")).toMatchObject({
      service: "sniffed.shop.internal:7080",
      target: { kind: "split", split: "sniffed.shop.internal:7080 sniffed.shop.internal:7080" },
    });
    expect(notesOf("sniffed.shop.internal:7080")).toEqual([
      "layer7: its protocol is found out from the first bytes: the HTTP route takes all connections",
    ]);
    expect(at("10.96.1.1:8102").target).toEqual(to("outbound|8102||web.shop.svc.cluster.local"));
    expect(notesOf("web.shop.svc.cluster.local:8102")).toEqual([]);
  });

  test("TLS routes by server name go where all of them go", () => {
    expect(at("10.97.3.4:443")).toMatchObject({
      service: "tlssvc.shop.internal:443",
      target: to("outbound|7500||simple.shop.internal"),
    });
    expect(notesOf("tlssvc.shop.internal:443")[0]).toStartWith(
      "layer7: taken for the TLS server name tlssvc.shop.internal alone",
    );
  });

  test("a duplicate address belongs to the first service, the other one says so", () => {
    for (const port of [7400, 7401]) {
      expect(at(`10.97.9.9:${port}`).service).toBe(`dupa.shop.internal:${port}`);
      expect(notesOf(`dupb.shop.internal:${port}`)).toEqual([
        `conflict: 10.97.9.9:${port} belongs to dupa.shop.internal:${port}`,
      ]);
    }
  });

  test("2b.13 auto-allocated addresses of dynamic DNS hosts are refused as undecidable", () => {
    for (const port of [7300, 7301]) {
      const cluster = `outbound|${port}||*.dyn.internal`;
      expect(at(`240.240.0.4:${port}`).target).toEqual(to(cluster));
      expect(clusterOf(cluster)).toMatchObject({ kind: "refuse", reason: "undecidable" });
      expect(notesOf(`*.dyn.internal:${port}`).at(-1)).toStartWith(
        "refused: its endpoint is named by each request (dynamic DNS)",
      );
    }
    expect(at("240.240.0.4:7301", "egress-proxy").target).toEqual(to("outbound|7301||*.dyn.internal"));
  });

  test("2b.14 routes that need the request: the one for all requests, else the own cluster", () => {
    expect(notesOf("multi.shop.internal:7080")).toContain(
      "layer7: 1 route needs the request: the route for all requests takes them",
    );
    expect(at("10.97.3.1:7600").target).toEqual(to("outbound|7600||l7.shop.internal"));
    expect(notesOf("l7.shop.internal:7600")).toEqual([
      "layer7: 2 routes need the request: its own cluster takes all",
    ]);
    expect(at("10.97.3.1:7601").target).toEqual(to("outbound|7601||l7.shop.internal"));
    expect(notesOf("l7.shop.internal:7601")).toEqual(["layer7: redirect: its own cluster takes all"]);
    expect(at("10.97.3.1:7602").target).toEqual(to("outbound|7602||l7.shop.internal"));
    expect(notesOf("l7.shop.internal:7602")).toEqual([
      "layer7: direct response 503: its own cluster takes all",
    ]);
    expect(at("10.97.3.1:7603").target).toEqual(to("outbound|7080||multi.shop.internal"));
    expect(notesOf("l7.shop.internal:7603")).toEqual([
      "layer7: fault injection",
      "layer7: mirroring",
      "not-enforced: retries 5",
      "not-enforced: timeout 3 s",
    ]);
  });
});

describe("shapes that were once got wrong (test/interop/shapes.yaml)", () => {
  const shape = (key: string) => at(key, "shapes");

  test("resolution NONE with targetPort: the same address, that port, also for a block", () => {
    for (const [key, name] of [
      ["10.66.0.3:7111", "outbound|7111||none.shop.internal"],
      ["10.67.0.0/24:7112", "outbound|7112||noneblock.shop.internal"],
    ] as const) {
      expect(shape(key).target).toEqual(to(name));
      expect(clusterOf(name, "shapes")).toMatchObject({ kind: "port-override", port: 7001 });
    }
    expect(clusterOf("outbound|7001||none.shop.internal", "shapes").kind).toBe("passthrough");
    expect(notesOf("none.shop.internal:7111", "shapes")).toEqual([]);
  });

  test("a frontend that no connection reaches is listed, one at 240.0.0.0/4 is none", () => {
    expect(shape("240.1.2.3:7100").target).toEqual(to("outbound|7100||classe.shop.internal"));
    expect(notesOf("classe.shop.internal:7100", "shapes")).toEqual([]);
    expect(notesOf("meta.shop.internal:7101", "shapes")).toEqual([
      "not-enforced: no connection to 169.254.169.254:7101 is governed: 169.254.0.0/16 (link-local) is always exempt",
    ]);
  });

  test("hosts with an allocated address alone open their ports, and keep the address", () => {
    const ports = { ext: [8180, 8443, 8190], extdns: [8181, 8445, 8191] };
    for (const [host, list] of Object.entries(ports)) {
      for (const port of list) {
        expect(shape(`*:${port}`).target).toEqual({ kind: "passthrough" });
        const own = [...mesh("shapes").frontends.values()].filter(
          ({ service }) => service === `${host}.shop.internal:${port}`,
        );
        expect(own.map(({ target }) => target)).toEqual([to(`outbound|${port}||${host}.shop.internal`)]);
        expect(notesOf(`${host}.shop.internal:${port}`, "shapes").join()).toContain(
          "istiod allocated its only address",
        );
      }
    }
    const open = [...mesh("shapes").frontends.keys()].filter((key) => key.startsWith("tcp *:"));
    expect(open.length).toBe(6);
  });

  test("routes by TLS server name to two subsets go to the service's own cluster", () => {
    expect(shape("10.200.4.1:8444").target).toEqual(to("outbound|8444||sni.shop.internal"));
    expect(clusterOf("outbound|8444||sni.shop.internal", "shapes").localities[0]?.endpoints.length).toBe(2);
    expect(notesOf("sni.shop.internal:8444", "shapes")[0]).toContain("lead to different clusters");
  });

  test("maxConnections", () => {
    expect(clusterOf("outbound|7103||vipa.shop.internal", "shapes").maxConnections).toBe(2);
    expect(clusterOf("outbound|7103||vipb.shop.internal", "shapes").maxConnections).toBe(0);
  });
});

describe("clusters", () => {
  test("2b.1 nothing needs a listener inside Envoy when DISABLE_HBONE_SEND is sent", () => {
    const empty = [...mesh("v4").clusters.values()].filter(
      ({ kind, localities, pending }) => kind === "endpoints" && localities.length === 0 && !pending,
    );
    expect(empty.map(({ name }) => name)).toEqual(["outbound|443||kubernetes.default.svc.cluster.local"]);
    expect(notesOf("web.shop.svc.cluster.local:8101")).toEqual([]);
  });

  test("2b.3 auto-mTLS: plaintext, listed", () => {
    expect(clusterOf("outbound|7500||mtls.shop.internal").localities[0]?.endpoints.length).toBe(2);
    expect(notesOf("mtls.shop.internal:7500")).toEqual([
      "plaintext: peers prefer mutual TLS: plaintext is sent",
    ]);
  });

  test.each([
    ["forced", "mutual TLS of the mesh (ISTIO_MUTUAL)"],
    ["simple", "TLS"],
    ["proxyproto", "the PROXY protocol"],
  ])("2b.3 %s: plaintext would leak or break, refused", (host, what) => {
    const name = `outbound|7500||${host}.shop.internal`;
    expect(clusterOf(name)).toMatchObject({ kind: "refuse", reason: "tls-required", localities: [] });
    expect(notesOf(`${host}.shop.internal:7500`)).toEqual([
      `refused: ${what} is demanded, which kmesh speaks through its tunnel alone: connections are refused`,
    ]);
    const allowed = meshOf("v4", { allowPlaintext: true });
    expect(allowed.clusters.get(name)).toMatchObject({ kind: "endpoints", reason: "none" });
    expect(allowed.services.get(`${host}.shop.internal:7500`)?.notes[0]?.kind).toBe("plaintext");
  });

  describe("2b.3 with the tunnel", () => {
    const tunnelled = meshOf("v4", { tunnel: true });
    const carried = (host: string) => {
      const cluster = tunnelled.clusters.get(`outbound|7500||${host}.shop.internal`);
      const endpoints = cluster?.localities.flatMap((locality) => locality.endpoints.toJSON()) ?? [];
      return endpoints.map(({ address, port, transport = 0 }) => ({
        at: `${address}:${port}`,
        ...cluster?.transports[transport - 1],
      }));
    };
    const sans = [{ kind: "exact" as const, value: "spiffe://cluster.local/ns/shop/sa/sa" }];

    test("auto-mTLS: by the endpoint's metadata", () => {
      expect(carried("mtls")).toEqual([
        { at: "172.31.7.1:7500", kind: "istio", sni: "outbound_.7500_._.mtls.shop.internal", sans },
        { at: "172.31.7.2:7500" },
      ]);
    });

    test("ISTIO_MUTUAL: whatever the endpoint says", () => {
      const sni = "outbound_.7500_._.forced.shop.internal";
      expect(carried("forced")).toEqual([{ at: "172.31.7.3:7500", kind: "istio", sni, sans: [] }]);
    });

    test("SIMPLE: the machine's roots and the host", () => {
      expect(carried("simple")).toMatchObject([
        { kind: "tls", sni: "simple.shop.internal", roots: "system", certificate: "", key: "" },
      ]);
    });

    test("the PROXY protocol, version 2", () => {
      expect(carried("proxyproto")).toEqual([{ at: "172.31.7.5:7500", kind: "proxy-protocol", version: 2 }]);
    });

    test("gateways of other networks, with the service's server name and identities", () => {
      const sni = "outbound_.7500_._.remote.shop.internal";
      expect(carried("remote")).toEqual([
        { at: "172.30.0.1:15443", kind: "istio", sni, sans },
        { at: "172.31.8.3:7500" },
      ]);
      expect(carried("remoteonly")).toMatchObject([{ at: "172.30.0.1:15443", kind: "istio" }]);
    });

    test("nothing is said to go out in plaintext, and all else is as without it", () => {
      const without = mesh("v4");
      for (const [name, service] of tunnelled.services)
        expect(
          service.notes.filter(({ kind }) => kind === "plaintext"),
          name,
        ).toEqual([]);
      const differing = [...tunnelled.clusters.values()]
        .filter((cluster) => cluster.transports.length > 0)
        .map(({ name }) => name.split("|")[3]);
      expect(differing.sort()).toEqual(
        ["forced", "mtls", "proxyproto", "remote", "remoteonly", "simple"].map(
          (name) => `${name}.shop.internal`,
        ),
      );
      for (const [name, cluster] of tunnelled.clusters)
        if (cluster.transports.length === 0) expect(cluster).toEqual(clusterOf(name));
      expect([...tunnelled.frontends]).toEqual([...without.frontends]);
    });
  });

  test("2b.3 gateways of other networks: left out, or the cluster is refused when there is nothing else", () => {
    const [locality, ...others] = clusterOf("outbound|7500||remote.shop.internal").localities;
    expect(others).toEqual([]);
    expect(plain(locality)).toMatchObject({ weight: 1, endpoints: [{ address: "172.31.8.3", port: 7500 }] });
    expect(notesOf("remote.shop.internal:7500")[0]).toContain("endpoints of other networks are left out");
    expect(clusterOf("outbound|7500||remoteonly.shop.internal")).toMatchObject({
      kind: "refuse",
      reason: "tls-required",
    });
    const allowed = meshOf("v4", { allowPlaintext: true });
    expect(
      allowed.clusters.get("outbound|7500||remoteonly.shop.internal")?.localities[0]?.endpoints.toJSON(),
    ).toEqual([{ address: "172.30.0.1", port: 15443, weight: 1, healthy: true }]);
  });

  test("2b.4 inbound STRICT and authorization policies of a machine without services are said", () => {
    expect(meshNotes("registry-only")).toContain(
      "inbound STRICT mutual TLS: enforced at the ports of this machine's services (it has none), at no others",
    );
    expect(meshNotes("v4")).toEqual([
      "inbound authorization policies: enforced at the ports of this machine's services (it has none), at no others",
    ]);
    expect(mesh("registry-only").inbound).toEqual({
      ports: [],
      mtls: { default: "strict", ports: [] },
      policies: [],
      trustDomains: ["cluster.local"],
    });
  });

  test("2b.11 endpoints repeated for each address of the service count once, also in the locality's weight", () => {
    const { localities } = clusterOf("outbound|7000|v2|multi.shop.internal");
    expect(localities.map(({ priority, weight, endpoints }) => [priority, weight, endpoints.length])).toEqual(
      [
        [0, 1, 1],
        [1, 1, 1],
      ],
    );
    // IPv6 endpoints stay: each family has its own slots.
    expect(localities[0]?.endpoints.get(0).address).toBe("fd00:31::3");
  });

  test("Passthrough and BlackHole", () => {
    expect(clusterOf("PassthroughCluster").kind).toBe("passthrough");
    expect(clusterOf("BlackHoleCluster")).toMatchObject({ kind: "refuse", reason: "policy" });
    expect([...mesh("v4").clusters.keys()].some((name) => name.startsWith("inbound"))).toBe(false);
    expect(mesh("v4").clusters.has("InboundPassthroughCluster")).toBe(false);
  });

  test("load balancing: policies, panic threshold, limits, locality weights", () => {
    expect(clusterOf("outbound|7000||multi.shop.internal")).toMatchObject({
      balance: { policy: "round-robin" },
      panicThreshold: 20,
      maxConnections: 50,
    });
    expect(clusterOf("outbound|7500||mtls.shop.internal")).toMatchObject({
      balance: { policy: "least-request" },
      panicThreshold: 0,
      maxConnections: 0,
      localityWeighted: false,
    });
    expect(clusterOf("outbound|7900||dist.shop.internal").localityWeighted).toBe(true);
    expect(clusterOf("outbound|7800||hashed.shop.internal").balance).toEqual({
      policy: "maglev",
      tableSize: 1021,
    });
    expect(clusterOf("outbound|7801||hashed.shop.internal").balance).toEqual({
      policy: "maglev",
      tableSize: 1021,
    });
    expect(clusterOf("outbound|7800||hashhdr.shop.internal").balance).toEqual({ policy: "random" });
    expect(clusterOf("outbound|7801||hashhdr.shop.internal").balance).toEqual({ policy: "random" });
    expect(notesOf("hashhdr.shop.internal:7801")).toEqual([
      "layer7: consistent hashing without the source address: random instead",
    ]);
  });

  test("what is valid and not enforced is listed", () => {
    expect(notesOf("multi.shop.internal:7000").filter((text) => text.startsWith("not-enforced"))).toEqual([
      "not-enforced: circuit breaker max_pending_requests 7",
      "not-enforced: connect timeout 2 s",
      "not-enforced: max requests per connection 3",
      "not-enforced: outlier detection by HTTP errors: connects that fail count",
      "not-enforced: slow start 30 s",
    ]);
    // consecutive_5xx 0 comes with enforcing 0: nothing is lost.
    expect(notesOf("dist.shop.internal:7900")).toEqual([]);
    expect(notesOf("web.shop.svc.cluster.local:9000")).toEqual([]);
  });

  test("2b.12 DNS: literals, localities and weights; pending until the first answer", async () => {
    const { native, published } = observed({
      lookup: async (host, family) => ({
        addresses: host === "a.example.test" && family === 4 ? ["198.51.100.9", "198.51.100.8"] : [],
        ttl: 60,
      }),
    });
    feed(native, recorded("v4"));
    native.commit();
    const name = "outbound|7201||dns3.shop.internal";
    expect(native.mesh.clusters.get(name)?.pending).toBe(true);
    while (published.length < 2) await new Promise((resolve) => setTimeout(resolve, 1));
    native.close();
    expect(published[1]).toMatchObject({ everything: false, frontends: [], splits: [] });
    expect(published[1]?.clusters).toContain(name);
    expect(plain(native.mesh.clusters.get(name))).toMatchObject({
      pending: false,
      localities: [
        {
          region: "r1",
          weight: 3,
          endpoints: [
            { address: "198.51.100.8", port: 7201, weight: 3 },
            { address: "198.51.100.9", port: 7201, weight: 3 },
          ],
        },
        { region: "r2", weight: 1, endpoints: [{ address: "192.0.2.7", port: 7201, weight: 1 }] },
      ],
    });
    expect(native.mesh.clusters.get("outbound|7200||dns2.shop.internal")).toMatchObject({
      pending: false,
      localities: [],
    });
  });

  test("2b.9 only clusters of type EDS are subscribed to, and the routes of listeners on the network", () => {
    const { native } = observed();
    feed(native, recorded("egress-proxy"));
    const sent = recorded("egress-proxy").find(({ type }) => type === "endpoints");
    // Not to those that are refused anyhow.
    const refused = ["forced", "simple", "proxyproto"].map((host) => `outbound|7500||${host}.shop.internal`);
    const asked = sent?.resources.map(({ name }) => name).filter((name) => !refused.includes(name)) ?? [];
    expect([...native.wanted("endpoints")].sort()).toEqual(asked.sort());
    expect(native.wanted("route").has("7080")).toBe(true);
    expect(native.wanted("route").has("unix:///run/x.sock")).toBe(false);
    native.close();
  });
});

describe("changes as istiod sends them", () => {
  test("2b.8, 2b.9 a renamed subset, one endpoint more, a deleted service: only what differs", () => {
    const { native, published } = observed();
    const steps = new Map<string, ReturnType<typeof recorded>>();
    for (const response of recorded("changes")) {
      const step = response.step ?? "";
      steps.set(step, [...(steps.get(step) ?? []), response]);
    }
    for (const responses of steps.values()) {
      feed(native, responses);
      native.commit();
    }
    native.close();
    expect([...steps.keys()]).toEqual(["", "rename subset", "endpoint", "delete"]);
    const flow = "outbound|9100||flow.shop.internal";
    const s1 = "outbound|9100|s1|flow.shop.internal";
    const s2 = "outbound|9100|s2|flow.shop.internal";
    const frontends = ["tcp 10.97.20.1:9100"];
    expect(published).toEqual([
      { everything: true, services: [], frontends: [], splits: [], clusters: [] },
      { everything: false, services: [], frontends, splits: [], clusters: [s1, s2] },
      { everything: false, services: [], frontends: [], splits: [], clusters: [s2, flow] },
      {
        everything: false,
        services: ["flow.shop.internal:9100"],
        frontends,
        splits: [],
        clusters: [s2, flow],
      },
    ]);
  });

  test("a subset without its endpoints yet is pending: what the kernel holds stays", () => {
    const { native } = observed();
    const responses = recorded("changes").filter(({ step }) => step === "" || step === "rename subset");
    // The endpoints of s2 come last.
    feed(native, responses.slice(0, -1));
    native.commit();
    expect(native.mesh.clusters.get("outbound|9100|s2|flow.shop.internal")?.pending).toBe(true);
    feed(native, responses.slice(-1));
    native.commit();
    expect(native.mesh.clusters.get("outbound|9100|s2|flow.shop.internal")?.pending).toBe(false);
    native.close();
  });

  test("2b.9 what istiod sends after its restart, in another order, changes nothing", () => {
    const { native, published } = observed();
    feed(native, recorded("v4"));
    native.commit();
    feed(
      native,
      recorded("v4").map((response) => ({ ...response, resources: [...response.resources].reverse() })),
    );
    native.commit();
    native.close();
    expect(published.length).toBe(1);
  });
});
