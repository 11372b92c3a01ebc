import { describe, expect, test } from "bun:test";
import { MalformedResource } from "../../istiod/stream/sink.ts";
import { any, cluster, dnsCluster, loadAssignment, RAW, tlsSocket } from "../testdata/resources.ts";
import type { ClusterRecord } from "./cluster.ts";
import { ClusterReader } from "./cluster-reader.ts";
import type { envoy } from "./envoy.gen.js";

const NAME = "outbound|80||a.shop";

function read(more: envoy.Cluster.$Properties = {}, allowPlaintext = false, name = NAME): ClusterRecord {
  const record = new ClusterReader({ allowPlaintext }).read(name, cluster(name, more));
  if (record === undefined) throw new Error("the cluster was left out");
  return record;
}
const notes = (record: ClusterRecord) => record.policy.notes.map(({ kind, text }) => `${kind}: ${text}`);

describe("discovery", () => {
  test("EDS, by its own name or another", () => {
    expect(read().discovery).toEqual({ kind: "eds", endpointsName: NAME });
    expect(read({ edsClusterConfig: {} }).discovery).toEqual({ kind: "eds", endpointsName: NAME });
    expect(read({ edsClusterConfig: { serviceName: "other" } }).discovery).toEqual({
      kind: "eds",
      endpointsName: "other",
    });
  });

  test("STATIC carries its endpoints", () => {
    const given = loadAssignment(NAME, [
      {
        region: "r",
        weight: 2,
        endpoints: [
          { address: "10.0.0.2", port: 80 },
          { address: "10.0.0.1", port: 80 },
        ],
      },
    ]);
    const { discovery } = read({ type: 0, loadAssignment: given });
    // As JSON shows it: lists of endpoints are packed.
    expect(JSON.parse(JSON.stringify(discovery))).toMatchObject({
      kind: "static",
      endpoints: {
        localities: [
          { region: "r", weight: 2, endpoints: [{ address: "10.0.0.1" }, { address: "10.0.0.2" }] },
        ],
      },
    });
    expect(read({ type: 0 }).discovery).toMatchObject({ kind: "static", endpoints: { localities: [] } });
  });

  test("ORIGINAL_DST passes through, or keeps the address with another port", () => {
    expect(read({ type: 4, lbPolicy: 6 }).discovery).toEqual({ kind: "passthrough" });
    const overridden = read({
      type: 4,
      lbPolicy: 6,
      originalDstLbConfig: { upstreamPortOverride: { value: 1 } },
    });
    expect(overridden.discovery).toEqual({ kind: "port-override", port: 1 });
    for (const value of [0, 65536]) {
      const bad = () =>
        read({ type: 4, lbPolicy: 6, originalDstLbConfig: { upstreamPortOverride: { value } } });
      expect(bad).toThrow(`upstream_port_override has the port ${value}`);
    }
    const header = read({ type: 4, lbPolicy: 6, originalDstLbConfig: { useHttpHeader: true } });
    expect(header.policy.notes.map(({ text }) => text)).toEqual([
      "its endpoint is named by a header of each request: it can't be chosen at connect time",
    ]);
    const limited = read({
      type: 4,
      lbPolicy: 6,
      circuitBreakers: { thresholds: [{ maxConnections: { value: 5 } }] },
      outlierDetection: { consecutive_5xx: { value: 3 }, enforcingSuccessRate: { value: 0 } },
    });
    expect(limited.policy.notes.map(({ text }) => text)).toEqual([
      "circuit breaker max_connections 5: connections that keep their address are not counted",
      "outlier detection: it has no endpoints to choose from",
    ]);
  });

  test("2b.13 dynamic forward proxy", () => {
    const record = read({
      type: 0,
      clusterType: { name: "envoy.clusters.dynamic_forward_proxy" },
      lbPolicy: 6,
    });
    expect(record.discovery).toMatchObject({ kind: "refuse", reason: "undecidable" });
    expect(record.policy.notes.map(({ text }) => text)).toEqual([
      "its endpoint is named by each request (dynamic DNS): it can't be chosen at connect time",
    ]);
    const other = read({ type: 0, clusterType: { name: "envoy.clusters.redis" }, lbPolicy: 6 });
    expect(other.policy.notes.map(({ text }) => text)).toEqual([
      "its cluster type envoy.clusters.redis is not known to kmesh: connections are refused",
    ]);
  });

  test("2b.12 DNS: names in lower case and without the last dot, literals, families, refresh", () => {
    const reader = new ClusterReader({ allowPlaintext: false });
    const bytes = dnsCluster(NAME, ["B.example.", "192.0.2.1"], {
      type: 2,
      dnsLookupFamily: 4,
      respectDnsTtl: false,
    });
    expect(reader.read(NAME, bytes)?.discovery).toMatchObject({
      kind: "dns",
      logical: true,
      family: 4,
      refresh: 60,
      respectTtl: false,
      targets: [
        { host: "192.0.2.1", literal: true, port: 443, weight: 1 },
        { host: "b.example", literal: false },
      ],
    });
  });

  test("clusters of no outgoing connection are left out", () => {
    const reader = new ClusterReader({ allowPlaintext: false });
    for (const name of ["inbound|80||", "InboundPassthroughCluster", "connect_originate"]) {
      expect(reader.read(name, cluster(name))).toBeUndefined();
    }
  });
});

