import { describe, expect, test } from "bun:test";
import { MalformedResource } from "../../istiod/stream/sink.ts";
import { decide } from "../../policy/decide.ts";
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

  test("modes follow from the chains of a port", () => {
    const blackhole = { ...port(15006, ""), name: "virtualInbound-blackhole" };
    const permissive = inbound(port(0, "tls"), port(0, "raw_buffer"), blackhole);
    expect(permissive).toMatchObject({ kind: "inbound", notes: [], addresses: [] });
    expect(permissive.inbound).toEqual({
      ports: [],
      mtls: { default: "permissive", ports: [] },
      policies: [],
    });
    expect(inbound(port(0, "")).inbound?.mtls.default).toBe("disable");
    const strict = inbound(
      port(0, "tls"),
      port(9, "tls"),
      port(8, "tls"),
      port(8, "raw_buffer"),
      port(7, ""),
    );
    expect(strict.inbound).toEqual({
      ports: [7, 8, 9],
      mtls: {
        default: "strict",
        ports: [
          { port: 7, mode: "disable" },
          { port: 8, mode: "permissive" },
        ],
      },
      policies: [],
    });
    expect(strict.notes[0]?.text).toBe(
      "inbound STRICT mutual TLS: enforced at the ports of this machine's services (7, 8, 9), at no others",
    );
    const socket = { ...port(7, ""), transportSocket: tlsSocket("") };
    expect(inbound(socket, port(0, "raw_buffer")).inbound?.mtls.ports).toEqual([{ port: 7, mode: "strict" }]);
  });

  test("trust domains of callers are those of the SANs that every port's chains accept", () => {
    const accepting = (...prefixes: string[]) => ({
      name: "envoy.transport_sockets.tls",
      typedConfig: any(
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        envoy.DownstreamTlsContext.encode({
          commonTlsContext: {
            combinedValidationContext: {
              defaultValidationContext: {
                matchTypedSubjectAltNames: prefixes.map((prefix) => ({ sanType: 3, matcher: { prefix } })),
              },
              validationContextSdsSecretConfig: { name: "ROOTCA" },
            },
          },
        }).finish(),
      ),
    });
    const mesh = accepting("spiffe://old.example/", "spiffe://cluster.local/");
    const chains = [
      { ...port(8, "tls"), transportSocket: mesh },
      { ...port(0, "tls"), transportSocket: mesh },
    ];
    expect(inbound(...chains).inbound?.trustDomains).toEqual(["cluster.local", "old.example"]);
    // The field in which istiod 1.32 sends them.
    const untyped = envoy.DownstreamTlsContext.encode({
      commonTlsContext: {
        combinedValidationContext: {
          defaultValidationContext: { matchSubjectAltNames: [{ prefix: "spiffe://old.example/" }] },
        },
      },
    }).finish();
    const socket = {
      name: "envoy.transport_sockets.tls",
      typedConfig: any("envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext", untyped),
    };
    expect(inbound({ ...port(8, "tls"), transportSocket: socket }).inbound?.trustDomains).toEqual([
      "old.example",
    ]);
    // What names a part of a trust domain accepts no other one.
    const part = {
      ...port(8, "tls"),
      transportSocket: accepting("spiffe://a/ns/b/", "spiffe://", "spiffe:///"),
    };
    expect(inbound(part).inbound?.trustDomains).toBeUndefined();
  });

  const rbac = (rules: envoy.Rbac.$Properties, more: envoy.NetworkRbac.$Properties = {}) => ({
    name: "envoy.filters.network.rbac",
    typedConfig: any(
      "envoy.extensions.filters.network.rbac.v3.RBAC",
      envoy.NetworkRbac.encode({ rules, ...more }).finish(),
    ),
  });
  const http = (rules: envoy.Rbac.$Properties) => ({
    name: "hcm",
    typedConfig: any(
      "envoy.x.HttpConnectionManager",
      envoy.HttpConnectionManager.encode({
        httpFilters: [
          {
            name: "rbac",
            typedConfig: any(
              "envoy.extensions.filters.http.rbac.v3.RBAC",
              envoy.HttpRbac.encode({ rules }).finish(),
            ),
          },
        ],
      }).finish(),
    ),
  });
  const block = (address: string, length: number) => ({
    addressPrefix: address,
    prefixLen: { value: length },
  });
  const rules = (
    principals: envoy.Principal.$Properties[],
    permissions: envoy.Permission.$Properties[] = [{ any: true }],
  ) => ({
    policies: { "ns[shop]-policy[no]-rule[0]": { permissions, principals } },
  });
  const verdict = (
    chains: envoy.FilterChain.$Properties[],
    sourceAddress: string,
    identity?: { trustDomain: string; namespace: string; serviceAccount: string },
    destinationPort = 80,
  ) => {
    const record = inbound(...chains).inbound;
    if (!record) throw new Error("nothing inbound");
    const connection = { sourceAddress, destinationAddress: "10.0.0.1", destinationPort };
    return decide(record, identity ? { ...connection, identity } : connection);
  };
  const vm = { trustDomain: "cluster.local", namespace: "vms", serviceAccount: "vm" };

  test("a DENY of blocks, as a network filter or inside HTTP; ports that agree share a policy", () => {
    const deny = { action: 1, ...rules([{ directRemoteIp: block("192.0.2.0", 24) }]) };
    const chains = [port(80, "", [rbac(deny)]), port(81, "", [http(deny)])];
    expect(inbound(...chains).inbound?.policies).toEqual([
      {
        name: "shop/no",
        action: "deny",
        rules: [
          {
            name: "rule[0]",
            when: {
              kind: "all",
              of: [
                { kind: "all", of: [] },
                { kind: "source", prefixes: ["192.0.2.0/24"] },
              ],
            },
          },
        ],
      },
    ]);
    expect(verdict(chains, "192.0.2.9")).toEqual({
      allowed: false,
      reason: "denied",
      policy: "shop/no",
      rule: "rule[0]",
    });
    expect(verdict(chains, "192.0.3.9").allowed).toBe(true);
    expect(inbound(port(80, "", [rbac(deny)]), port(81, "")).inbound?.policies[0]?.ports).toEqual([80]);
  });

  test("identities in the forms that istiod writes", () => {
    const admits = (match: envoy.RbacText.$Properties, identity: typeof vm | undefined) => {
      const principal = { filterState: { key: "io.istio.peer_principal", stringMatch: match } };
      const results = [{ authenticated: { principalName: match } }, principal].map(
        (each) => verdict([port(80, "", [rbac(rules([each]))])], "10.0.0.9", identity).allowed,
      );
      expect(results[0]).toBe(results[1] as boolean);
      return results[0];
    };
    const regex = (text: string) => ({ safeRegex: { regex: text } });
    const yes: envoy.RbacText.$Properties[] = [
      regex(".+"),
      regex(".*/ns/vms/.*"),
      regex(".*/ns/.*/.*"),
      regex(".*/ns/v.*/.*"),
      regex(".*/ns/.*s/.*"),
      regex("spiffe://.*/sa/vm"),
      regex("spiffe://.+/ns/vms/(.+/|)sa/vm(/.+)?"),
      { exact: "spiffe://cluster.local/ns/vms/sa/vm" },
      { prefix: "spiffe://cluster.local/" },
    ];
    const no: envoy.RbacText.$Properties[] = [
      regex(".*/ns/shop/.*"),
      regex(".*/ns/s.*/.*"),
      regex("spiffe://.+/ns/vms/(.+/|)sa/other(/.+)?"),
      regex("spiffe://bad[^/]*/.*"),
      { exact: "spiffe://cluster.local/ns/vms/sa/other" },
      { contains: "vm" },
      { exact: "spiffe://cluster.local/ns/vms/sa/vm", ignoreCase: true },
    ];
    for (const match of yes) {
      expect(admits(match, vm)).toBe(true);
      expect(admits(match, undefined)).toBe(false);
    }
    for (const match of no) expect(admits(match, vm)).toBe(false);
  });

  test("layer 7 conditions deny in a DENY, allow nothing in an ALLOW, and are listed", () => {
    // A header matcher: field 4 of a permission, which is not read.
    const header = envoy.Permission.decode(Uint8Array.of(0x22, 0));
    const deny = [port(80, "", [http({ action: 1, ...rules([{ any: true }], [header]) })])];
    expect(verdict(deny, "10.0.0.9")).toMatchObject({ allowed: false, policy: "shop/no" });
    expect(inbound(...deny).notes[0]).toEqual({
      kind: "layer7",
      text: "policy shop/no: a condition on the request can't be evaluated for a connection: it denies as if they matched",
    });
    const allow = [port(80, "", [http(rules([{ any: true }], [header]))])];
    expect(verdict(allow, "10.0.0.9")).toMatchObject({ allowed: false, reason: "no-allow-matched" });
    const not = [port(80, "", [http(rules([{ any: true }], [{ notRule: header }]))])];
    expect(verdict(not, "10.0.0.9").allowed).toBe(false);
  });

  test("an ALLOW without rules refuses; dry runs and AUDIT do nothing; what is unknown refuses", () => {
    expect(verdict([port(80, "", [rbac({})])], "10.0.0.9").allowed).toBe(false);
    const shadow = rbac({}, { rules: null, shadowRules: { action: 1, ...rules([{ any: true }]) } });
    expect(verdict([port(80, "", [shadow])], "10.0.0.9").allowed).toBe(true);
    expect(
      verdict([port(80, "", [rbac({ action: 2, ...rules([{ any: true }]) })])], "10.0.0.9").allowed,
    ).toBe(true);
    const matcher = rbac({}, { rules: null, matcher: {} });
    expect(verdict([port(80, "", [matcher])], "10.0.0.9").allowed).toBe(false);
    expect(() => inbound(port(80, "", [rbac({ action: 3 })]))).toThrow("unknown action 3");
    expect(() => inbound(port(80, "", [rbac(rules([{ sourceIp: block("10.0.0.0", 40) }]))]))).toThrow(
      "not an address block",
    );
  });

  test("CUSTOM: who would be asked about is refused", () => {
    const external = {
      name: "ext_authz",
      typedConfig: any("envoy.extensions.filters.network.ext_authz.v3.ExtAuthz"),
    };
    const custom = rbac(
      {},
      {
        rules: null,
        shadowRules: rules([{ directRemoteIp: block("192.0.2.0", 24) }]),
        shadowRulesStatPrefix: "istio_ext_authz_",
      },
    );
    expect(verdict([port(80, "", [custom, external])], "192.0.2.1").allowed).toBe(false);
    expect(verdict([port(80, "", [custom, external])], "192.0.3.1").allowed).toBe(true);
    expect(verdict([port(80, "", [external])], "192.0.3.1").allowed).toBe(false);
  });

  test("chains of a port that disagree: a connection must pass all of them", () => {
    const from = (address: string) => rbac(rules([{ directRemoteIp: block(address, 32) }]));
    const chains = [port(80, "raw_buffer", [from("10.0.0.1")]), port(80, "tls", [from("10.0.0.2")])];
    for (const source of ["10.0.0.1", "10.0.0.2", "10.0.0.3"])
      expect(verdict(chains, source).allowed).toBe(false);
    const same = [port(80, "raw_buffer", [from("10.0.0.1")]), port(80, "tls", [from("10.0.0.1")])];
    expect(verdict(same, "10.0.0.1").allowed).toBe(true);
  });
});

describe("malformed", () => {
  test.each([
    ["port 0", listener("10.0.0.1", 0, []), "it listens on the port 0"],
    ["port 70000", listener("10.0.0.1", 70000, []), "it listens on the port 70000"],
    ["a host name", listener("a.example", 80, []), 'it listens on "a.example", which is not an IP address'],
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
      "prefix_ranges has 10.0.0.0/99, which is not an address block",
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
