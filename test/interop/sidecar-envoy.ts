/**
 * A machine with a real Envoy as its sidecar: configured by the real istiod as a node of type sidecar, with the secrets of a
 * local agent, and with the redirects that istio-iptables makes (here by nftables). Envoy without Istio's own extensions needs an
 * istiod that sends none: see ISTIOD_FOR_STOCK_ENVOY and FOR_STOCK_ENVOY.
 */
import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { connect, createServer, type Server } from "node:net";
import { join } from "node:path";
import { createCertificate } from "../../src/istiod/identity/certificate-authority.ts";
import { openCredentials } from "../../src/istiod/identity/credentials.ts";
import { newSigningRequest } from "../../src/istiod/identity/signing-request.ts";
import { Authority } from "../lab/authority.ts";
import { listening } from "../lab/mesh-member.ts";
import { eventually, output } from "../lab/process.ts";
import type { MeshLab, Tally } from "./mesh-lab.ts";
import { SecondMachine } from "./second-machine.ts";
import { SecretServer, type Secrets } from "./secret-server.ts";

/** istiod leaves out the filters that only Istio's build of Envoy has: metadata exchange between peers. */
export const ISTIOD_FOR_STOCK_ENVOY = { PILOT_ENABLE_METADATA_EXCHANGE: "false" };

/**
 * No setting of istiod leaves the metadata exchange out of `connect_terminate`, the listener for HBONE: stock Envoy refuses that
 * listener with "Didn't find a registered implementation for 'waypoint_downstream_peer_metadata'". The filter serves telemetry.
 */
const FOR_STOCK_ENVOY = {
  apiVersion: "networking.istio.io/v1alpha3",
  kind: "EnvoyFilter",
  metadata: { name: "stock-envoy", namespace: "shop" },
  spec: {
    configPatches: [
      {
        applyTo: "HTTP_FILTER",
        match: {
          context: "SIDECAR_INBOUND",
          listener: {
            name: "connect_terminate",
            filterChain: {
              filter: {
                name: "envoy.filters.network.http_connection_manager",
                subFilter: { name: "waypoint_downstream_peer_metadata" },
              },
            },
          },
        },
        patch: { operation: "REMOVE" },
      },
    ],
  },
};

/** To proxies from 1.29.2 on istiod sends filter states of the kind `istio.hashable_string`, which stock Envoy lacks. */
const VERSION_FOR_STOCK_ENVOY = "1.29.1";

/** The group whose traffic is not redirected: Envoy's own, as in istio-iptables. */
const PROXY_GROUP = "1337";

export interface SidecarOptions {
  /** PEM file of istiod's root. */
  ca: string;
  /** The two ends of the link, without a prefix length. */
  here: string;
  there: string;
  /** Its WorkloadGroup, its service account in namespace shop, and the label `app`. */
  name: string;
  /** More of the node's metadata. */
  metadata?: Record<string, unknown>;
}

export class SidecarMachine {
  readonly #machine: SecondMachine;
  readonly #secrets: SecretServer;
  readonly #authority: Authority;
  readonly #admin: string;

  private constructor(machine: SecondMachine, secrets: SecretServer, authority: Authority, admin: string) {
    this.#machine = machine;
    this.#secrets = secrets;
    this.#authority = authority;
    this.#admin = admin;
  }

