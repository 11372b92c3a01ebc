/** Dual-engine mode under a real istiod with ambient on, and under one without. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { identityStore } from "../../src/machine/identity-store.ts";
import type { KubeObject } from "../control-plane/kube.ts";
import { NetworkNamespace } from "../lab/namespace.ts";
import { eventually, OwnedProcess, run } from "../lab/process.ts";
import { KMESH, MeshLab, missing } from "./mesh-lab.ts";
import { hostOf, inNamespace, pod, running, service, serviceEntry, slice } from "./objects.ts";
import { authorityOf } from "./sidecar-envoy.ts";
import { StrictPeer } from "./strict-peer.ts";
import { Waypoint } from "./waypoint-envoy.ts";

setDefaultTimeout(60_000);
const why = missing();
if (why !== undefined) console.warn(`interop tests are skipped: ${why}`);

/** The machine, and another one. */
const VM = "172.31.9.1";
const PEER = "172.31.9.2";
/** On that other machine: this one's tunnel has port 15008 itself. */
const WAYPOINT = "172.31.9.3";
const CANARY = "172.31.9.4";

describe.skipIf(why !== undefined)("dual-engine mode under a real istiod", () => {
  let lab: MeshLab;
  let peer: NetworkNamespace;
  let flags: string[] = [];
  const others: OwnedProcess[] = [];

  /** A pod with a port called `web`, of the service `web`. */
  const podOf = (name: string, port: number) => {
    const made = pod(name, "web");
    const containers = [
      { name: "app", image: "none.invalid/app", ports: [{ name: "web", containerPort: port }] },
    ];
    return {
      ...made,
      metadata: { ...made.metadata, labels: { app: "web" } },
      spec: { ...(made.spec as object), containers },
    };
  };
  const notReady = (of: ReturnType<typeof podOf>, address: string) => {
    const up = running(of, address);
    return { ...up, status: { ...(up.status as object), conditions: [{ type: "Ready", status: "False" }] } };
  };

  /** A service of the WorkloadEntries with the label app. */
  const serviceEntryOf = (name: string, address: string, app: string) => ({
    apiVersion: "networking.istio.io/v1",
    kind: "ServiceEntry",
    metadata: { name, namespace: "shop" },
    spec: {
      ...{ hosts: [hostOf(name)], addresses: [address], location: "MESH_INTERNAL", resolution: "STATIC" },
      ports: [{ number: 7000, name: "tcp", protocol: "TCP", targetPort: 8080 }],
      workloadSelector: { labels: { app } },
    },
  });
  const workloadEntryOf = (name: string, address: string, app: string) => ({
    apiVersion: "networking.istio.io/v1",
    kind: "WorkloadEntry",
    metadata: { name, namespace: "shop" },
    spec: { address, labels: { app } },
  });

  beforeAll(async () => {
    lab = await MeshLab.create({ gatewayApi: true });
    peer = await NetworkNamespace.create("peer");
    await lab.namespace.connect(peer, [`${VM}/24`], [`${PEER}/24`]);
    await lab.serve({
      a: "172.31.1.1:8080",
      b: "172.31.1.2:8081",
      c: "172.31.1.3:8080",
      d: "172.31.1.4:8080",
      a6: "[fd00:31::1]:8080",
    });
    const { kube } = lab.plane;
    const pods = [podOf("web-0", 8080), podOf("web-1", 8081)];
    await kube.apply(...pods);
    await kube.applyStatus(running(pods[0] as KubeObject, "172.31.1.1"));
    await kube.applyStatus(running(pods[1] as KubeObject, "172.31.1.2"));
    const web = service("web", "10.96.1.1", [{ name: "http", port: 80 }]);
    const tcp = [{ number: 7000, name: "tcp", protocol: "TCP", targetPort: 8080 }];
    await kube.apply(
      {
        ...web,
        spec: {
          ...(web.spec as object),
          selector: { app: "web" },
          ports: [{ name: "http", port: 80, targetPort: "web" }],
        },
      },
      // Without a pod behind it.
      service("manual", "10.96.1.2", [{ name: "tcp", port: 80, targetPort: 8080 }]),
      slice("manual", ["172.31.1.3"], [{ name: "tcp", port: 80, targetPort: 8080 }]),
      service("nobody", "10.96.1.3", [{ name: "tcp", port: 80 }]),
      serviceEntry("several", {
        addresses: ["10.97.0.1", "fd00:97::1"],
        ports: tcp,
        endpoints: [
          { address: "172.31.1.3", weight: 3 },
          { address: "172.31.1.4" },
          { address: "fd00:31::1" },
        ],
      }),
      serviceEntry("auto", { ports: tcp, endpoints: [{ address: "172.31.1.4" }] }),
      serviceEntry("cidr", {
        addresses: ["10.98.0.0/16"],
        ports: tcp,
        endpoints: [{ address: "172.31.1.3" }],
      }),
      serviceEntry("none", {
        addresses: ["172.31.1.1"],
        ports: [{ ...(tcp[0] ?? { name: "tcp", protocol: "TCP" }), number: 8080 }],
        resolution: "NONE",
      }),
      serviceEntryOf("machines", "10.97.0.2", "machine"),
      workloadEntryOf("machine", "172.31.1.4", "machine"),
      inNamespace("other", service("far", "10.96.2.1", [{ name: "tcp", port: 80, targetPort: 8080 }])),
      inNamespace("other", slice("far", ["172.31.1.1"], [{ name: "tcp", port: 80, targetPort: 8080 }])),
    );
    const [ca, token] = [join(lab.folder, "root-cert.pem"), join(lab.folder, "istio-token")];
    writeFileSync(ca, await lab.plane.rootCertificate());
    writeFileSync(token, await kube.serviceAccountToken("shop", "vm"), { mode: 0o600 });
    flags = [
      ...["--mode=dual-engine", `--ip=${VM}`, `--istiod=localhost:${lab.plane.ports.secureGrpc}`],
      ...[`--ca=${ca}`, `--token=${token}`, "--tunnel=on", "--trust-domain-aliases=old.example"],
    ];
    await lab.startedAgent(...flags);
  }, 120_000);
  afterAll(async () => {
    for (const each of others) await each.stop("SIGKILL");
    await peer?.remove();
    await lab?.remove();
  }, 60_000);

  test("istiod's resources are taken, and nothing is rejected", async () => {
    const { stream, workloads, mode, mesh } = await lab.status();
    expect(mode).toBe("dual-engine");
    for (const type of ["address", "authorization", "names"] as const)
      expect({ type, ...stream.types[type].answered }).toMatchObject({ type, nacks: 0 });
    expect(stream.rejected).toEqual([]);
    expect(workloads).toMatchObject({ ambientLacking: false, unknownPolicies: [] });
    expect(workloads?.workloads).toBeGreaterThanOrEqual(8);
    expect(mesh.notes).toEqual([]);
  });

  test("a target port with a name: each pod has its own number", async () => {
    const { by, peers } = await lab.connect("10.96.1.1", 80, { count: 20 });
    expect(by).toEqual({ a: 10, b: 10 });
    expect(peers).toEqual({ "10.96.1.1 80": 20 });
  });

  test("services without pods, of other namespaces, WorkloadEntries, addresses that istiod gave, blocks", async () => {
    expect((await lab.connect("10.96.1.2", 80)).by).toEqual({ c: 1 });
    expect((await lab.connect("10.96.2.1", 80)).by).toEqual({ a: 1 });
    expect((await lab.connect("10.97.0.2", 7000)).by).toEqual({ d: 1 });
    expect((await lab.connect("10.98.7.7", 7000)).by).toEqual({ c: 1 });
    const names = await lab.resolving(`getent ahostsv4 ${hostOf("auto")}`);
    const [address = ""] = names.stdout.split(/\s+/);
    expect(address).toStartWith("240.240.");
    expect((await lab.connect(address, 7000)).by).toEqual({ d: 1 });
    // To the address that the app asked for.
    expect((await lab.connect("172.31.1.1", 8080)).by).toEqual({ a: 1 });
  });

  test("weights, both families, and a service without workloads", async () => {
    expect((await lab.connect("10.97.0.1", 7000, { count: 40 })).by).toEqual({ c: 30, d: 10 });
    expect((await lab.connect("fd00:97::1", 7000)).by).toEqual({ a6: 1 });
    expect((await lab.connect("10.96.1.3", 80)).errors).toEqual({ ECONNREFUSED: 1 });
  });

  test("a pod that is not ready is left out, and comes back; each is one resource and at most three writes", async () => {
    const before = await lab.status();
    await lab.plane.kube.applyStatus(notReady(podOf("web-0", 8080), "172.31.1.1"));
    await lab.connectUntil("the pod is left out", "10.96.1.1", 80, ({ by }) => by.b === 6, { count: 6 });
    const after = await lab.status();
    expect(after.stream.types.address.changed - before.stream.types.address.changed).toBe(1);
    expect(after.tables.lastWrites).toBeLessThanOrEqual(3);
    await lab.plane.kube.applyStatus(running(podOf("web-0", 8080), "172.31.1.1"));
    await lab.connectUntil("the pod is back", "10.96.1.1", 80, ({ by }) => by.a === 3, { count: 6 });
  });

  test("a policy of the machine's own workload is enforced at the SYN, and goes when istiod takes it away", async () => {
    const { kube } = lab.plane;
    await lab.serve({ vm: `${VM}:8080` });
    const policy = {
      apiVersion: "security.istio.io/v1",
      kind: "AuthorizationPolicy",
      metadata: { name: "deny-c", namespace: "shop" },
      spec: {
        ...{ action: "DENY", selector: { matchLabels: { app: "vm" } } },
        rules: [
          {
            from: [{ source: { ipBlocks: [`${PEER}/32`] } }],
            to: [{ operation: { ports: ["8080"] } }],
          },
        ],
      },
    };
    await kube.apply(serviceEntryOf("vm", "10.97.0.3", "vm"), workloadEntryOf("vm", VM, "vm"));
    // From another machine: connections from its own addresses are exempt.
    const ask = async () => {
      const script = `exec 3<>/dev/tcp/${VM}/8080 && echo hello >&3 && head -1 <&3`;
      const { stdout, stderr } = await run(["timeout", "5", "bash", "-c", script], { netns: peer.path });
      return stdout.trim() || (/Connection refused/.exec(stderr)?.[0] ?? stderr);
    };
    await eventually("the machine is a server of the mesh", async () => {
      return (await lab.status()).workloads?.own?.endsWith("/WorkloadEntry/shop/vm");
    });
    expect(await ask()).toBe("vm hello");
    await kube.apply(policy);
    await eventually("the policy refuses", async () => (await ask()) === "Connection refused", 10_000);
    expect((await lab.status()).workloads).toMatchObject({ policies: 1, unknownPolicies: [] });
    await kube.remove(policy);
    await eventually("it is open again", async () => (await ask()) === "vm hello", 10_000);
  });

  describe("a waypoint", () => {
    let waypoint: Waypoint;
    let canary: Waypoint;
    const GUARDED = "10.96.1.9";
    const guarded = (labels: Record<string, string>, annotations: Record<string, string> = {}) => {
      const made = service("guarded", GUARDED, [{ name: "tcp", port: 80, targetPort: 8080 }]);
      return {
        ...made,
        metadata: { ...made.metadata, labels, annotations },
        spec: { ...(made.spec as object), selector: { app: "guarded" } },
      };
    };
    const podAt = (name: string, labels: Record<string, string>) => {
      const made = pod(name, "web");
      return { ...made, metadata: { ...made.metadata, labels } };
    };
    const instanceOf = (name: string) =>
      podAt(`${name}-0`, { "gateway.networking.k8s.io/gateway-name": name });
    const instance = instanceOf("waypoint");
    const behind = (labels: Record<string, string>) => podAt("guarded-0", { app: "guarded", ...labels });
    const gatewayOf = (name: string, type = "Hostname", value = `${name}.shop.svc.cluster.local`) => ({
      apiVersion: "gateway.networking.k8s.io/v1",
      kind: "Gateway",
      metadata: { name, namespace: "shop", labels: { "istio.io/waypoint-for": "all" } },
      spec: {
        gatewayClassName: "istio-waypoint",
        listeners: [{ name: "mesh", port: 15008, protocol: "HBONE" }],
      },
      // What the deployment controller says when it runs.
      status: { addresses: [{ type, value }] },
    });
    /** A waypoint's Gateway, service and instance. */
    const establish = async (name: string, vip: string, address: string) => {
      const { kube } = lab.plane;
      const { status, ...gateway } = gatewayOf(name);
      const own = service(name, vip, [{ name: "mesh", port: 15008 }]);
      const selector = { "gateway.networking.k8s.io/gateway-name": name };
      await kube.apply(gateway, { ...own, spec: { ...(own.spec as object), selector } }, instanceOf(name));
      await kube.applyStatus(running(instanceOf(name), address));
      await kube.applyStatus({ ...gateway, status });
    };
    const note = async () => (await lab.kmesh("status", "--all")).stdout;

    beforeAll(async () => {
      const { kube } = lab.plane;
      await lab.serve({ e: "172.31.1.5:8080" });
      const identity = identityStore(join(lab.folder, "state")).load();
      if (!identity) throw new Error("the agent has no certificate");
      await peer.addLoopback(WAYPOINT, CANARY);
      await peer.ip("route", "add", "172.31.1.0/24", "via", VM);
      const begin = async (name: string, address: string) => {
        const folder = join(lab.folder, name);
        mkdirSync(folder);
        await lab.namespace.ip("route", "add", `${address}/32`, "via", PEER);
        const started = await Waypoint.start({
          ...{ folder, netns: peer.path, address, identity },
          upstreams: { [`${GUARDED}:80`]: "172.31.1.5:8080", "172.31.1.5:8080": "172.31.1.5:8080" },
        });
        others.push(started.process);
        return started;
      };
      [waypoint, canary] = await Promise.all([begin("waypoint", WAYPOINT), begin("canary", CANARY)]);
      const tunnel = new OwnedProcess({
        name: "tunnel",
        log: join(lab.folder, "tunnel.log"),
        command: [KMESH, "tunnel", ...lab.folders],
        netns: lab.namespace.path,
      });
      others.push(tunnel);
      await eventually("the tunnel accepts", () => tunnel.output().includes("accepts (pid"));
      // The agent then tells istiod of it, as another node: its counters begin anew.
      await eventually("istiod is told of it", () => lab.agent.output().includes("The tunnel now carries"));
      await eventually("the agent is in sync again", async () => {
        const { stream } = await lab.status();
        return stream.connected && stream.types.address.resources > 0;
      });
      await establish("waypoint", "10.96.1.8", WAYPOINT);
      await kube.apply(behind({}), guarded({}));
      await kube.applyStatus(running(behind({}), "172.31.1.5"));
      await lab.connectUntil("the service is there", GUARDED, 80, ({ by }) => by.e === 1);
    });

    test("of a service: an unmodified app's bytes go through a real Envoy, which sees the identity and the address asked for", async () => {
      expect(waypoint.streams()).toEqual([]);
      await lab.plane.kube.apply(guarded({ "istio.io/use-waypoint": "waypoint" }));
      await eventually("istiod names the waypoint", async () => {
        return ((await lab.status()).workloads?.waypoints.length ?? 0) > 0;
      });
      const { by, peers } = await lab.connect(GUARDED, 80, { count: 5 });
      expect({ by, peers }).toEqual({ by: { e: 5 }, peers: { [`${GUARDED} 80`]: 5 } });
      expect((await lab.status()).workloads?.waypoints).toEqual([
        { name: "shop/waypoint.shop.svc.cluster.local", services: 1 },
      ]);
      const stream = `${GUARDED}:80 spiffe://cluster.local/ns/shop/sa/vm`;
      await eventually("the waypoint has written five streams", () => waypoint.streams().length === 5);
      expect(waypoint.streams()).toEqual([stream, stream, stream, stream, stream]);
      // The workload itself names no waypoint.
      expect((await lab.connect("172.31.1.5", 8080)).by).toEqual({ e: 1 });
      expect(waypoint.streams()).toHaveLength(5);
    });

    test("without a healthy instance the service is refused, never led past it; status says why", async () => {
      const { kube } = lab.plane;
      await kube.applyStatus({
        ...instance,
        status: {
          ...(running(instance, WAYPOINT).status as object),
          conditions: [{ type: "Ready", status: "False" }],
        },
      });
      await lab.connectUntil("it is refused", GUARDED, 80, ({ errors }) => errors.ECONNREFUSED === 1);
      expect(await note()).toContain("waypoint shop/waypoint.shop.svc.cluster.local has no healthy instance");
      const { stdout } = await lab.kmesh("explain", `${GUARDED}:80`);
      expect(stdout).toContain("has no healthy instance");
      await kube.applyStatus(running(instance, WAYPOINT));
      await lab.connectUntil("it is carried again", GUARDED, 80, ({ by }) => by.e === 1);
    });

    test("of a workload: connections to its own address go through it; without the label they go directly", async () => {
      const { kube } = lab.plane;
      await kube.apply(guarded({}), behind({ "istio.io/use-waypoint": "waypoint" }));
      const before = waypoint.streams().length;
      await lab.connectUntil("it is carried", "172.31.1.5", 8080, () =>
        waypoint.streams().slice(before).includes("172.31.1.5:8080 spiffe://cluster.local/ns/shop/sa/vm"),
      );
      await kube.apply(behind({}));
      await eventually("it is reached directly", async () => {
        const seen = waypoint.streams().length;
        const { by } = await lab.connect("172.31.1.5", 8080, { count: 3 });
        return by.e === 3 && waypoint.streams().length === seen;
      });
    });

    test("given by address", async () => {
      const { kube } = lab.plane;
      await kube.applyStatus(gatewayOf("waypoint", "IPAddress", "10.96.1.8"));
      await kube.apply(guarded({ "istio.io/use-waypoint": "waypoint" }));
      await eventually("istiod gives the address", async () => {
        return (await lab.status()).workloads?.waypoints[0]?.name === "10.96.1.8";
      });
      const before = waypoint.streams().length;
      expect((await lab.connect(GUARDED, 80, { count: 3 })).by).toEqual({ e: 3 });
      await eventually("three streams", () => waypoint.streams().length === before + 3);
      await kube.applyStatus(gatewayOf("waypoint"));
    });

    test("two by weight; the share of one without an instance is refused", async () => {
      const { kube } = lab.plane;
      await establish("canary", "10.96.1.7", CANARY);
      const labels = { "istio.io/use-waypoint": "waypoint", "istio.io/use-waypoint-canary": "canary" };
      await kube.apply(guarded(labels, { "istio.io/use-waypoint-canary-weight": "25" }));
      await eventually("istiod names both", async () => {
        return (await lab.status()).workloads?.waypoints.length === 2;
      });
      const before = [waypoint, canary].map((each) => each.streams().length);
      expect((await lab.connect(GUARDED, 80, { count: 40 })).by).toEqual({ e: 40 });
      const after = () => [waypoint, canary].map((each, i) => each.streams().length - (before[i] ?? 0));
      await eventually("40 streams", () => after().reduce((sum, each) => sum + each) === 40);
      expect(after()).toEqual([30, 10]);
      await kube.remove(instanceOf("canary"));
      await lab.connectUntil(
        "its share is refused",
        GUARDED,
        80,
        ({ by, errors }) => by.e === 30 && errors.ECONNREFUSED === 10,
        { count: 40 },
      );
      expect(await note()).toContain("waypoint shop/canary.shop.svc.cluster.local has no healthy instance");
      await kube.apply(guarded({}));
      await lab.connectUntil("it is reached directly", GUARDED, 80, ({ by: all }) => all.e === 4, {
        count: 4,
      });
    });
  });

  test("a sidecar's mutual TLS, of which only EDS knows: an unmodified app reaches a peer of an alias that takes nothing else", async () => {
    const authority = await authorityOf(lab);
    const issued = authority.issue("URI:spiffe://old.example/ns/shop/sa/vm");
    const identity = { ...issued, roots: authority.root };
    await run(["ip", "-n", lab.namespace.name, "addr", "add", "172.31.1.6/32", "dev", "lo"]);
    const strict = await StrictPeer.start({
      ...{ folder: lab.folder, netns: lab.namespace.path, identity },
      at: { address: "172.31.1.6", port: 8443 },
    });
    others.push(strict);
    const ports = [{ number: 7000, name: "tcp", protocol: "TCP", targetPort: 8443 }];
    await lab.plane.kube.apply(
      serviceEntry("sidecar", {
        ...{ addresses: ["10.97.0.8"], ports },
        endpoints: [{ address: "172.31.1.6", serviceAccount: "vm" }],
      }),
    );
    const { peers } = await lab.connectUntil("it answers", "10.97.0.8", 7000, ({ by }) => by.strict === 3, {
      count: 3,
    });
    expect(peers).toEqual({ "10.97.0.8 7000": 3 });
    // In plaintext it says nothing.
    expect((await lab.connectOutside("172.31.1.6", 8443)).by).toEqual({});
    // A peer without a sidecar stays as it was.
    expect((await lab.connect("10.97.0.2", 7000)).by).toEqual({ d: 1 });
  });

  test("istiod goes and comes back: only what changed meanwhile is sent and written", async () => {
    await lab.plane.stopIstiod();
    expect((await lab.connect("10.96.1.1", 80, { count: 4 })).by).toEqual({ a: 2, b: 2 });
    await lab.plane.kube.remove(serviceEntry("auto", { ports: [] }));
    const before = await lab.status();
    await lab.plane.startIstiod();
    const after = await eventually(
      "what went is gone",
      async () => {
        const status = await lab.status();
        return status.stream.types.address.removed > before.stream.types.address.removed && status;
      },
      30_000,
    );
    // The service and its workload.
    expect(after.stream.types.address.removed - before.stream.types.address.removed).toBe(2);
    expect(after.stream.types.address.changed).toBe(before.stream.types.address.changed);
    expect((await lab.connect("10.96.1.1", 80, { count: 4 })).by).toEqual({ a: 2, b: 2 });
  });

  test("an istiod without ambient: nothing is published, what the kernel holds stays, and status says why", async () => {
    await lab.agent.stop("SIGTERM");
    await lab.plane.stopIstiod();
    await lab.plane.startIstiod({ PILOT_ENABLE_AMBIENT: "false" });
    lab.startAgent(...flags);
    const { tables } = await eventually(
      "the agent knows that",
      async () => {
        const status = await lab.status();
        return status.workloads?.ambientLacking === true && status;
      },
      20_000,
    );
    expect(tables.applies).toBe(0);
    expect((await lab.connect("10.96.1.1", 80, { count: 4 })).by).toEqual({ a: 2, b: 2 });
    expect((await lab.kmesh("status")).stdout).toContain("it needs PILOT_ENABLE_AMBIENT=true");
  });
});
