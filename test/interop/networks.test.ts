/** Several networks under a real istiod: what is in another one is reached through a real Envoy, its east-west gateway. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { identityStore } from "../../src/machine/identity-store.ts";
import type { KubeObject } from "../control-plane/kube.ts";
import { NetworkNamespace } from "../lab/namespace.ts";
import { eventually, OwnedProcess } from "../lab/process.ts";
import { KMESH, MeshLab, missing } from "./mesh-lab.ts";
import { service } from "./objects.ts";
import { Waypoint } from "./waypoint-envoy.ts";

setDefaultTimeout(60_000);
const why = missing();
if (why !== undefined) console.warn(`interop tests are skipped: ${why}`);

const [NEAR, FAR] = ["near", "far"];
/** The machine, the gateway of the far network, and what ends the inner tunnel there. */
const VM = "172.31.9.1";
const [PEER, GATEWAY, INNER] = ["172.31.9.2", "172.31.9.3", "172.31.9.4"];
const WEB = "10.96.1.1";
const HOST = "web.shop.svc.cluster.local:80";
const VM_ID = "spiffe://cluster.local/ns/shop/sa/vm";

describe.skipIf(why !== undefined)("several networks, under a real istiod", () => {
  let lab: MeshLab;
  let far: NetworkNamespace;
  let gateway: Waypoint;
  let inner: Waypoint;
  const others: OwnedProcess[] = [];

  const global = (
    made: KubeObject,
    selector: Record<string, string>,
    labels: Record<string, string> = {},
  ) => ({
    ...made,
    metadata: { ...made.metadata, labels: { "istio.io/global": "true", ...labels } },
    spec: { ...(made.spec as object), selector },
  });
  const web = (labels: Record<string, string> = {}) =>
    global(service("web", WEB, [{ name: "tcp", port: 80, targetPort: 8080 }]), { app: "web" }, labels);
  const entry = (name: string, app: string, account: string, network = FAR): KubeObject => ({
    apiVersion: "networking.istio.io/v1",
    kind: "WorkloadEntry",
    metadata: { name, namespace: "shop" },
    spec: {
      address: "172.31.1.5",
      network,
      serviceAccount: account,
      labels: { app, "networking.istio.io/tunnel": "http" },
    },
  });
  const gatewayObject = {
    apiVersion: "gateway.networking.k8s.io/v1",
    kind: "Gateway",
    metadata: {
      name: "east-west",
      namespace: "shop",
      labels: { "topology.istio.io/network": FAR },
      annotations: { "gateway.istio.io/service-account": "vm" },
    },
    spec: {
      gatewayClassName: "istio-remote",
      addresses: [{ type: "IPAddress", value: GATEWAY }],
      listeners: [{ name: "cross-network", port: 15008, protocol: "HBONE", tls: { mode: "Passthrough" } }],
    },
  };

  beforeAll(async () => {
    lab = await MeshLab.create({
      gatewayApi: true,
      istiodEnv: { AMBIENT_ENABLE_MULTI_NETWORK: "true" },
      meshConfig: {
        serviceScopeConfigs: [
          { servicesSelector: { matchLabels: { "istio.io/global": "true" } }, scope: "GLOBAL" },
        ],
      },
    });
    far = await NetworkNamespace.create("far");
    await lab.namespace.connect(far, [`${VM}/24`], [`${PEER}/24`]);
    await far.addLoopback(GATEWAY, INNER);
    await far.ip("route", "add", "172.31.1.0/24", "via", VM);
    await lab.namespace.ip("route", "add", `${GATEWAY}/32`, "via", PEER);
    await lab.serve({ a: "172.31.1.5:8080", b: "172.31.1.6:8080" });
    const { kube } = lab.plane;
    await kube.apply(
      {
        apiVersion: "v1",
        kind: "Namespace",
        metadata: { name: "istio-system", labels: { "topology.istio.io/network": NEAR } },
      },
      gatewayObject,
      web(),
      entry("web-far", "web", "vm"),
    );
    await kube.applyStatus({
      ...gatewayObject,
      status: { addresses: [{ type: "IPAddress", value: GATEWAY }] },
    });
    const [ca, token] = [join(lab.folder, "root-cert.pem"), join(lab.folder, "istio-token")];
    writeFileSync(ca, await lab.plane.rootCertificate());
    writeFileSync(token, await kube.serviceAccountToken("shop", "vm"), { mode: 0o600 });
    await lab.startedAgent(
      ...["--mode=dual-engine", `--ip=${VM}`, `--istiod=localhost:${lab.plane.ports.secureGrpc}`],
      ...[`--ca=${ca}`, `--token=${token}`, "--tunnel=on", `--network=${NEAR}`],
    );
    const identity = identityStore(join(lab.folder, "state")).load();
    if (!identity) throw new Error("the agent has no certificate");
    const envoy = async (name: string, address: string, upstreams: Record<string, string>) => {
      const folder = join(lab.folder, name);
      mkdirSync(folder);
      const started = await Waypoint.start({ folder, netns: far.path, address, identity, upstreams });
      others.push(started.process);
      return started;
    };
    gateway = await envoy("gateway", GATEWAY, { [HOST]: `${INNER}:15008` });
    inner = await envoy("inner", INNER, { [HOST]: "172.31.1.5:8080" });
    const tunnel = new OwnedProcess({
      name: "tunnel",
      log: join(lab.folder, "tunnel.log"),
      command: [KMESH, "tunnel", ...lab.folders],
      netns: lab.namespace.path,
    });
    others.push(tunnel);
    await eventually("the tunnel accepts", () => tunnel.output().includes("accepts (pid"));
  }, 120_000);
  afterAll(async () => {
    for (const each of others) await each.stop("SIGKILL");
    await far?.remove();
    await lab?.remove();
  }, 60_000);

  test("a service whose workloads are all in another network: HBONE to them inside HBONE to the gateway", async () => {
    await lab.connectUntil("it is reached", WEB, 80, ({ by }) => by.a === 1);
    await eventually("both Envoys have carried it", () => inner.streams().length > 0);
    const { peers } = await lab.connect(WEB, 80, { count: 5 });
    expect(peers).toEqual({ [`${WEB} 80`]: 5 });
    for (const each of [gateway, inner]) expect([...new Set(each.streams())]).toEqual([`${HOST} ${VM_ID}`]);
    const { stream, mesh } = await lab.status();
    expect(stream.rejected).toEqual([]);
    expect(mesh.notes).toEqual([]);
  });

  test("what may answer behind the gateway is what istiod says of the service", async () => {
    await lab.plane.kube.apply(entry("web-far", "web", "somebody-else"));
    await lab.connectUntil("another identity is expected", WEB, 80, ({ by }) => by.a === undefined);
    await lab.plane.kube.apply(entry("web-far", "web", "vm"));
    await lab.connectUntil("it is reached", WEB, 80, ({ by }) => by.a === 1);
  });

  test("one in this network is its equal, and goes before it where the service prefers what is near", async () => {
    const { kube } = lab.plane;
    const near = { ...entry("web-near", "web", "vm", NEAR) };
    const spec = near.spec as { address: string; labels: Record<string, string> };
    await kube.apply({ ...near, spec: { ...spec, address: "172.31.1.6", labels: { app: "web" } } });
    await lab.connectUntil("both are reached", WEB, 80, ({ by }) => by.a === 3 && by.b === 3, { count: 6 });
    const made = web();
    await kube.apply({
      ...made,
      spec: { ...made.spec, trafficDistribution: "PreferClose" },
    });
    await lab.connectUntil("the near one is preferred", WEB, 80, ({ by }) => by.b === 6, { count: 6 });
    await kube.remove(near);
    await lab.connectUntil("the far one takes over", WEB, 80, ({ by }) => by.a === 3, { count: 3 });
  });

  test("a waypoint in another network is reached in the same way", async () => {
    const { kube } = lab.plane;
    const waypoint = {
      apiVersion: "gateway.networking.k8s.io/v1",
      kind: "Gateway",
      metadata: { name: "wp", namespace: "shop", labels: { "istio.io/waypoint-for": "service" } },
      spec: {
        gatewayClassName: "istio-waypoint",
        listeners: [{ name: "mesh", port: 15008, protocol: "HBONE" }],
      },
    };
    const own = global(service("wp", "10.96.1.8", [{ name: "mesh", port: 15008 }]), { app: "wp" });
    await kube.apply(waypoint, own, entry("wp-far", "wp", "vm"));
    await kube.applyStatus({
      ...waypoint,
      status: { addresses: [{ type: "Hostname", value: "wp.shop.svc.cluster.local" }] },
    });
    await kube.apply(web({ "istio.io/use-waypoint": "wp" }));
    await eventually("istiod names the waypoint", async () => {
      return ((await lab.status()).workloads?.waypoints.length ?? 0) > 0;
    });
    const before = [gateway, inner].map((each) => each.streams().length);
    expect((await lab.connect(WEB, 80, { count: 4 })).by).toEqual({ a: 4 });
    await eventually("each Envoy has carried four streams", () =>
      [gateway, inner].every((each, i) => each.streams().length === (before[i] ?? 0) + 4),
    );
  });
});