  /** Resolves when Envoy has taken its first configuration from istiod. The caller removes it. */
  static async start(lab: MeshLab, options: SidecarOptions): Promise<SidecarMachine> {
    const { here, there } = options;
    await lab.plane.kube.apply(FOR_STOCK_ENVOY);
    const machine = await SecondMachine.create(lab, `${here}/24`, `${there}/24`);
    const { namespace } = machine;
    await namespace.ip("route", "add", "default", "via", here);
    await output(["nft", "-f", "-"], { netns: namespace.path, input: REDIRECTS });
    const secrets = await secretsOf(lab, options);
    const path = join(lab.folder, "sds.sock");
    const admin = join(lab.folder, "envoy-admin.sock");
    const server = await SecretServer.start(path, secrets);
    const sidecar = new SidecarMachine(machine, server, await authorityOf(lab), admin);
    const file = join(lab.folder, "sidecar.json");
    writeFileSync(
      file,
      JSON.stringify(bootstrapOf(options, { path, admin, istiod: lab.plane.ports.secureGrpc })),
      { mode: 0o600 },
    );
    const envoy = execFileSync(join(import.meta.dirname, "../envoy/fetch"), { encoding: "utf8" }).trim();
    const flags = ["--concurrency", "1", "--use-dynamic-base-id", "-l", "warning"];
    const proxy = ["setpriv", "--regid", PROXY_GROUP, "--clear-groups", "--pdeathsig", "KILL", "--"];
    await machine.begin("envoy", "", namespace.path, [...proxy, envoy, "-c", file, ...flags]);
    await eventually("Envoy has istiod's listeners", async () =>
      (await sidecar.ask("ready")).startsWith("LIVE"),
    );
    return sidecar;
  }

  /**
   * From now on it is `spiffe://TRUST-DOMAIN/ns/shop/sa/ACCOUNT`, as if istiod's CA had signed that. Resolves when Envoy has
   * the certificate.
   */
  async become(trustDomain: string, account: string): Promise<void> {
    const id = `spiffe://${trustDomain}/ns/shop/sa/${account}`;
    const { key, chain } = this.#authority.issue(`URI:${id}`);
    this.#secrets.replace({ key, chain, roots: this.#authority.root });
    await eventually("Envoy has the certificate", async () => (await this.ask("certs")).includes(id));
  }

