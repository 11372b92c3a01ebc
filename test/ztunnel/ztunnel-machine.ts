/**
 * A machine with a real ztunnel, in its dedicated mode: a pod of the mesh for the real istiod, which is its CA and sends it the
 * workloads. It is redirected as Istio's agent does it in a pod's namespace: by the mark of ztunnel's own packets.
 */
import type { KubeObject } from "../control-plane/kube.ts";
import type { MeshLab, Tally } from "../interop/mesh-lab.ts";
import { pod, running, service } from "../interop/objects.ts";
import { SecondMachine } from "../interop/second-machine.ts";
import { eventually, type OwnedProcess, output, run } from "../lab/process.ts";

/** Path of the executable. Throws where the variable is not set. */
export function ztunnelPath(): string {
  const path = process.env.ZTUNNEL;
  if (!path)
    throw new Error(
      "ZTUNNEL is not set. Build ztunnel (github.com/istio/ztunnel), then: ZTUNNEL=/path/to/ztunnel bun test ./test/ztunnel",
    );
  return path;
}

/** The group whose traffic passes ztunnel by, for tests. */
const PAST = "1337";
const NODE = "node-z";

const REDIRECTS = `table ip ztunnel {
  chain mark_in {
    type filter hook prerouting priority mangle;
    meta mark & 0xfff == 0x539 ct mark set 0x111
  }
  chain mark_out {
    type route hook output priority mangle;
    ct mark & 0xfff == 0x111 meta mark set ct mark
  }
  chain output {
    type nat hook output priority -100;
    meta skgid ${PAST} accept
    meta mark & 0xfff == 0x111 accept
    ip daddr 127.0.0.0/8 accept
    oifname "lo" accept
    meta mark & 0xfff != 0x539 ip protocol tcp redirect to :15001
  }
  chain prerouting {
    type nat hook prerouting priority dstnat;
    ip daddr 127.0.0.0/8 accept
    meta mark & 0xfff != 0x539 tcp dport != 15008 redirect to :15006
  }
}
`;

export interface ZtunnelOptions {
  /** PEM file of istiod's root. */
  ca: string;
  /** Token of the service account NAME in namespace shop. */
  token: string;
  /** The two ends of the link, without a prefix length. */
  here: string;
  there: string;
  /** The pod's name but for its "-0", its service account, its label `app`, and the service's name. */
  name: string;
  /** The service's address. Its port 7000 is the pod's 8080. */
  vip: string;
}

/** A line of ztunnel's access log. */
export interface AccessLine {
  direction: "inbound" | "outbound";
  "src.identity"?: string;
  "dst.identity"?: string;
  error?: string;
}

export class ZtunnelMachine {
  readonly #machine: SecondMachine;
  readonly #environment: string[];
  #process: OwnedProcess | undefined;

  private constructor(machine: SecondMachine, environment: string[]) {
    this.#machine = machine;
    this.#environment = environment;
  }

  /** Resolves when ztunnel is ready. The caller removes it. */
  static async start(lab: MeshLab, options: ZtunnelOptions): Promise<ZtunnelMachine> {
    const { name, here, there } = options;
    await lab.plane.kube.apply(...objectsOf(options));
    await lab.plane.kube.applyStatus(running(podOf(name), there));
    const machine = await SecondMachine.create(lab, `${here}/24`, `${there}/24`);
    const { namespace } = machine;
    await namespace.ip("route", "add", "default", "via", here);
    // What comes back to ztunnel's connections to the app, which have the caller's address.
    await namespace.ip("route", "add", "local", "0.0.0.0/0", "dev", "lo", "table", "100");
    await namespace.ip("rule", "add", "fwmark", "0x111/0xfff", "pref", "32764", "lookup", "100");
    await output(["nft", "-f", "-"], { netns: namespace.path, input: REDIRECTS });
    const istiod = `https://localhost:${lab.plane.ports.secureGrpc}`;
    const environment = {
      PROXY_MODE: "dedicated",
      PROXY_WORKLOAD_INFO: `shop/${name}-0/${name}`,
      PACKET_MARK: "1337",
      INSTANCE_IP: there,
      POD_NAME: `${name}-0`,
      POD_NAMESPACE: "shop",
      NODE_NAME: NODE,
      CLUSTER_ID: "Kubernetes",
      XDS_ADDRESS: istiod,
      CA_ADDRESS: istiod,
      XDS_ROOT_CA: options.ca,
      CA_ROOT_CA: options.ca,
      AUTH_TOKEN: options.token,
      ISTIO_META_DNS_CAPTURE: "false",
      LOG_FORMAT: "json",
    };
    const started = new ZtunnelMachine(
      machine,
      Object.entries(environment).map(([key, value]) => `${key}=${value}`),
    );
    await started.startZtunnel();
    return started;
  }

