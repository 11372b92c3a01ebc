/**
 * The tunnel against a real Envoy, configured as istiod configures a sidecar's inbound chains, a waypoint's
 * connect_terminate, and their clients.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { networkInterfaces } from "node:os";
import { join } from "node:path";
import type { Duplex } from "node:stream";
import { readCertificate } from "../../src/istiod/identity/certificate.ts";
import { CertificateStore } from "../../src/istiod/identity/certificate-store.ts";
import type { Transport } from "../../src/mesh/transport.ts";
import { Counters } from "../../src/tunnel/counters.ts";
import { reasonOfFailure } from "../../src/tunnel/failure.ts";
import { Budget } from "../../src/tunnel/http2/budget.ts";
import { InboundTunnel } from "../../src/tunnel/inbound/inbound.ts";
import { Dialer } from "../../src/tunnel/outbound/dial.ts";
import { MeshCredentials } from "../../src/tunnel/tls/mesh-credentials.ts";
import { dialTcp, listening, outcome, TestMesh } from "../lab/mesh-member.ts";
import { eventually } from "../lab/process.ts";

const OWN = Object.values(networkInterfaces())
  .flatMap((addresses) => addresses ?? [])
  .find(({ family, internal }) => family === "IPv4" && !internal)?.address;

let mesh: TestMesh;
let foreign: TestMesh;
let envoy: ChildProcess;
let app: Server;
const ports = {
  app: 0,
  strict: 0,
  permissive: 0,
  hbone: 0,
  gateway: 0,
  toHbone: 0,
  toSidecar: 0,
  ourHbone: 0,
  ourInbound: 0,
};
const servers: Server[] = [];
const sockets = new Set<Socket>();
const holding: Socket[] = [];
const counters = new Counters();
let credentials: MeshCredentials;
let budget: Budget;

beforeAll(async () => {
  mesh = new TestMesh();
  foreign = new TestMesh();
  credentials = new MeshCredentials(mesh.store("vm"));
  budget = new Budget(64 << 20);
  // Answers "bulk" with 32 MB, reads nothing after "hold", and echoes everything else.
  app = createServer({ allowHalfOpen: true }, (socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    socket.once("data", (first) => {
      if (String(first).startsWith("bulk")) pour(socket, 32 << 20);
      else if (String(first).startsWith("hold")) {
        socket.pause();
        holding.push(socket);
      } else {
        socket.write(first);
        socket.pipe(socket);
      }
    });
  });
  ports.app = await listening(app, "0.0.0.0");
  const inbound = new InboundTunnel({
    credentials,
    admission: { decide: () => ({ allowed: true, reason: "test" }), mtls: () => "strict" },
    counters,
    budget,
    log: (text) => console.error(text),
  });
  const listen = async (serve: (socket: Socket) => void) => {
    const server = createServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) => {
      sockets.add(socket);
      serve(socket);
    });
    servers.push(server);
    return listening(server, "0.0.0.0");
  };
  ports.ourHbone = await listen((socket) => void inbound.serveHbone(socket, () => {}));
  ports.ourInbound = await listen((socket) => {
    // What sk_assign gives: the socket's own address is the app's.
    Object.defineProperty(socket, "localPort", { value: ports.app });
    void inbound.serveSteered(socket, () => {}, 1);
  });
  for (const name of ["strict", "permissive", "hbone", "gateway", "toHbone", "toSidecar"] as const) {
    const probe = createServer();
    ports[name] = await listening(probe);
    probe.close();
  }
  writeFileSync(join(mesh.folder, "envoy.json"), JSON.stringify(envoyConfig()));
  const path = execFileSync(join(import.meta.dir, "fetch"), { encoding: "utf8" }).trim();
  const args = [
    "-c",
    join(mesh.folder, "envoy.json"),
    "--concurrency",
    "1",
    "--use-dynamic-base-id",
    "-l",
    "warning",
  ];
  envoy = spawn(path, args, { stdio: ["ignore", "inherit", "pipe"] });
  let log = "";
  envoy.stderr?.on("data", (chunk) => {
    log += chunk;
  });
  for (let i = 0; ; i++) {
    const up = await dialTcp(ports.toSidecar).catch(() => undefined);
    up?.destroy();
    if (up) break;
    if (i > 200 || envoy.exitCode !== null) throw new Error(`Envoy does not come up: ${log}`);
    await Bun.sleep(50);
  }
}, 60_000);

afterAll(async () => {
  envoy.kill("SIGKILL");
  for (const server of [app, ...servers]) server.close();
  for (const socket of sockets) socket.destroy();
  credentials.close();
  await once(envoy, "close").catch(() => {});
  mesh.close();
  foreign.close();
});

function pour(stream: Duplex, size: number) {
  const block = Buffer.alloc(64 * 1024, "z");
  let left = size;
  const more = () => {
    while (left > 0 && !stream.destroyed) {
      left -= block.length;
      if (!stream.write(block)) {
        stream.once("drain", more);
        return;
      }
    }
    if (left <= 0) stream.end();
  };
  more();
}

function typed(name: string, value: object) {
  return { "@type": `type.googleapis.com/envoy.extensions.${name}`, ...value };
}

function envoyConfig() {
  const address = (port: number, host = "127.0.0.1") => ({
    socket_address: { address: host, port_value: port },
  });
  const { key, cert, ca } = mesh.issue("web");
  const certificates = [{ certificate_chain: { inline_string: cert }, private_key: { inline_string: key } }];
  const names = (match: object) => ({
    trusted_ca: { inline_string: ca },
    match_typed_subject_alt_names: [{ san_type: "URI", matcher: match }],
  });
  const common = (alpn: string[], versions: [string, string], match: object) => ({
    tls_certificates: certificates,
    validation_context: names(match),
    alpn_protocols: alpn,
    tls_params: { tls_minimum_protocol_version: versions[0], tls_maximum_protocol_version: versions[1] },
  });
  const both: [string, string] = ["TLSv1_2", "TLSv1_3"];
  const member = { prefix: "spiffe://cluster.local/" };
  const server = (alpn: string[], versions: [string, string]) => ({
    name: "envoy.transport_sockets.tls",
    typed_config: typed("transport_sockets.tls.v3.DownstreamTlsContext", {
      require_client_certificate: true,
      common_tls_context: common(alpn, versions, member),
    }),
  });
  const client = (alpn: string[], versions: [string, string], sni?: string) => ({
    name: "envoy.transport_sockets.tls",
    typed_config: typed("transport_sockets.tls.v3.UpstreamTlsContext", {
      ...(sni && { sni }),
      common_tls_context: common(alpn, versions, { exact: mesh.id("vm") }),
    }),
  });
  const tcp = (cluster: string, more: object = {}) => ({
    name: "tcp",
    typed_config: typed("filters.network.tcp_proxy.v3.TcpProxy", { stat_prefix: cluster, cluster, ...more }),
  });
  const inspector = {
    name: "tls",
    typed_config: typed("filters.listener.tls_inspector.v3.TlsInspector", {}),
  };
  const cluster = (name: string, to: object, more: object = {}) => ({
    name,
    type: "STATIC",
    connect_timeout: "2s",
    load_assignment: { cluster_name: name, endpoints: [{ lb_endpoints: [{ endpoint: { address: to } }] }] },
    ...more,
  });
  const mesh1 = server(["istio-peer-exchange", "h2", "http/1.1"], both);
  const http2 = (options: object) => ({
    typed_extension_protocol_options: {
      "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
        "upstreams.http.v3.HttpProtocolOptions",
        {
          explicit_http_config: { http2_protocol_options: options },
        },
      ),
    },
  });
  /** A listener that ends HBONE and passes each stream to a cluster. */
  const terminate = (name: string, port: number, to: string) => ({
    name,
    address: address(port),
    filter_chains: [
      {
        transport_socket: server(["h2"], ["TLSv1_3", "TLSv1_3"]),
        filters: [
          {
            name: "hcm",
            typed_config: typed("filters.network.http_connection_manager.v3.HttpConnectionManager", {
              stat_prefix: name,
              codec_type: "HTTP2",
              http2_protocol_options: {
                allow_connect: true,
                max_concurrent_streams: 100,
                connection_keepalive: { interval: "10s", timeout: "20s" },
              },
              http_filters: [{ name: "router", typed_config: typed("filters.http.router.v3.Router", {}) }],
              route_config: {
                virtual_hosts: [
                  {
                    name: "connect",
                    domains: ["*"],
                    routes: [
                      {
                        match: { connect_matcher: {} },
                        route: {
                          cluster: to,
                          upgrade_configs: [{ upgrade_type: "CONNECT", connect_config: {} }],
                        },
                      },
                    ],
                  },
                ],
              },
            }),
          },
        ],
      },
    ],
  });
  return {
    static_resources: {
      listeners: [
        {
          name: "strict",
          address: address(ports.strict),
          listener_filters: [inspector],
          filter_chains: [
            {
              filter_chain_match: { transport_protocol: "tls" },
              transport_socket: mesh1,
              filters: [tcp("app")],
            },
          ],
        },
        {
          name: "permissive",
          address: address(ports.permissive),
          listener_filters: [inspector],
          filter_chains: [
            {
              filter_chain_match: {
                transport_protocol: "tls",
                application_protocols: ["istio-peer-exchange", "istio"],
              },
              transport_socket: mesh1,
              filters: [tcp("app")],
            },
            { filter_chain_match: {}, filters: [tcp("app")] },
          ],
        },
        terminate("connect_terminate", ports.hbone, "app"),
        // An east-west gateway knows nothing of the tunnel inside.
        terminate("gateway", ports.gateway, "inner"),
        {
          name: "to-hbone",
          address: address(ports.toHbone),
          filter_chains: [
            {
              filters: [
                tcp("hbone", {
                  tunneling_config: {
                    hostname: `${OWN}:${ports.app}`,
                    headers_to_add: [{ header: { key: "baggage", value: "k8s.namespace.name=shop" } }],
                  },
                }),
              ],
            },
          ],
        },
        {
          name: "to-sidecar",
          address: address(ports.toSidecar),
          filter_chains: [{ filters: [tcp("sidecar")] }],
        },
      ],
      clusters: [
        cluster("app", address(ports.app)),
        cluster("inner", address(ports.hbone)),
        cluster("hbone", address(ports.ourHbone), {
          transport_socket: client(["h2"], ["TLSv1_3", "TLSv1_3"]),
          // With its default windows (16 MiB a stream, 24 MiB a connection) two unread downloads starve Envoy's own pool.
          ...http2({
            connection_keepalive: { interval: "10s", timeout: "20s" },
            initial_stream_window_size: 1 << 20,
            initial_connection_window_size: 1 << 24,
          }),
        }),
        cluster("sidecar", address(ports.ourInbound), {
          transport_socket: client(
            ["istio-peer-exchange", "istio"],
            both,
            "outbound_.80_._.vm.shop.svc.cluster.local",
          ),
        }),
      ],
    },
  };
}

