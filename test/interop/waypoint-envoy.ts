/**
 * A real Envoy as a waypoint: it ends HBONE (mutual TLS, HTTP/2 CONNECT) and passes each stream to the address that its
 * `:authority` stands for, as the listeners that istiod gives a waypoint do. An authority that it does not know is 404.
 */
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { eventually, OwnedProcess } from "../lab/process.ts";

export interface WaypointOptions {
  /** For its files. */
  folder: string;
  netns: string;
  /** It listens at this address, port 15008. */
  address: string;
  /** PEM. Clients need a certificate of these roots. */
  identity: { key: string; chain: string; roots: string };
  /** By authority, ADDRESS:PORT of where its streams go. */
  upstreams: Readonly<Record<string, string>>;
}

export class Waypoint {
  readonly process: OwnedProcess;
  readonly #log: string;

  private constructor(process: OwnedProcess, log: string) {
    this.process = process;
    this.#log = log;
  }

  /** Resolves when it listens. The caller stops its process. */
  static async start(options: WaypointOptions): Promise<Waypoint> {
    const { folder, netns, address } = options;
    const envoy = execFileSync(join(import.meta.dirname, "../envoy/fetch"), { encoding: "utf8" }).trim();
    const file = join(folder, "waypoint.json");
    const log = join(folder, "waypoint-streams.log");
    writeFileSync(file, JSON.stringify(configOf(options, log)), { mode: 0o600 });
    const started = new OwnedProcess({
      name: "waypoint",
      log: join(folder, "waypoint.log"),
      command: [
        envoy,
        "-c",
        file,
        "--concurrency",
        "1",
        "--use-dynamic-base-id",
        "-l",
        "warning",
        "--file-flush-interval-msec",
        "50",
      ],
      netns,
    });
    await eventually("the waypoint listens", () => {
      if (started.status !== undefined) throw new Error(`Envoy ended:\n${started.tail()}`);
      // Made when the listener is.
      return readOr(log) !== undefined && listens(started.pid, address);
    });
    return new Waypoint(started, log);
  }

  /** `AUTHORITY CLIENT-IDENTITY` of each stream that has ended. */
  streams(): string[] {
    return (readOr(this.#log) ?? "").split("\n").filter(Boolean);
  }
}

function readOr(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
}

/** Whether a socket of the process's namespace listens at ADDRESS:15008. */
function listens(pid: number, address: string): boolean {
  const bytes = address.split(".").map((part) => Number(part).toString(16).padStart(2, "0"));
  const wanted = `${bytes.reverse().join("").toUpperCase()}:3AA0 00000000:0000 0A`;
  return (readOr(`/proc/${pid}/net/tcp`) ?? "").includes(wanted);
}

function configOf({ address, identity, upstreams }: WaypointOptions, log: string): object {
  const typed = (name: string, value: object) => ({
    "@type": `type.googleapis.com/envoy.extensions.${name}`,
    ...value,
  });
  const socket = (at: string) => {
    const [, host = "", port = ""] = /^(.*):(\d+)$/.exec(at) ?? [];
    return { socket_address: { address: host, port_value: Number(port) } };
  };
  const virtualHosts = Object.keys(upstreams).map((authority) => ({
    name: authority,
    domains: [authority],
    routes: [
      {
        match: { connect_matcher: {} },
        route: { cluster: authority, upgrade_configs: [{ upgrade_type: "CONNECT", connect_config: {} }] },
      },
    ],
  }));
  const connections = typed("filters.network.http_connection_manager.v3.HttpConnectionManager", {
    stat_prefix: "hbone",
    codec_type: "HTTP2",
    http2_protocol_options: { allow_connect: true, max_concurrent_streams: 100 },
    access_log: [
      {
        name: "file",
        typed_config: typed("access_loggers.file.v3.FileAccessLog", {
          path: log,
          log_format: {
            text_format_source: { inline_string: "%REQ(:AUTHORITY)% %DOWNSTREAM_PEER_URI_SAN%\n" },
          },
        }),
      },
    ],
    http_filters: [{ name: "router", typed_config: typed("filters.http.router.v3.Router", {}) }],
    route_config: { virtual_hosts: virtualHosts },
  });
  const tls = typed("transport_sockets.tls.v3.DownstreamTlsContext", {
    require_client_certificate: true,
    common_tls_context: {
      tls_certificates: [
        {
          certificate_chain: { inline_string: identity.chain },
          private_key: { inline_string: identity.key },
        },
      ],
      validation_context: { trusted_ca: { inline_string: identity.roots } },
      alpn_protocols: ["h2"],
      tls_params: { tls_minimum_protocol_version: "TLSv1_3", tls_maximum_protocol_version: "TLSv1_3" },
    },
  });
  return {
    static_resources: {
      listeners: [
        {
          name: "connect_terminate",
          address: socket(`${address}:15008`),
          filter_chains: [
            {
              transport_socket: { name: "envoy.transport_sockets.tls", typed_config: tls },
              filters: [{ name: "hcm", typed_config: connections }],
            },
          ],
        },
      ],
      clusters: Object.entries(upstreams).map(([name, to]) => ({
        name,
        type: "STATIC",
        connect_timeout: "2s",
        load_assignment: {
          cluster_name: name,
          endpoints: [{ lb_endpoints: [{ endpoint: { address: socket(to) } }] }],
        },
      })),
    },
  };
}
