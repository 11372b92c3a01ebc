/** Dual-engine mode under a real istiod with ambient on, and under one without. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import type { KubeObject } from "../control-plane/kube.ts";
import { NetworkNamespace } from "../lab/namespace.ts";
import { eventually, run } from "../lab/process.ts";
import { MeshLab, missing } from "./mesh-lab.ts";
import { hostOf, inNamespace, pod, running, service, serviceEntry, slice } from "./objects.ts";

setDefaultTimeout(60_000);
const why = missing();
if (why !== undefined) console.warn(`interop tests are skipped: ${why}`);

/** The machine, and another one. */
const VM = "172.31.9.1";
const PEER = "172.31.9.2";
const DUAL = ["--mode=dual-engine", `--ip=${VM}`];

describe.skipIf(why !== undefined)("dual-engine mode under a real istiod", () => {
  let lab: MeshLab;
  let peer: NetworkNamespace;

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
    lab = await MeshLab.create();
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
    await lab.startedAgent(...DUAL);
  }, 120_000);
  afterAll(async () => {
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
    lab.startAgent(...DUAL);
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