describe("2b.3 transport sockets", () => {
  const matches = (...list: envoy.TransportSocketMatch.$Properties[]) => ({ transportSocketMatches: list });
  const tunnel = {
    name: "hbone",
    match: { fields: { tunnel: { stringValue: "http" } } },
    transportSocket: tlsSocket(""),
  };
  const proxy = {
    name: "envoy.transport_sockets.upstream_proxy_protocol",
    typedConfig: any("envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport"),
  };

  test("auto-mTLS", () => {
    expect(read()).toMatchObject({ discovery: { kind: "eds" }, policy: { autoTls: true, notes: [] } });
  });

  test("plaintext", () => {
    for (const more of [
      { transportSocketMatches: [] },
      matches(tunnel, { name: "tlsMode-disabled", match: {}, transportSocket: RAW }),
      { transportSocketMatches: [], transportSocket: RAW },
    ]) {
      expect(read(more)).toMatchObject({ discovery: { kind: "eds" }, policy: { autoTls: false, notes: [] } });
    }
  });

  test.each([
    [
      "ISTIO_MUTUAL",
      matches(tunnel, { name: "tlsMode-istio", transportSocket: tlsSocket("outbound_.80") }),
      "mutual TLS",
    ],
    ["SIMPLE", matches(tunnel, { name: "user", transportSocket: tlsSocket("a.example") }), "TLS"],
    ["SIMPLE without matches", { transportSocketMatches: [], transportSocket: tlsSocket("a") }, "TLS"],
    [
      "PROXY protocol",
      matches({ name: "tlsMode-disabled", match: {}, transportSocket: proxy }),
      "the PROXY protocol",
    ],
    [
      "an unknown one",
      { transportSocketMatches: [], transportSocket: { name: "quic" } },
      "transport socket quic",
    ],
  ])("%s is demanded", (_, more, what) => {
    const refused = read(more);
    expect(refused.discovery).toEqual({ kind: "refuse", reason: "tls-required" });
    expect(notes(refused)[0]).toStartWith(`refused: ${what}`);
    const allowed = read(more, true);
    expect(allowed.discovery.kind).toBe("eds");
    expect(notes(allowed)[0]).toStartWith(`plaintext: ${what}`);
  });
});

describe("balancing", () => {
  test.each([
    [{ lbPolicy: 0 }, { policy: "round-robin" }],
    [{ lbPolicy: 1 }, { policy: "least-request" }],
    [{ lbPolicy: 3 }, { policy: "random" }],
    [
      { lbPolicy: 2, ringHashLbConfig: { minimumRingSize: { value: 1024 } } },
      { policy: "ring-hash", tableSize: 1024 },
    ],
    [{ lbPolicy: 2 }, { policy: "ring-hash", tableSize: 0 }],
    [
      { lbPolicy: 5, maglevLbConfig: { tableSize: { value: 1021 } } },
      { policy: "maglev", tableSize: 1021 },
    ],
    [{ lbPolicy: 6, type: 4 }, { policy: "round-robin" }],
    [
      {
        lbPolicy: 7,
        loadBalancingPolicy: {
          policies: [
            { typedExtensionConfig: { name: "x", typedConfig: any("x.Unknown") } },
            {
              typedExtensionConfig: {
                name: "y",
                typedConfig: any("envoy.extensions.load_balancing_policies.random.v3.Random"),
              },
            },
          ],
        },
      },
      { policy: "random" },
    ],
  ] as const)("%j", (more, balance) => {
    expect(read(more as envoy.Cluster.$Properties).policy.balance).toEqual(balance);
  });

  test("no lb_policy is round robin", () => {
    expect(read({ lbPolicy: null }).policy.balance).toEqual({ policy: "round-robin" });
  });

  test("an unknown extension is round robin, and said", () => {
    const record = read({ lbPolicy: 7, loadBalancingPolicy: { policies: [] } });
    expect(record.policy.balance).toEqual({ policy: "round-robin" });
    expect(notes(record)).toEqual([
      "not-enforced: its load balancing policy is unknown: round robin instead",
    ]);
  });

  test("panic threshold: absent 50, empty 0, 20 %", () => {
    expect(read({ commonLbConfig: null }).policy.panicThreshold).toBe(50);
    expect(read({ commonLbConfig: {} }).policy.panicThreshold).toBe(50);
    expect(read({ commonLbConfig: { healthyPanicThreshold: {} } }).policy.panicThreshold).toBe(0);
    expect(read({ commonLbConfig: { healthyPanicThreshold: { value: 20 } } }).policy.panicThreshold).toBe(20);
  });

  test("locality weights count only when asked for", () => {
    expect(read().policy.localityWeighted).toBe(false);
    expect(read({ commonLbConfig: { localityWeightedLbConfig: {} } }).policy.localityWeighted).toBe(true);
  });

  test("limits: none, istiod's largest number, a number, and 0", () => {
    const limited = (value: number) =>
      read({ circuitBreakers: { thresholds: [{ maxConnections: { value } }] } });
    expect(read().policy.maxConnections).toBe(0);
    expect(limited(0xffff_ffff).policy.maxConnections).toBe(0);
    expect(limited(50).policy.maxConnections).toBe(50);
    expect(limited(0).discovery).toEqual({ kind: "refuse", reason: "max-connections" });
    const high = read({ circuitBreakers: { thresholds: [{ priority: 1, maxConnections: { value: 5 } }] } });
    expect(high.policy.maxConnections).toBe(0);
  });
});