const sans = (account: string) => [{ kind: "exact" as const, value: mesh.id(account) }];
const sni = "outbound_.80_._.web.shop.svc.cluster.local";

/** What an app of ours gets through the transport. */
async function ask(
  transport: Transport,
  port: number,
  text: string,
  from = credentials,
  dialer = new Dialer({ credentials: from, budget, baggage: "k8s.namespace.name=shop" }),
): Promise<string> {
  const peer = { address: "127.0.0.1", port };
  try {
    const { stream } = await dialer.dial(
      { peer, transport },
      { address: "10.0.0.9", port: 1234 },
      new AbortController().signal,
    );
    const answer = outcome(stream.resume());
    stream.end(text);
    return await answer;
  } catch (error) {
    return reasonOfFailure(error);
  }
}

test("Envoy's STRICT and PERMISSIVE inbound chains take our sidecar mTLS, and refuse another CA by an alert", async () => {
  for (const port of [ports.strict, ports.permissive]) {
    expect(await ask({ kind: "istio", sni, sans: sans("web") }, port, "hello")).toBe("hello");
    expect((await ask({ kind: "istio", sni, sans: sans("web") }, port, "bulk")).length).toBe(32 << 20);
    expect(await ask({ kind: "istio", sni, sans: sans("other") }, port, "hello")).toBe("wrong-san");
  }
  // The peer's verdict on our certificate comes after our side of the handshake (TLS 1.3).
  const store = new CertificateStore(join(foreign.folder, "both"));
  const { key, cert, ca } = foreign.issue("vm");
  store.save(readCertificate(key, cert, `${ca}${mesh.authority.root}`));
  const stranger = new MeshCredentials(store);
  const verdict = await ask({ kind: "istio", sni, sans: sans("web") }, ports.strict, "x", stranger);
  expect(verdict).toMatch(/ALERT_UNKNOWN_CA/);
  stranger.close();
});

