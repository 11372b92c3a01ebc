import { describe, expect, test } from "bun:test";
import { MalformedResource } from "../../istiod/stream/sink.ts";
import { any, catchAll, chain, type GivenChain, listener, tlsSocket } from "../testdata/resources.ts";
import { envoy } from "./envoy.gen.js";
import { flattenListener, type ListenerRecord } from "./listener.ts";

const flatten = ([name, bytes]: [string, Uint8Array]): ListenerRecord => flattenListener(name, bytes);
const tcp = (cluster: string) => ({
  kind: "tcp",
  destination: { kind: "cluster", cluster },
  hashesSource: false,
  notes: [],
});

describe("outbound", () => {
  test("tcp_proxy is found behind other filters", () => {
    expect(flatten(listener("10.0.0.1", 80, [{ cluster: "c" }]))).toEqual({
      name: "10.0.0.1_80",
      kind: "outbound",
      addresses: [{ address: "10.0.0.1", port: 80 }],
      chains: [{ prefixes: [], port: 0, serverNames: [], sniffed: false, action: tcp("c") }],
      otherwise: undefined,
      routes: [],
      notes: [],
    } as ListenerRecord);
  });

  test("additional addresses (33), canonical", () => {
    const record = flatten(
      listener("10.0.0.1", 80, [{ cluster: "c" }], {
        additionalAddresses: [{ address: { socketAddress: { address: "FD00::0:1", portValue: 80 } } }],
      }),
    );
    expect(record.addresses).toEqual([
      { address: "10.0.0.1", port: 80 },
      { address: "fd00::1", port: 80 },
    ]);
  });

  test("weights, hash of the source, prefixes, server names, detected protocols", () => {
    const record = flatten(
      listener("0.0.0.0", 80, [
        {
          shares: [
            ["a", 1],
            ["b", 2],
          ],
          sourceIpHash: true,
          prefixes: ["10.1.2.3/16", "fd00::1/64"],
        },
        { cluster: "c", serverNames: ["*.x"], transport: "tls" },
        { routes: "80", applications: ["http/1.1", "h2c"] },
        { routes: "80" },
      ]),
    );
    expect(record.chains[0]).toMatchObject({
      prefixes: [
        { address: "10.1.0.0", length: 16 },
        { address: "fd00::", length: 64 },
      ],
      action: {
        destination: {
          kind: "shares",
          shares: [
            { cluster: "a", weight: 1 },
            { cluster: "b", weight: 2 },
          ],
        },
        hashesSource: true,
      },
    });
    expect(record.chains.map(({ sniffed, serverNames }) => [sniffed, serverNames])).toEqual([
      [false, []],
      [true, ["*.x"]],
      [true, []],
      [false, []],
    ]);
    expect(record.routes).toEqual(["80"]);
  });

  test("routes inside the listener", () => {
    const value = envoy.HttpConnectionManager.encode({
      routeConfig: {
        name: "inline",
        virtualHosts: [
          {
            name: "a:80",
            domains: ["10.0.0.1"],
            routes: [{ match: { prefix: "/" }, route: { cluster: "c" } }],
          },
        ],
      },
    }).finish();
    const filters = [{ name: "hcm", typedConfig: any("envoy.x.HttpConnectionManager", value) }];
    const record = flatten(listener("10.0.0.1", 80, [], { filterChains: [{ filters }] }));
    expect(record.routes).toEqual([]);
    expect(record.chains[0]?.action).toMatchObject({
      kind: "inline-routes",
      routes: { hosts: [{ name: "a:80" }] },
    });
  });

  test("what tcp_proxy does beside forwarding is listed; a tunnel is refused", () => {
    const more = {
      idleTimeout: { seconds: 60 },
      maxDownstreamConnectionDuration: { seconds: 5 },
      maxConnectAttempts: 3,
    };
    const [first] = flatten(listener("10.0.0.1", 80, [{ cluster: "c", more }])).chains;
    expect(first?.action).toMatchObject({
      notes: [
        { text: "connect attempts 3" },
        { text: "idle timeout 60 s" },
        { text: "max connection duration 5 s" },
      ],
    });
    const tunnel: GivenChain = { cluster: "c", more: { tunnelingConfig: { hostname: "x:443" } } };
    expect(flatten(listener("10.0.0.1", 80, [tunnel])).chains[0]?.action).toMatchObject({
      kind: "refuse",
      reason: "undecidable",
    });
  });

  test("chains that can't be honoured are left out and said", () => {
    const bySource = { ...chain({ cluster: "c" }), filterChainMatch: { sourcePorts: [1] } };
    const noEnd = { filters: [{ name: "x", typedConfig: any("x.Unknown") }, { name: "no config" }] };
    const record = flatten(listener("10.0.0.1", 80, [], { filterChains: [bySource, noEnd] }));
    expect(record.chains).toEqual([]);
    expect(record.notes.length).toBe(2);
  });
});

