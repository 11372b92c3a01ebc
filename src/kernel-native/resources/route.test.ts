import { describe, expect, test } from "bun:test";
import { MalformedResource } from "../../istiod/stream/sink.ts";
import { any, type GivenHost, routes, toCluster, toShares } from "../testdata/resources.ts";
import { envoy } from "./envoy.gen.js";
import { flattenRoutes, type VirtualHostRecord } from "./route.ts";

const OWN = { kind: "cluster", cluster: "outbound|80||a.shop" } as const;

function host(given: Partial<GivenHost> = {}): VirtualHostRecord {
  const [record] = flattenRoutes("80", routes("80", [{ name: "a.shop:80", ...given }])).hosts;
  if (record === undefined) throw new Error("no virtual host");
  return record;
}
const notes = (record: VirtualHostRecord) => record.notes.map(({ kind, text }) => `${kind}: ${text}`);

describe("domains", () => {
  test("addresses and blocks, with and without brackets and ports; names are none", () => {
    const domains = [
      "a",
      "a.shop.svc",
      "10",
      "*.a.shop",
      "10.0.0.1",
      "10.0.0.2:8601",
      "[2001:2::2]",
      "[fd00::1]:80",
      "10.1.0.0/16",
      "[fd00:201::/64]",
      "10.0.0.300",
      "v1.2",
      "[x]",
    ];
    expect(host({ domains })).toMatchObject({
      name: "a.shop:80",
      host: "a.shop",
      port: 80,
      addresses: ["10.0.0.1", "10.0.0.2", "2001:2::2", "fd00::1"],
      prefixes: [
        { address: "10.1.0.0", length: 16 },
        { address: "fd00:201::", length: 64 },
      ],
      everything: false,
      headless: true,
    });
  });

  test("the host for everything else", () => {
    expect(host({ name: "allow_any:0", domains: ["*"] }).everything).toBe(true);
  });
});