test("Envoy's connect_terminate takes our HBONE", async () => {
  const transport: Transport = {
    kind: "hbone",
    authority: "10.1.2.3:80",
    port: ports.hbone,
    sans: sans("web"),
  };
  expect(await ask(transport, 80, "hello")).toBe("hello");
  expect((await ask(transport, 80, "bulk")).length).toBe(32 << 20);
  const answers = await Promise.all(Array.from({ length: 30 }, (_, i) => ask(transport, 80, `text ${i}`)));
  expect(answers).toEqual(Array.from({ length: 30 }, (_, i) => `text ${i}`));
});

test("Envoy as an east-west gateway: HBONE inside HBONE, each with its own identity", async () => {
  const through = (outer: string, inner: string): Transport => ({
    ...{ kind: "hbone", authority: "web.shop:80", port: ports.gateway, sans: sans(outer) },
    inner: { authority: "web.shop:80", sans: sans(inner) },
  });
  expect(await ask(through("web", "web"), 80, "hello")).toBe("hello");
  expect((await ask(through("web", "web"), 80, "bulk")).length).toBe(32 << 20);
  const answers = await Promise.all(
    Array.from({ length: 10 }, (_, i) => ask(through("web", "web"), 80, `text ${i}`)),
  );
  expect(answers).toEqual(Array.from({ length: 10 }, (_, i) => `text ${i}`));
  expect(await ask(through("other", "web"), 80, "hello")).toBe("wrong-san");
  expect(await ask(through("web", "other"), 80, "hello")).toBe("wrong-san");
});