describe("others", () => {
  test("the catch-all subscribes to nothing", () => {
    expect(flatten(catchAll("PassthroughCluster"))).toMatchObject({ kind: "catch-all", routes: [] });
  });

  test("no address, a pipe, UDP", () => {
    expect(
      flatten(listener("", 0, [{ cluster: "c" }], { name: "connect_originate", address: null })),
    ).toMatchObject({
      kind: "ignored",
      notes: [],
    });
    const pipe = flatten(
      listener("", 0, [{ routes: "x" }], { name: "p", address: { pipe: { path: "/x" } } }),
    );
    expect(pipe).toMatchObject({ kind: "ignored", routes: [] });
    expect(pipe.notes[0]?.text).toContain("unix socket /x");
    const address = { socketAddress: { protocol: 1, address: "10.0.0.1", portValue: 53 } };
    const udp = flatten(listener("", 0, [], { name: "u", address }));
    expect(udp.notes[0]?.text).toContain("UDP");
  });
});

describe("2b.4 inbound", () => {
  const inbound = (...chains: envoy.FilterChain.$Properties[]) =>
    flatten(
      listener("0.0.0.0", 15006, [], { name: "virtualInbound", trafficDirection: 1, filterChains: chains }),
    );
  const port = (number: number, transport: string, filters: envoy.Filter.$Properties[] = []) => ({
    filterChainMatch: {
      transportProtocol: transport,
      ...(number ? { destinationPort: { value: number } } : {}),
    },
    filters,
  });

  test("permissive", () => {
    const record = inbound(port(0, "tls"), port(0, "raw_buffer"), {
      ...port(15006, ""),
      name: "virtualInbound-blackhole",
    });
    expect(record).toMatchObject({ kind: "inbound", notes: [], addresses: [] });
  });

  test("STRICT for all, or for ports", () => {
    expect(inbound(port(0, "tls")).notes[0]?.text).toStartWith("inbound STRICT mutual TLS (all ports)");
    expect(
      inbound(port(9, "tls"), port(8, "tls"), port(0, "tls"), port(0, "raw_buffer")).notes[0]?.text,
    ).toStartWith("inbound STRICT mutual TLS (port 8, 9)");
    const socket = { ...port(7, ""), transportSocket: tlsSocket("") };
    expect(inbound(socket, port(0, "raw_buffer")).notes[0]?.text).toContain("(port 7)");
  });

  test("authorization, as a network filter or inside HTTP", () => {
    const rbac = {
      name: "envoy.filters.network.rbac",
      typedConfig: any("envoy.extensions.filters.network.rbac.v3.RBAC"),
    };
    expect(inbound(port(0, "", [rbac])).notes[0]?.text).toContain("RBAC");
    const value = envoy.HttpConnectionManager.encode({
      httpFilters: [{ name: "rbac", typedConfig: any("envoy.extensions.filters.http.rbac.v3.RBAC") }],
    }).finish();
    const http = { name: "hcm", typedConfig: any("envoy.x.HttpConnectionManager", value) };
    expect(inbound(port(0, "", [http])).notes[0]?.text).toContain("RBAC");
  });
});

describe("malformed", () => {
  test.each([
    ["port 0", listener("10.0.0.1", 0, []), "it listens on the port 0"],
    ["port 70000", listener("10.0.0.1", 70000, []), "it listens on the port 70000"],
    ["a host name", listener("a.example", 80, []), 'it listens on "a.example", which is no IP'],
    ["no cluster", listener("10.0.0.1", 80, [{ cluster: "" }]), "a tcp_proxy names no cluster"],
    [
      "weight 0",
      listener("10.0.0.1", 80, [
        {
          shares: [
            ["a", 0],
            ["b", 1],
          ],
        },
      ]),
      "a weighted cluster has the weight 0",
    ],
    [
      "weights overflow",
      listener("10.0.0.1", 80, [
        {
          shares: [
            ["a", 0xffff_ffff],
            ["b", 1],
          ],
        },
      ]),
      "the weights of a route sum up to 4294967296, more than 4294967295",
    ],
    [
      "a prefix that is none",
      listener("0.0.0.0", 80, [{ cluster: "c", prefixes: ["10.0.0.0/99"] }]),
      "prefix_ranges has 10.0.0.0/99, which is no address block",
    ],
    [
      "direction",
      listener("10.0.0.1", 80, [], { trafficDirection: 3 }),
      "traffic_direction has the unknown value 3",
    ],
    [
      "protocol",
      listener("10.0.0.1", 80, [], {
        address: { socketAddress: { protocol: 2, address: "10.0.0.1", portValue: 80 } },
      }),
      "the protocol of an address has the unknown value 2",
    ],
  ] as const)("%s", (_, given, reason) => {
    const [name] = given;
    expect(() => flatten(given as [string, Uint8Array])).toThrow(new MalformedResource(name, reason));
  });

  test("a typed configuration that is cut off", () => {
    const typedConfig = any("envoy.x.TcpProxy", new Uint8Array([10, 200]));
    const given = listener("10.0.0.1", 80, [], { filterChains: [{ filters: [{ name: "t", typedConfig }] }] });
    expect(() => flatten(given)).toThrow(/^10.0.0.1_80: not a valid message/);
  });
});
