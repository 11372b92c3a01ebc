/**
 * A real control plane for tests: kube-apiserver with embedded etcd, and istiod, started in a temporary
 * folder and optionally in a network namespace of the test's own. Up in about six seconds once built.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseAllDocuments } from "yaml";
import { eventually, OwnedProcess, output } from "../lab/process.ts";
import { KubeApi, type KubeObject } from "./kube.ts";

const HERE = import.meta.dirname;
const ADMIN_TOKEN = "admintoken";

/** Folder of the built binaries, or the reason why there are none. Builds them when asked to (minutes). */
export function binaries(build = true): { folder: string } | { missing: string } {
  const script = join(HERE, "build");
  const result = spawnSync(script, build ? [] : ["--path"], { encoding: "utf8" });
  const folder = result.stdout.trim();
  if (result.status === 0 && folder !== "") {
    try {
      readFileSync(join(folder, "complete"));
      return { folder };
    } catch {
      return { missing: `the control plane is not built yet: run ${script}` };
    }
  }
  return { missing: result.stderr.trim().split("\n").at(-1) ?? `${script} failed` };
}

/** TCP ports on 127.0.0.1. */
export interface Ports {
  etcdClient: number;
  etcdPeer: number;
  api: number;
  /** istiod's debug and readiness. */
  http: number;
  /** istiod's xDS in plaintext and over TLS. */
  grpc: number;
  secureGrpc: number;
  monitoring: number;
}

/** What an own namespace gets: nothing else listens there. */
const OWN_PORTS: Ports = {
  etcdClient: 23790,
  etcdPeer: 23800,
  api: 6443,
  http: 8080,
  grpc: 15010,
  secureGrpc: 15012,
  monitoring: 15014,
};

export interface ControlPlaneOptions {
  /** Folder of the binaries, from `binaries`. */
  binaries: string;
  /** Path of the network namespace to live in; without one, free ports of the test's own namespace are taken. */
  netns?: string;
  /** Kubernetes namespaces to make beside istio-system, each with a ServiceAccount `vm`. */
  namespaces?: readonly string[];
  /** Fields of MeshConfig beside trustDomain and rootNamespace. */
  meshConfig?: Record<string, unknown>;
  /** How long istiod keeps a connection before it asks for its end, such as 10s. */
  maxConnectionAge?: string;
  /** Serve the Gateway API's kinds, and have istiod watch them: waypoints are Gateways. */
  gatewayApi?: boolean;
  /** Environment of istiod beside what this file sets. */
  istiodEnv?: Record<string, string>;
}

export class ControlPlane {
  readonly kube: KubeApi;
  readonly ports: Ports;
  /** Temporary folder with keys and logs; removed by `stop`. */
  readonly folder: string;
  readonly #options: ControlPlaneOptions;
  readonly #istiodSocket: string | undefined;
  #meshConfig: Record<string, unknown>;
  #api: OwnedProcess | undefined;
  #forward: OwnedProcess | undefined;
  #istiod: OwnedProcess | undefined;

  private constructor(options: ControlPlaneOptions, folder: string, ports: Ports) {
    this.#options = options;
    this.#meshConfig = options.meshConfig ?? {};
    this.folder = folder;
    this.ports = ports;
    const inside = options.netns !== undefined;
    this.#istiodSocket = inside ? join(folder, "istiod.sock") : undefined;
    this.kube = new KubeApi(
      `https://localhost:${ports.api}`,
      ADMIN_TOKEN,
      inside ? join(folder, "api.sock") : undefined,
    );
  }

  /** Starts all of it and resolves when istiod is ready. Ends what it started when that fails. */
  static async start(options: ControlPlaneOptions): Promise<ControlPlane> {
    const folder = mkdtempSync(join(tmpdir(), "kmesh-cp-"));
    const ports = options.netns === undefined ? await freePorts() : OWN_PORTS;
    const plane = new ControlPlane(options, folder, ports);
    try {
      plane.#writeKeys();
      await plane.#startApi();
      await plane.#prepare();
      await plane.startIstiod();
      return plane;
    } catch (error) {
      await plane.stop();
      throw error;
    }
  }

  /** Ends everything and removes the folder. Idempotent. */
  async stop(): Promise<void> {
    await this.stopIstiod("SIGKILL");
    await this.#api?.stop("SIGKILL");
    await this.#forward?.stop("SIGKILL");
    rmSync(this.folder, { recursive: true, force: true });
  }

  get istiod(): OwnedProcess | undefined {
    return this.#istiod;
  }

  get apiServer(): OwnedProcess | undefined {
    return this.#api;
  }