describe("outlier detection", () => {
  const ejection = (outlierDetection: object) => read({ outlierDetection }).policy.ejection;
  const DEFAULTS = { after: 5, base: 30_000, longest: 300_000, percent: 10, enforcing: 100 };

  test("none ejects nobody; an empty one has Envoy's defaults", () => {
    expect(read().policy.ejection).toEqual({ after: 0, base: 0, longest: 0, percent: 0, enforcing: 0 });
    expect(ejection({})).toEqual(DEFAULTS);
  });

  test("a failed connect counts as a 5xx, and as a gateway failure where those are enforced", () => {
    expect(ejection({ consecutive_5xx: { value: 7 } }).after).toBe(7);
    expect(ejection({ consecutive_5xx: { value: 7 }, consecutiveGatewayFailure: { value: 2 } }).after).toBe(
      7,
    );
    const both = {
      consecutiveGatewayFailure: { value: 2 },
      enforcingConsecutiveGatewayFailure: { value: 100 },
    };
    expect(ejection({ consecutive_5xx: { value: 7 }, ...both }).after).toBe(2);
    expect(ejection({ enforcingConsecutive_5xx: {}, ...both }).after).toBe(2);
    expect(ejection({ consecutive_5xx: { value: 7 }, enforcingConsecutive_5xx: { value: 0 } }).after).toBe(0);
    expect(ejection({ consecutive_5xx: {} }).after).toBe(0);
  });

  test("it counts by itself where errors of local origin are split off", () => {
    const split = { splitExternalLocalOriginErrors: true, consecutive_5xx: { value: 1 } };
    expect(ejection(split).after).toBe(5);
    expect(ejection({ ...split, consecutiveLocalOriginFailure: { value: 3 } }).after).toBe(3);
    expect(ejection({ ...split, enforcingConsecutiveLocalOriginFailure: { value: 0 } }).after).toBe(0);
  });

  test("a part of the rows of failures ejects where the enforcing percentage says so", () => {
    expect(ejection({ enforcingConsecutive_5xx: { value: 30 } })).toMatchObject({ after: 5, enforcing: 30 });
    expect(ejection({ enforcingConsecutive_5xx: { value: 300 } }).enforcing).toBe(100);
    const both = {
      enforcingConsecutive_5xx: { value: 30 },
      consecutiveGatewayFailure: { value: 3 },
      enforcingConsecutiveGatewayFailure: { value: 60 },
    };
    expect(ejection(both)).toMatchObject({ after: 3, enforcing: 60 });
    expect(ejection({ ...both, consecutiveGatewayFailure: { value: 5 } })).toMatchObject({
      after: 5,
      enforcing: 60,
    });
  });

  test("time and share", () => {
    const times = { baseEjectionTime: { seconds: 400 }, maxEjectionPercent: { value: 50 } };
    expect(ejection(times)).toEqual({
      after: 5,
      base: 400_000,
      longest: 400_000,
      percent: 50,
      enforcing: 100,
    });
    expect(ejection({ ...times, maxEjectionTime: { seconds: 500 } }).longest).toBe(500_000);
    expect(ejection({ maxEjectionPercent: { value: 0 } }).after).toBe(0);
    expect(ejection({ maxEjectionPercent: { value: 300 } }).percent).toBe(100);
  });
});