  /** Starts ztunnel, which must not run, and resolves when it is ready. */
  async startZtunnel(): Promise<void> {
    const netns = this.#machine.namespace.path;
    const command = ["env", ...this.#environment, ztunnelPath()];
    const ztunnel = await this.#machine.begin("ztunnel", "", netns, command);
    this.#process = ztunnel;
    await eventually("ztunnel is ready", async () => {
      if (ztunnel.status !== undefined) throw new Error(ztunnel.tail());
      return (await run(["curl", "-sf", "http://127.0.0.1:15021/healthz/ready"], { netns })).code === 0;
    }).catch((error: Error) => {
      throw new Error(`${error.message}\n${ztunnel.tail()}`);
    });
  }

  get ztunnel(): OwnedProcess {
    if (this.#process === undefined) throw new Error("ztunnel was not started");
    return this.#process;
  }

  /** The lines of its access log that `filter` accepts. */
  accessLog(filter: (line: AccessLine) => boolean = () => true): AccessLine[] {
    const lines = this.ztunnel.output().split("\n");
    return lines
      .filter((line) => line.includes('"scope":"access"'))
      .map((line) => JSON.parse(line) as AccessLine)
      .filter(filter);
  }

  /** Where apps of this machine run. */
  get place(): { netns: string } {
    return { netns: this.#machine.namespace.path };
  }

  /** Starts an app of this machine and waits until it prints `ready`. */
  begin(name: string, command: string[]): Promise<OwnedProcess> {
    return this.#machine.begin(name, "ready", this.#machine.namespace.path, command);
  }

  /** Connections of an app of this machine. */
  connect(address: string, port: number, count = 1): Promise<Tally> {
    return this.#machine.connect(address, port, count, false);
  }

  /** The same past ztunnel. */
  connectPast(address: string, port: number, count = 1): Promise<Tally> {
    return this.#machine.connectAs(PAST, address, port, count);
  }

  async remove(): Promise<void> {
    await this.#machine.remove();
  }
}

function podOf(name: string): KubeObject {
  const made = pod(`${name}-0`, name);
  return {
    ...made,
    metadata: {
      ...made.metadata,
      labels: { app: name },
      // What Istio's agent on a node writes when it has redirected a pod.
      annotations: { "ambient.istio.io/redirection": "enabled" },
    },
    spec: { ...(made.spec as object), serviceAccountName: name, nodeName: NODE },
  };
}

/** The service account, the pod, its service, and the endpoint that a cluster's controllers would make of them. */
function objectsOf({ name, vip, there }: ZtunnelOptions): KubeObject[] {
  const ports = [{ name: "tcp", port: 7000, targetPort: 8080 }];
  const made = service(name, vip, ports);
  return [
    { apiVersion: "v1", kind: "ServiceAccount", metadata: { name, namespace: "shop" } },
    podOf(name),
    { ...made, spec: { ...(made.spec as object), selector: { app: name } } },
    {
      apiVersion: "discovery.k8s.io/v1",
      kind: "EndpointSlice",
      metadata: { name: `${name}-1`, namespace: "shop", labels: { "kubernetes.io/service-name": name } },
      addressType: "IPv4",
      ports: [{ name: "tcp", port: 8080 }],
      endpoints: [
        {
          addresses: [there],
          conditions: { ready: true },
          nodeName: NODE,
          targetRef: { kind: "Pod", name: `${name}-0`, namespace: "shop" },
        },
      ],
    },
  ];
}