  /** Starts istiod, with `env` above all else, and resolves when it is ready; does nothing while it runs. */
  async startIstiod(env: Record<string, string> = {}): Promise<void> {
    if (this.#istiod !== undefined && this.#istiod.status === undefined) return;
    const { ports, folder } = this;
    const istiod = new OwnedProcess({
      name: "istiod",
      log: join(folder, "istiod.log"),
      command: [
        join(this.#options.binaries, "pilot-discovery"),
        "discovery",
        `--kubeconfig=${folder}/kubeconfig`,
        "--registries=Kubernetes",
        "--clusterID=Kubernetes",
        `--httpAddr=127.0.0.1:${ports.http}`,
        "--httpsAddr=",
        `--grpcAddr=127.0.0.1:${ports.grpc}`,
        `--secureGRPCAddr=127.0.0.1:${ports.secureGrpc}`,
        `--monitoringAddr=127.0.0.1:${ports.monitoring}`,
        "--ctrlz_port=0",
        `--keepaliveMaxServerConnectionAge=${this.#options.maxConnectionAge ?? "30m"}`,
      ],
      env: {
        KUBECONFIG: `${folder}/kubeconfig`,
        POD_NAME: "istiod-test",
        POD_NAMESPACE: "istio-system",
        ISTIOD_CUSTOM_HOST: "localhost",
        ENABLE_CA_SERVER: "true",
        INJECT_ENABLED: "false",
        PILOT_ENABLE_AMBIENT: "true",
        PILOT_ENABLE_GATEWAY_API: String(this.#options.gatewayApi === true),
        // It would make Deployments, which nobody runs here.
        PILOT_ENABLE_GATEWAY_API_DEPLOYMENT_CONTROLLER: "false",
        PILOT_DEBOUNCE_AFTER: "100ms",
        ...this.#options.istiodEnv,
        ...env,
      },
      cwd: folder,
      ...this.#place(),
    });
    this.#istiod = istiod;
    await eventually(
      "istiod is ready",
      async () => {
        if (istiod.status !== undefined) return true;
        return (await this.istiodHttp("/ready")).status === 200;
      },
      60_000,
      100,
    ).catch((error: Error) => {
      throw new Error(`${error.message}\n${istiod.tail()}`);
    });
    if (istiod.status !== undefined) throw new Error(`istiod ended: ${istiod.status}\n${istiod.tail()}`);
  }

  /** Takes istiod away; SIGTERM lets it close its streams. Idempotent. */
  async stopIstiod(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    await this.#istiod?.stop(signal);
    this.#istiod = undefined;
  }

  async restartIstiod(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    await this.stopIstiod(signal);
    await this.startIstiod();
  }

  /** GET on istiod's debug port, such as /debug/syncz or /debug/config_dump?proxyID=vm.shop. */
  async istiodHttp(path: string): Promise<{ status: number; body: string }> {
    const response = await fetch(`http://localhost:${this.ports.http}${path}`, {
      ...(this.#istiodSocket === undefined ? {} : { unix: this.#istiodSocket }),
      proxy: "",
    });
    return { status: response.status, body: await response.text() };
  }

  /** Replaces MeshConfig's fields beside trustDomain and rootNamespace; istiod picks it up while it runs. */
  async setMeshConfig(fields: Record<string, unknown>): Promise<void> {
    this.#meshConfig = fields;
    await this.#applyMeshConfig();
  }

  /** istiod's root certificate (PEM), as a VM gets it in root-cert.pem. */
  rootCertificate(): Promise<string> {
    return eventually("istiod's root certificate", async () => {
      const map = await this.kube.get("/api/v1/namespaces/istio-system/configmaps/istio-ca-root-cert");
      const text = (map as { data?: Record<string, string> }).data?.["root-cert.pem"];
      return text === undefined || text === "" ? undefined : text;
    });
  }

  #place(): { netns?: string } {
    return this.#options.netns === undefined ? {} : { netns: this.#options.netns };
  }

  #writeKeys(): void {
    const at = (name: string) => join(this.folder, name);
    const openssl = (...args: string[]) =>
      execFileSync("openssl", args, { stdio: ["ignore", "pipe", "pipe"] });
    openssl("genrsa", "-out", at("sa.key"), "2048");
    openssl("rsa", "-in", at("sa.key"), "-pubout", "-out", at("sa.pub"));
    writeFileSync(at("tokens.csv"), `${ADMIN_TOKEN},admin,admin,"system:masters"\n`, { mode: 0o600 });
    const kubeconfig = {
      apiVersion: "v1",
      kind: "Config",
      clusters: [
        {
          name: "test",
          cluster: { server: `https://127.0.0.1:${this.ports.api}`, "insecure-skip-tls-verify": true },
        },
      ],
      users: [{ name: "admin", user: { token: ADMIN_TOKEN } }],
      contexts: [{ name: "test", context: { cluster: "test", user: "admin" } }],
      "current-context": "test",
    };
    writeFileSync(at("kubeconfig"), JSON.stringify(kubeconfig), { mode: 0o600 });
    mkdirSync(at("etcd"), { mode: 0o700 });
  }

  async #startApi(): Promise<void> {
    const { folder, ports } = this;
    if (this.#istiodSocket !== undefined) {
      const forward = new OwnedProcess({
        name: "forward",
        log: join(folder, "forward.log"),
        command: [
          process.execPath,
          join(HERE, "forward.ts"),
          `${folder}/api.sock=${ports.api}`,
          `${this.#istiodSocket}=${ports.http}`,
        ],
        ...this.#place(),
      });
      this.#forward = forward;
      await eventually("the forwarder listens", () => forward.output().includes("ready"));
    }
    const api = new OwnedProcess({
      name: "kube-apiserver",
      log: join(folder, "apiserver.log"),
      command: [
        join(this.#options.binaries, "kube-apiserver"),
        `--etcd-servers=http://127.0.0.1:${ports.etcdClient}`,
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        `--secure-port=${ports.api}`,
        `--cert-dir=${folder}/certs`,
        "--service-account-issuer=https://kubernetes.default.svc",
        `--service-account-signing-key-file=${folder}/sa.key`,
        `--service-account-key-file=${folder}/sa.pub`,
        "--api-audiences=https://kubernetes.default.svc,istio-ca",
        // Two ranges for dual-stack Services; the first is the default family.
        "--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112",
        "--authorization-mode=AlwaysAllow",
        `--token-auth-file=${folder}/tokens.csv`,
        "--disable-admission-plugins=ServiceAccount",
        "--max-requests-inflight=2000",
        "--max-mutating-requests-inflight=1000",
      ],
      env: {
        ETCD_DIR: `${folder}/etcd`,
        ETCD_CLIENT_PORT: String(ports.etcdClient),
        ETCD_PEER_PORT: String(ports.etcdPeer),
      },
      cwd: folder,
      ...this.#place(),
    });
    this.#api = api;
    await eventually(
      "kube-apiserver is ready",
      async () => {
        if (api.status !== undefined) return true;
        return (await this.kube.request("GET", "/readyz")) === "ok";
      },
      60_000,
      100,
    ).catch((error: Error) => {
      throw new Error(`${error.message}\n${api.tail()}`);
    });
    if (api.status !== undefined) throw new Error(`kube-apiserver ended: ${api.status}\n${api.tail()}`);
  }

  async #prepare(): Promise<void> {
    const { kube } = this;
    const files = ["crds.yaml", ...(this.#options.gatewayApi ? ["gateway-crds.yaml"] : [])];
    const crds = files
      .flatMap((file) => parseAllDocuments(readFileSync(join(this.#options.binaries, file), "utf8")))
      .map((document) => document.toJS() as KubeObject | null)
      .filter((object) => object === null || object.kind === "CustomResourceDefinition");
    await Promise.all(crds.filter((crd) => crd !== null).map((crd) => kube.apply(crd)));
    const namespaces = ["istio-system", ...(this.#options.namespaces ?? [])];
    for (const name of namespaces)
      await kube.apply({ apiVersion: "v1", kind: "Namespace", metadata: { name } });
    const account = (namespace: string, name: string) =>
      kube.apply({ apiVersion: "v1", kind: "ServiceAccount", metadata: { name, namespace } });
    await account("istio-system", "istiod");
    for (const name of this.#options.namespaces ?? []) await account(name, "vm");
    await this.#applyMeshConfig();
    // A definition answers a moment after it was stored.
    await eventually("the Istio kinds are served", async () => {
      for (const crd of crds) {
        if (crd === null) continue;
        const path = `/apis/apiextensions.k8s.io/v1/customresourcedefinitions/${crd.metadata.name}`;
        const seen = (await kube.get(path)) as {
          status?: { conditions?: { type: string; status: string }[] };
        };
        const established = seen.status?.conditions?.find(({ type }) => type === "Established");
        if (established?.status !== "True") return undefined;
      }
      return true;
    });
  }

  async #applyMeshConfig(): Promise<void> {
    const mesh = {
      trustDomain: "cluster.local",
      rootNamespace: "istio-system",
      defaultConfig: { discoveryAddress: `localhost:${this.ports.secureGrpc}` },
      ...this.#meshConfig,
    };
    await this.kube.apply({
      apiVersion: "v1",
      kind: "ConfigMap",
      metadata: { name: "istio", namespace: "istio-system" },
      data: { mesh: JSON.stringify(mesh) },
    });
  }
}

/** Runs the istioctl that belongs to `plane`, inside its namespace; gives its output, throws when it fails. */
export function istioctl(
  plane: ControlPlane,
  folder: string,
  netns: string | undefined,
  ...args: string[]
): Promise<string> {
  return output(
    [
      join(folder, "istioctl"),
      "--kubeconfig",
      join(plane.folder, "kubeconfig"),
      "-i",
      "istio-system",
      ...args,
    ],
    netns === undefined ? {} : { netns },
  );
}

async function freePorts(): Promise<Ports> {
  const servers = await Promise.all(
    Array.from({ length: 7 }, async () => {
      const server = createServer();
      await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
      return server;
    }),
  );
  const [etcdClient = 0, etcdPeer = 0, api = 0, http = 0, grpc = 0, secureGrpc = 0, monitoring = 0] =
    servers.map((server) => {
      const address = server.address();
      return typeof address === "object" && address !== null ? address.port : 0;
    });
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  return { etcdClient, etcdPeer, api, http, grpc, secureGrpc, monitoring };
}
