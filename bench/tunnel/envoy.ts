/** Envoy as a contender of bench/tunnel.ts, and as the peer of HBONE, as istiod configures a sidecar's cluster and both ends. */
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { dialTcp, type TestMesh } from "../../test/lab/mesh-member.ts";
import { type Bench, type Contender, eventually, freePorts, SNI } from "./contender.ts";

const PATIENCE = "10s";

/** The peer of HBONE, at the bench's port for it. */
export async function startTerminator(bench: Bench): Promise<void> {
  const { mesh, hboneWeb, app } = bench;
  await start(bench, "terminator", terminatorConfig(mesh, hboneWeb, app), hboneWeb);
}

export async function startEnvoy(bench: Bench): Promise<Contender> {
  const { mesh, web, hboneWeb } = bench;
  const [mtls = 0, hbone = 0] = await freePorts(2);
  const pid = await start(bench, "client", clientConfig(mesh, SNI, { mtls, hbone, web, hboneWeb }), mtls);
  return {
    name: "Envoy",
    pids: () => [pid],
    connect: { "sidecar mTLS": () => dialTcp(mtls), HBONE: () => dialTcp(hbone) },
  };
}

/** Starts an Envoy of one thread, and gives its pid once it accepts on `port`. */
async function start(bench: Bench, name: string, config: object, port: number): Promise<number> {
  const file = join(bench.mesh.folder, `${name}.json`);
  writeFileSync(file, JSON.stringify(config));
  const fetch = join(import.meta.dirname, "../../test/envoy/fetch");
  const path = execFileSync(fetch, { encoding: "utf8" }).trim();
  const flags = ["--concurrency", "1", "--use-dynamic-base-id", "-l", "error"];
  const pid = bench.begin([path, "-c", file, ...flags]);
  await eventually(() => dialTcp(port).then((socket) => socket.destroy().destroyed));
  return pid;
}

/** A client: `mtls` leads by sidecar mTLS to `web`, `hbone` by CONNECT to `hboneWeb`. Ports of this machine. */
function clientConfig(
  mesh: TestMesh,
  sni: string,
  ports: { mtls: number; hbone: number; web: number; hboneWeb: number },
): object {
  const sidecar = upstreamTls(mesh, { sni, alpn: "istio", from: "TLSv1_2" });
  const hbone = { ...upstreamTls(mesh, { alpn: "h2", from: "TLSv1_3" }), ...http2({}) };
  const tunneling = { tunneling_config: { hostname: `127.0.0.1:${ports.web}` } };
  return {
    static_resources: {
      listeners: [
        listener("mtls", ports.mtls, { filters: [tcpProxy("web")] }),
        listener("hbone", ports.hbone, { filters: [tcpProxy("web-hbone", tunneling)] }),
      ],
      clusters: [cluster("web", ports.web, sidecar), cluster("web-hbone", ports.hboneWeb, hbone)],
    },
  };
}

/** The other end of HBONE: each CONNECT to `port` leads to `app`. */
function terminatorConfig(mesh: TestMesh, port: number, app: number): object {
  const route = {
    match: { connect_matcher: {} },
    route: { cluster: "app", upgrade_configs: [{ upgrade_type: "CONNECT", connect_config: {} }] },
  };
  const connections = typed("filters.network.http_connection_manager.v3.HttpConnectionManager", {
    stat_prefix: "hbone",
    codec_type: "HTTP2",
    http2_protocol_options: {
      allow_connect: true,
      max_concurrent_streams: 100,
      connection_keepalive: { interval: "10s", timeout: "20s" },
    },
    http_filters: [{ name: "router", typed_config: typed("filters.http.router.v3.Router", {}) }],
    route_config: { virtual_hosts: [{ name: "connect", domains: ["*"], routes: [route] }] },
  });
  const member = { prefix: "spiffe://cluster.local/" };
  const tls = typed("transport_sockets.tls.v3.DownstreamTlsContext", {
    require_client_certificate: true,
    common_tls_context: common(mesh, "web", { alpn: "h2", from: "TLSv1_3" }, member),
  });
  const chain = {
    transport_socket: { name: "envoy.transport_sockets.tls", typed_config: tls },
    filters: [{ name: "hcm", typed_config: connections }],
  };
  return {
    static_resources: { listeners: [listener("terminate", port, chain)], clusters: [cluster("app", app)] },
  };
}

function upstreamTls(mesh: TestMesh, { sni, ...protocol }: Protocol & { sni?: string }) {
  const typed_config = typed("transport_sockets.tls.v3.UpstreamTlsContext", {
    ...(sni !== undefined && { sni }),
    common_tls_context: common(mesh, "app", protocol, { exact: mesh.id("web") }),
  });
  return { transport_socket: { name: "envoy.transport_sockets.tls", typed_config } };
}

interface Protocol {
  alpn: string;
  from: "TLSv1_2" | "TLSv1_3";
}

function common(mesh: TestMesh, account: string, { alpn, from }: Protocol, matcher: object) {
  const { key, cert, ca } = mesh.issue(account);
  return {
    alpn_protocols: [alpn],
    tls_params: { tls_minimum_protocol_version: from, tls_maximum_protocol_version: "TLSv1_3" },
    tls_certificates: [{ certificate_chain: { inline_string: cert }, private_key: { inline_string: key } }],
    validation_context: {
      trusted_ca: { inline_string: ca },
      match_typed_subject_alt_names: [{ san_type: "URI", matcher }],
    },
  };
}

function tcpProxy(cluster: string, more: object = {}) {
  const typed_config = typed("filters.network.tcp_proxy.v3.TcpProxy", {
    stat_prefix: cluster,
    cluster,
    ...more,
  });
  return { name: "tcp", typed_config };
}

function listener(name: string, port: number, chain: object) {
  return { name, address: address(port), filter_chains: [chain] };
}

function cluster(name: string, port: number, more: object = {}) {
  const endpoints = [{ lb_endpoints: [{ endpoint: { address: address(port) } }] }];
  const load_assignment = { cluster_name: name, endpoints };
  return { name, type: "STATIC", connect_timeout: PATIENCE, load_assignment, ...more };
}

function http2(options: object) {
  const name = "upstreams.http.v3.HttpProtocolOptions";
  const value = typed(name, { explicit_http_config: { http2_protocol_options: options } });
  return { typed_extension_protocol_options: { [`envoy.extensions.${name}`]: value } };
}

function address(port: number) {
  return { socket_address: { address: "127.0.0.1", port_value: port } };
}

function typed(name: string, value: object) {
  return { "@type": `type.googleapis.com/envoy.extensions.${name}`, ...value };
}