test("our HBONE connections to Envoy are shared, and three unread downloads and uploads stall no other stream", async () => {
  const transport: Transport = {
    kind: "hbone",
    authority: "10.1.2.3:80",
    port: ports.hbone,
    sans: sans("web"),
  };
  let handshakes = 0;
  const dialer = new Dialer({ credentials, budget, handshake: () => handshakes++ });
  for (let i = 0; i < 10; i++)
    expect(await ask(transport, 80, `text ${i}`, credentials, dialer)).toBe(`text ${i}`);
  expect(handshakes).toBe(1);
  const peer = { address: "127.0.0.1", port: 80 };
  const stuck: Duplex[] = [];
  for (const text of ["bulk", "bulk", "bulk", "hold", "hold", "hold"]) {
    const { signal } = new AbortController();
    const { stream } = await dialer.dial({ peer, transport }, peer, signal);
    stream.on("error", () => {});
    stuck.push(stream);
    stream.write(text);
    if (text === "hold") setTimeout(() => pour(stream, 32 << 20), 100);
  }
  await Bun.sleep(400);
  const started = performance.now();
  for (let i = 0; i < 20; i++)
    expect(await ask(transport, 80, `text ${i}`, credentials, dialer)).toBe(`text ${i}`);
  expect(performance.now() - started).toBeLessThan(2_000);
  // Envoy's windows (16 MiB a stream, 24 MiB a connection) let one stream at a time have a connection.
  expect(handshakes).toBeLessThanOrEqual(7);
  for (const stream of stuck) stream.destroy();
  for (const socket of holding.splice(0)) socket.resetAndDestroy();
  dialer.drain();
  for (let i = 0; i < 100 && dialer.shared.open > 0; i++) await Bun.sleep(20);
  expect(dialer.shared.open).toBe(0);
});

/** What a client of Envoy's gets. */
async function viaEnvoy(port: number, text: string): Promise<string> {
  const socket = await dialTcp(port);
  sockets.add(socket);
  const answer = outcome(socket);
  socket.end(text);
  return answer;
}

test("Envoy as a sidecar comes in by mTLS", async () => {
  expect(await viaEnvoy(ports.toSidecar, "hello")).toBe("hello");
  expect((await viaEnvoy(ports.toSidecar, "bulk")).length).toBe(32 << 20);
  expect(counters.rows.identities[mesh.id("web")]).toBeGreaterThanOrEqual(2);
});

test("Envoy comes in by HBONE with many streams on a connection; six that nobody reads stall no other", async () => {
  expect(await viaEnvoy(ports.toHbone, "hello")).toBe("hello");
  expect((await viaEnvoy(ports.toHbone, "bulk")).length).toBe(32 << 20);
  const unread = await Promise.all([1, 2, 3, 4, 5, 6].map(() => dialTcp(ports.toHbone)));
  for (const [i, socket] of unread.entries()) {
    sockets.add(socket);
    socket.on("error", () => {});
    // Three downloads that the client does not read, three uploads that the app does not read.
    socket.pause();
    if (i < 3) socket.write("bulk");
    else {
      socket.write("hold");
      setTimeout(() => pour(socket, 32 << 20), 100);
    }
  }
  await eventually("unread bytes are held", () => budget.used > 0);
  // The largest window of three streams.
  expect(budget.used).toBeLessThanOrEqual(12 << 20);
  const answers = await Promise.all(
    Array.from({ length: 40 }, (_, i) => viaEnvoy(ports.toHbone, `text ${i}`)),
  );
  expect(answers).toEqual(Array.from({ length: 40 }, (_, i) => `text ${i}`));
  for (const socket of unread) socket.resetAndDestroy();
  // Envoy does not see the end of a client that it does not read from; the app ends those three.
  expect(holding.length).toBe(3);
  for (const socket of holding) socket.resetAndDestroy();
  // All of it over few connections of Envoy's pool.
  expect(counters.rows.handshakes.server).toBeLessThan(10);
  for (let i = 0; i < 100 && counters.rows.ways.hbone.open > 0; i++) await Bun.sleep(20);
  expect(budget.used).toBe(0);
  expect(counters.rows.ways.hbone).toMatchObject({ open: 0, pending: 0, failures: {} });
});
