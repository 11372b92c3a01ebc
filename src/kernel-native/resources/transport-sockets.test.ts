/** Demands of transport sockets as istiod writes them, in cases that the recordings lack. */
import { describe, expect, test } from "bun:test";
import { any, RAW } from "../testdata/resources.ts";
import { envoy } from "./envoy.gen.js";
import {
  type Demand,
  demandsOf,
  readHboneSans,
  TLS_MODE_ISTIO,
  TUNNEL_HTTP,
  withHbone,
} from "./transport-sockets.ts";

const HOST = { host: "a.example", isChecked: false };
const TLS = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";

function tls(context: envoy.UpstreamTlsContext.$Properties): envoy.TransportSocket.$Properties {
  return {
    name: "envoy.transport_sockets.tls",
    typedConfig: any(TLS, envoy.UpstreamTlsContext.encode(context).finish()),
  };
}

const mesh = (sans: envoy.StringMatcher.$Properties[] = [{ exact: "spiffe://m/ns/a/sa/b" }]) =>
  tls({
    sni: "outbound_.80_._.a.example",
    commonTlsContext: {
      tlsCertificateSdsSecretConfigs: [{ name: "default" }],
      combinedValidationContext: {
        defaultValidationContext: {
          matchTypedSubjectAltNames: sans.map((matcher) => ({ sanType: 3, matcher })),
        },
        validationContextSdsSecretConfig: { name: "ROOTCA" },
      },
      alpnProtocols: ["istio-peer-exchange", "istio"],
    },
  });
const hbone = {
  name: "envoy.transport_sockets.internal_upstream",
  typedConfig: any("envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport"),
};
const match = (key: string, stringValue: string) => ({ fields: { [key]: { stringValue } } });
const only = (socket: envoy.TransportSocket.$Properties, host = HOST): Demand | undefined =>
  demandsOf([], socket, host)[0];

describe("which entry decides", () => {
  const entries = [
    { name: "hbone", match: match("tunnel", "http"), transportSocket: hbone },
    { name: "tlsMode-istio", match: match("tlsMode", "istio"), transportSocket: mesh() },
    { name: "tlsMode-disabled", match: {}, transportSocket: RAW },
  ];

  test("auto-mTLS, by metadata, in the order of the entries", () => {
    const kinds = demandsOf(entries, undefined, HOST).map((demand) =>
      demand.kind === "transport" ? demand.transport.kind : demand.kind,
    );
    expect(kinds[0]).toBe("plaintext");
    expect(kinds[TLS_MODE_ISTIO]).toBe("istio");
    expect(kinds[TUNNEL_HTTP]).toBe("hbone");
    expect(kinds[TLS_MODE_ISTIO + TUNNEL_HTTP]).toBe("hbone");
  });

  test("an entry without a match takes every endpoint; without any the cluster's own socket does", () => {
    const forced = demandsOf(
      [entries[0] ?? {}, { name: "tlsMode-istio", transportSocket: mesh() }],
      undefined,
      HOST,
    );
    expect(forced.map(({ kind }) => kind)).toEqual(["transport", "transport", "transport", "transport"]);
    const own = demandsOf([{ match: match("other", "x"), transportSocket: mesh() }], RAW, HOST);
    expect(own.map(({ kind }) => kind)).toEqual(["plaintext", "plaintext", "plaintext", "plaintext"]);
    expect(demandsOf([], undefined, HOST)[0]).toEqual({ kind: "plaintext" });
  });
});

describe("the mesh's TLS", () => {
  test("server name and identities, also in the older field", () => {
    const sans = [{ exact: "spiffe://m/ns/a/sa/b" }, { prefix: "spiffe://m/" }, { suffix: "/sa/b" }];
    expect(only(mesh(sans))).toEqual({
      kind: "transport",
      transport: {
        kind: "istio",
        sni: "outbound_.80_._.a.example",
        sans: [
          { kind: "exact", value: "spiffe://m/ns/a/sa/b" },
          { kind: "prefix", value: "spiffe://m/" },
          { kind: "suffix", value: "/sa/b" },
        ],
      },
    });
  });

  test("a name that is matched by a pattern is not taken for any name", () => {
    for (const matcher of [
      { safeRegex: { regex: ".*" } },
      { contains: "x" },
      { exact: "x", ignoreCase: true },
      {},
    ])
      expect(only(mesh([matcher]))).toMatchObject({ kind: "unknown" });
  });
});