  /** A server on this machine that tells its name. */
  async serve(name: string, at: string): Promise<void> {
    const script = join(import.meta.dirname, "upstream.ts");
    await this.#machine.begin(`app ${name}`, "ready", this.#machine.namespace.path, [
      process.execPath,
      script,
      `${name}=${at}`,
    ]);
  }

  /** Connections of an app of this machine, which are redirected to Envoy. */
  connect(address: string, port: number, count = 1): Promise<Tally> {
    return this.#machine.connect(address, port, count, false);
  }

  /** The same past Envoy. */
  connectPast(address: string, port: number, count = 1): Promise<Tally> {
    return this.#machine.connectAs(PROXY_GROUP, address, port, count);
  }

  /** What Envoy's administration interface answers to GET /PATH. */
  async ask(path: string): Promise<string> {
    return (await fetch(`http://localhost/${path}`, { unix: this.#admin, proxy: "" })).text();
  }

  /** One of Envoy's counters. */
  async counter(name: string): Promise<number> {
    const [, value] = /: (\d+)\s*$/.exec(await this.ask(`stats?filter=^${name}$`)) ?? [];
    return Number(value ?? Number.NaN);
  }

  async remove(): Promise<void> {
    await this.#machine.remove();
    this.#secrets.close();
  }
}

const REDIRECTS = `table ip sidecar {
  chain output {
    type nat hook output priority -100;
    oifname "lo" ip saddr 127.0.0.6 return
    meta skgid ${PROXY_GROUP} return
    ip daddr 127.0.0.0/8 return
    ip protocol tcp redirect to :15001
  }
  chain prerouting {
    type nat hook prerouting priority -100;
    iifname "lo" return
    tcp dport 15008 return
    ip protocol tcp redirect to :15006
  }
}
`;

/** The workload's certificate from istiod's CA, by the token of its service account. */
async function secretsOf(lab: MeshLab, { ca, name }: SidecarOptions): Promise<Secrets> {
  const token = join(lab.folder, `${name}-token`);
  writeFileSync(token, await lab.plane.kube.serviceAccountToken("shop", name), { mode: 0o600 });
  const way: Server = createServer((near) => {
    const far = connect(join(lab.folder, "istiod.sock"));
    near.pipe(far).pipe(near);
    for (const each of [near, far]) each.on("error", () => {});
  });
  try {
    const target = { host: "localhost", port: await listening(way), addresses: ["127.0.0.1"] };
    const { key, csr } = await newSigningRequest({
      trustDomain: "cluster.local",
      namespace: "shop",
      serviceAccount: name,
    });
    const open = openCredentials({ kind: "tls", ca, token }, target, "Kubernetes");
    return { key, ...(await createCertificate(target, open, csr, 3_600)) };
  } finally {
    way.close();
  }
}

/** istiod's own CA, by its key. */
export async function authorityOf(lab: MeshLab): Promise<Authority> {
  const path = "/api/v1/namespaces/istio-system/secrets/istio-ca-secret";
  const { data } = (await lab.plane.kube.get(path)) as { data: Record<string, string> };
  const pem = (name: string) => Buffer.from(data[name] ?? "", "base64").toString();
  const folder = join(lab.folder, "authority");
  mkdirSync(folder);
  return new Authority(folder, { root: pem("ca-cert.pem"), key: pem("ca-key.pem") });
}

/** As pilot-agent writes it: the node, the clusters of istiod and of the local agent, all else by ADS. */
function bootstrapOf(
  { there, name, ca, metadata }: SidecarOptions,
  at: { path: string; admin: string; istiod: number },
): object {
  const http2 = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
      "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
      explicit_http_config: { http2_protocol_options: {} },
    },
  };
  const cluster = (name: string, address: object, more: object = {}) => ({
    name,
    type: "STATIC",
    connect_timeout: "5s",
    typed_extension_protocol_options: http2,
    load_assignment: { cluster_name: name, endpoints: [{ lb_endpoints: [{ endpoint: { address } }] }] },
    ...more,
  });
  const sds = (name: string) => ({
    name,
    sds_config: {
      resource_api_version: "V3",
      api_config_source: {
        api_type: "GRPC",
        transport_api_version: "V3",
        grpc_services: [{ envoy_grpc: { cluster_name: "sds-grpc" } }],
      },
    },
  });
  // Its certificate proves to istiod who it is, so that it is registered.
  const tls = {
    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
    sni: "istiod.istio-system.svc",
    common_tls_context: {
      alpn_protocols: ["h2"],
      tls_certificate_sds_secret_configs: [sds("default")],
      validation_context: {
        trusted_ca: { filename: ca },
        match_typed_subject_alt_names: [{ san_type: "DNS", matcher: { exact: "istiod.istio-system.svc" } }],
      },
    },
  };
  const ads = { ads: {}, resource_api_version: "V3" };
  return {
    node: {
      id: `sidecar~${there}~${name}-1.shop~shop.svc.cluster.local`,
      cluster: `${name}.shop`,
      metadata: {
        NAME: `${name}-1`,
        NAMESPACE: "shop",
        SERVICE_ACCOUNT: name,
        INSTANCE_IPS: there,
        CLUSTER_ID: "Kubernetes",
        ISTIO_VERSION: VERSION_FOR_STOCK_ENVOY,
        MESH_ID: "cluster.local",
        WORKLOAD_NAME: name,
        AUTO_REGISTER_GROUP: name,
        INTERCEPTION_MODE: "REDIRECT",
        DNS_CAPTURE: "true",
        LABELS: { app: name },
        ...metadata,
      },
    },
    admin: { address: { pipe: { path: at.admin } } },
    bootstrap_extensions: [
      {
        name: "envoy.bootstrap.internal_listener",
        typed_config: {
          "@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
        },
      },
    ],
    dynamic_resources: {
      lds_config: ads,
      cds_config: ads,
      ads_config: {
        api_type: "DELTA_GRPC",
        transport_api_version: "V3",
        set_node_on_first_message_only: true,
        grpc_services: [{ envoy_grpc: { cluster_name: "xds-grpc" } }],
      },
    },
    static_resources: {
      clusters: [
        cluster(
          "xds-grpc",
          { socket_address: { address: "127.0.0.1", port_value: at.istiod } },
          { transport_socket: { name: "envoy.transport_sockets.tls", typed_config: tls } },
        ),
        cluster("sds-grpc", { pipe: { path: at.path } }),
      ],
    },
  };
}