test("2b.7 everything valid and without effect is listed", () => {
  const record = read({
    roundRobinLbConfig: { slowStartConfig: { slowStartWindow: { seconds: 30 } } },
    outlierDetection: { consecutive_5xx: { value: 3 } },
    healthChecks: [{}],
    lbSubsetConfig: {},
    upstreamConnectionOptions: { tcpKeepalive: {} },
    connectTimeout: { seconds: 2, nanos: 500_000_000 },
    commonLbConfig: { zoneAwareLbConfig: {} },
    circuitBreakers: {
      thresholds: [{ maxRequests: { value: 9 }, maxRetries: { value: 0 }, maxPendingRequests: { value: 1 } }],
    },
  });
  expect(notes(record)).toEqual([
    "not-enforced: TCP keepalive",
    "not-enforced: active health checks",
    "not-enforced: circuit breaker max_pending_requests 1",
    "not-enforced: circuit breaker max_requests 9",
    "not-enforced: circuit breaker max_retries 0",
    "not-enforced: connect timeout 2.5 s",
    "not-enforced: outlier detection by HTTP errors: connects that fail count",
    "not-enforced: outlier detection by success rate",
    "not-enforced: slow start 30 s",
    "not-enforced: subset load balancing",
    "not-enforced: zone-aware routing",
  ]);
});

test("clusters that differ only in names are decoded once, and are the same but for the names", () => {
  const together = new ClusterReader({ allowPlaintext: false });
  for (const more of [{}, { transportSocketMatches: [], transportSocket: tlsSocket("x") }, { lbPolicy: 2 }]) {
    for (const host of ["a.shop", "b.shop", "much.longer.name.shop", "inbound"]) {
      const name = `outbound|80||${host}`;
      const alone = new ClusterReader({ allowPlaintext: false }).read(name, cluster(name, more));
      expect(together.read(name, cluster(name, more))).toEqual(alone as ClusterRecord);
    }
  }
  // What decides stays in the key: here the only difference is in the sockets.
  const plain = cluster("outbound|80||c.shop", {
    transportSocketMatches: [{ name: "a", match: {}, transportSocket: RAW }],
  });
  const tls = cluster("outbound|80||d.shop", {
    transportSocketMatches: [{ name: "a", match: {}, transportSocket: tlsSocket("") }],
  });
  expect(together.read("outbound|80||c.shop", plain)?.discovery.kind).toBe("eds");
  expect(together.read("outbound|80||d.shop", tls)?.discovery.kind).toBe("refuse");
});

describe("malformed", () => {
  test.each([
    ["type", { type: 5 }, "the cluster's type has the unknown value 5"],
    ["lb_policy", { lbPolicy: 8 }, "lb_policy has the unknown value 8"],
    ["the gap in lb_policy", { lbPolicy: 4 }, "lb_policy has the unknown value 4"],
    ["dns_lookup_family", { dnsLookupFamily: 5 }, "dns_lookup_family has the unknown value 5"],
    [
      "port 0",
      { type: 1, loadAssignment: loadAssignment(NAME, [{ endpoints: [{ address: "a.example", port: 0 }] }]) },
      "endpoint a.example has the port 0",
    ],
    [
      "a name in a STATIC cluster",
      { type: 0, loadAssignment: loadAssignment(NAME, [{ endpoints: [{ address: "a.example", port: 1 }] }]) },
      'an endpoint has the address "a.example", which is not an IP address',
    ],
  ])("%s", (_, more, reason) => {
    expect(() => read(more)).toThrow(new MalformedResource(NAME, reason));
  });

  test("another name inside, also when its like was seen before", () => {
    const reader = new ClusterReader({ allowPlaintext: false });
    expect(() => reader.read("x", cluster(NAME))).toThrow(MalformedResource);
    reader.read(NAME, cluster(NAME));
    expect(() => reader.read("x", cluster(NAME))).toThrow(
      "x: the message inside is called outbound|80||a.shop",
    );
    expect(() => reader.read("", cluster(""))).toThrow("it has no name");
  });

  test("truncated: never anything but a MalformedResource", () => {
    const bytes = cluster(NAME);
    for (let length = 0; length < bytes.length; length++) {
      try {
        new ClusterReader({ allowPlaintext: false }).read(NAME, bytes.slice(0, length));
      } catch (error) {
        expect(error).toBeInstanceOf(MalformedResource);
        expect((error as MalformedResource).resource).toBe(NAME);
      }
    }
    expect(() => new ClusterReader({ allowPlaintext: false }).read(NAME, bytes.slice(0, -1))).toThrow(
      MalformedResource,
    );
  });
});