describe("2b.14 where connections go", () => {
  const needing = (match: envoy.RouteMatch.$Properties) => ({ match, route: { cluster: "other" } });

  test("one route for every request", () => {
    expect(host()).toMatchObject({ destination: OWN, hashesSource: false, notes: [] });
    expect(host({ routes: [toCluster("b")] }).destination).toEqual({ kind: "cluster", cluster: "b" });
  });

  test("weights: zeros are left out, one that is left is no split", () => {
    expect(host({ routes: [toShares(["a", 80], ["b", 0], ["c", 20])] }).destination).toEqual({
      kind: "shares",
      shares: [
        { cluster: "a", weight: 80 },
        { cluster: "c", weight: 20 },
      ],
    });
    expect(host({ routes: [toShares(["a", 0], ["b", 7])] }).destination).toEqual({
      kind: "cluster",
      cluster: "b",
    });
  });

  test.each([
    ["a path", { path: "/x" }],
    ["a longer prefix", { prefix: "/x" }],
    ["a header", { prefix: "/", headers: [{ name: "x", presentMatch: true }] }],
    ["a query parameter", { prefix: "/", queryParameters: [{ name: "x" }] }],
    ["gRPC", { prefix: "/", grpc: {} }],
    ["a share of requests", { prefix: "/", runtimeFraction: { defaultValue: { numerator: 5 } } }],
    ["a cookie", { prefix: "/", cookies: [{}] }],
    ["an expression", { safeRegex: { regex: "/a.*" } }],
    ["a separated prefix", { pathSeparatedPrefix: "/a" }],
  ])("%s needs the request", (_, match) => {
    const alone = host({ routes: [needing(match)] });
    expect(alone.destination).toEqual(OWN);
    expect(notes(alone)).toEqual(["layer7: 1 route needs the request: its own cluster takes all"]);
    const followed = host({ routes: [needing(match), needing(match), toCluster("b")] });
    expect(followed.destination).toEqual({ kind: "cluster", cluster: "b" });
    expect(notes(followed)).toEqual([
      "layer7: 2 routes need the request: the route for all requests takes them",
    ]);
  });

  test("routes behind the one for every request are never reached", () => {
    expect(notes(host({ routes: [toCluster("b"), needing({ prefix: "/x" })] }))).toEqual([]);
  });

  test.each([".*", "/.*"])("the expression %s matches every request", (regex) => {
    const all = { match: { safeRegex: { regex } }, route: { cluster: "b" } };
    expect(host({ routes: [all] }).destination).toEqual({ kind: "cluster", cluster: "b" });
  });

  test.each([
    ["redirect", { redirect: { httpsRedirect: true } }],
    ["direct response 503", { directResponse: { status: 503 } }],
    ["the request names its cluster", { route: { clusterHeader: "x-cluster" } }],
    ["no forwarding", { nonForwardingAction: {} }],
  ])("%s: the own cluster", (what, action) => {
    const record = host({ routes: [{ match: { prefix: "/" }, ...action }] });
    expect(record.destination).toEqual(OWN);
    expect(notes(record)).toEqual([`layer7: ${what}: its own cluster takes all`]);
  });

  test("no routes at all: the own cluster", () => {
    expect(host({ routes: [] }).destination).toEqual(OWN);
    expect(notes(host({ routes: [] }))).toEqual(["layer7: no route: its own cluster takes all"]);
  });

  test("what the route does beside forwarding is listed", () => {
    const fault = envoy.HttpFault.encode({ delay: {} }).finish();
    const route = {
      ...toCluster("b", {
        timeout: { seconds: 3 },
        idleTimeout: { seconds: 9 },
        retryPolicy: { retryOn: "5xx", numRetries: { value: 5 } },
        prefixRewrite: "/x",
        hostRewriteLiteral: "x",
        requestMirrorPolicies: [{ cluster: "m" }],
      }),
      requestHeadersToAdd: [{}],
      typedPerFilterConfig: {
        "envoy.filters.http.fault": any("envoy.extensions.filters.http.fault.v3.HTTPFault", fault),
        "envoy.filters.http.cors": any("envoy.extensions.filters.http.cors.v3.CorsPolicy"),
        "envoy.filters.http.lua": any("envoy.extensions.filters.http.lua.v3.LuaPerRoute"),
      },
    };
    const record = host({ routes: [route] });
    expect(record.destination).toEqual({ kind: "cluster", cluster: "b" });
    expect(notes(record)).toEqual([
      "layer7: CORS",
      "layer7: fault injection",
      "layer7: filter envoy.filters.http.lua",
      "layer7: header changes",
      "layer7: host rewrite",
      "layer7: mirroring",
      "layer7: path rewrite",
      "not-enforced: idle timeout 9 s",
      "not-enforced: retries 5",
      "not-enforced: timeout 3 s",
    ]);
  });

  test("istiod's own retries are no one's configuration", () => {
    const retryOn = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";
    expect(
      notes(host({ routes: [toCluster("b", { retryPolicy: { retryOn, numRetries: { value: 2 } } })] })),
    ).toEqual([]);
    expect(
      notes(host({ routes: [toCluster("b", { retryPolicy: { retryOn, numRetries: { value: 3 } } })] })),
    ).toEqual(["not-enforced: retries 3"]);
  });

  test("hash policies: by the source address, or not", () => {
    const hashed = (policy: envoy.RouteHashPolicy.$Properties) =>
      host({ routes: [toCluster("b", { hashPolicy: [policy] })] }).hashesSource;
    expect(hashed({ connectionProperties: { sourceIp: true } })).toBe(true);
    expect(hashed({ header: { headerName: "x" } })).toBe(false);
  });
});

describe("malformed", () => {
  const big = 0xffff_ffff;
  test.each([
    [
      "weights overflow",
      [toShares(["a", big], ["b", 1])],
      `the weights of a route sum up to ${big + 1}, more than ${big}`,
    ],
    ["weights are 0", [toShares(["a", 0], ["b", 0])], "all weights of a route are 0"],
    [
      "weights overflow in a route that is not taken",
      [toCluster("a"), toShares(["a", big], ["b", big])],
      `the weights of a route sum up to ${2 * big}, more than ${big}`,
    ],
  ])("%s", (_, given, reason) => {
    expect(() => host({ routes: given })).toThrow(new MalformedResource("80", reason));
  });

  test("names", () => {
    expect(() => flattenRoutes("80", routes("81", []))).toThrow("80: the message inside is called 81");
    const nameless = envoy.RouteConfiguration.encode({
      name: "80",
      virtualHosts: [{ domains: ["a"] }],
    }).finish();
    expect(() => flattenRoutes("80", nameless)).toThrow("80: a virtual host has no name");
  });

  test("truncated", () => {
    const bytes = routes("80", [
      { name: "a.shop:80", domains: ["10.0.0.1"], routes: [toShares(["a", 1], ["b", 2])] },
    ]);
    let malformed = 0;
    for (let length = 0; length < bytes.length; length++) {
      try {
        flattenRoutes("80", bytes.slice(0, length));
      } catch (error) {
        expect(error).toBeInstanceOf(MalformedResource);
        malformed++;
      }
    }
    expect(malformed).toBe(bytes.length - 1);
  });
});