describe("TLS of a DestinationRule", () => {
  const context = (more: envoy.CommonTlsContext.$Properties, sni = "") =>
    tls({ sni, commonTlsContext: more });

  test("MUTUAL by files, as istiod names them", () => {
    const socket = context(
      {
        tlsCertificateSdsSecretConfigs: [{ name: "file-cert:/etc/c.pem~/etc/k.pem" }],
        combinedValidationContext: {
          defaultValidationContext: { matchSubjectAltNames: [{ exact: "b.example" }] },
          validationContextSdsSecretConfig: { name: "file-root:/etc/ca.pem" },
        },
        alpnProtocols: ["h2"],
      },
      "b.example",
    );
    expect(only(socket)).toEqual({
      kind: "transport",
      transport: {
        kind: "tls",
        sni: "b.example",
        sans: [{ kind: "exact", value: "b.example" }],
        roots: "/etc/ca.pem",
        certificate: "/etc/c.pem",
        key: "/etc/k.pem",
        alpn: ["h2"],
      },
    });
  });

  test("SIMPLE: the host is the server name; it is checked where Envoy would check the request's", () => {
    const roots = { validationContextSdsSecretConfig: { name: "file-root:system" } };
    expect(only(context(roots))).toMatchObject({
      transport: { sni: "a.example", sans: [], roots: "system" },
    });
    expect(only(context(roots), { ...HOST, isChecked: true })).toMatchObject({
      transport: { sans: [{ kind: "exact", value: "a.example" }] },
    });
    expect(only(context({}))).toMatchObject({ transport: { roots: "", certificate: "" } });
    expect(only(context({ validationContext: { trustedCa: { filename: "/ca" } } }))).toMatchObject({
      transport: { roots: "/ca" },
    });
  });

  test("what this machine has no file of is refused", () => {
    for (const more of [
      { tlsCertificateSdsSecretConfigs: [{ name: "kubernetes://secret" }] },
      { validationContextSdsSecretConfig: { name: "kubernetes://secret-cacert" } },
      { tlsCertificates: [{ certificateChain: { inlineString: "x" }, privateKey: { inlineString: "y" } }] },
      { validationContext: { trustedCa: { inlineString: "x" } } },
    ])
      expect(only(context(more))).toMatchObject({ kind: "unknown" });
  });
});

test("the PROXY protocol alone, over TLS, and over what is not known", () => {
  const proxy = (inner: envoy.TransportSocket.$Properties, version = 0) => ({
    typedConfig: any(
      "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
      envoy.ProxyProtocolUpstreamTransport.encode({ config: { version }, transportSocket: inner }).finish(),
    ),
  });
  expect(only(proxy(RAW))).toEqual({ kind: "transport", transport: { kind: "proxy-protocol", version: 1 } });
  expect(only(proxy(mesh(), 1))).toMatchObject({ transport: { version: 2, over: { kind: "istio" } } });
  expect(only(proxy({ name: "quic" }))).toEqual({ kind: "unknown", what: "transport socket quic" });
});

test("HBONE is spoken to those whom the cluster of Envoy's for it lets in, and to nobody without it", () => {
  const demands = demandsOf([], hbone, HOST);
  expect(withHbone(demands, [])[0]).toMatchObject({ kind: "unknown" });
  const bytes = envoy.Cluster.encode({
    name: "connect_originate",
    transportSocket: mesh([{ prefix: "spiffe://m/" }]),
  }).finish();
  const sans = readHboneSans(bytes);
  expect(sans).toEqual([{ kind: "prefix", value: "spiffe://m/" }]);
  expect(withHbone(demands, sans)[0]).toEqual({
    kind: "transport",
    transport: { kind: "hbone", authority: "", port: 15008, sans },
  });
  const plain = demandsOf([], RAW, HOST);
  expect(withHbone(plain, sans)).toBe(plain);
});
