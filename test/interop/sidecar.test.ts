/**
 * A VM of ours and a machine with a real Envoy as its sidecar, both under STRICT: the real istiod configures the Envoy by ADS,
 * as a node of type sidecar, and tells each of the other.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { TunnelStatus } from "../../src/tunnel/process/status-file.ts";
import type { KubeObject } from "../control-plane/kube.ts";
import { eventually, type OwnedProcess } from "../lab/process.ts";
import { connectedEntry, entryOf, workloadGroup, workloadService } from "./membership.ts";
import { MeshLab, missing } from "./mesh-lab.ts";
import { startTunnel } from "./second-machine.ts";
import { ISTIOD_FOR_STOCK_ENVOY, SidecarMachine } from "./sidecar-envoy.ts";

setDefaultTimeout(60_000);
const why = missing();
if (why !== undefined) console.warn(`interop tests are skipped: ${why}`);

const VM = "10.79.1.1";
const PEER = "10.79.1.2";

/** An agent, and its istiod, that wait seconds instead of half a minute until an entry is replaced. */
const IMPATIENT_AGENT = [
  "env",
  // It begins anew by its own command, and keeps the environment.
  `BUN_OPTIONS=--preload=${join(import.meta.dirname, "impatient.ts")}`,
  process.execPath,
  join(import.meta.dirname, "../../src/main.ts"),
];
const IMPATIENT_ISTIOD = { PILOT_WORKLOAD_ENTRY_GRACE_PERIOD: "1s" };

/** Of namespace shop: these alone are admitted. */
const policyFor = (...principals: string[]): KubeObject => ({
  apiVersion: "security.istio.io/v1",
  kind: "AuthorizationPolicy",
  metadata: { name: "web", namespace: "shop" },
  spec: { rules: [{ from: [{ source: { principals } }] }] },
});

describe.skipIf(why !== undefined)("a real Envoy sidecar under STRICT", () => {
  let lab: MeshLab;
  let sidecar: SidecarMachine | undefined;
  let tunnel: OwnedProcess | undefined;
  let joined: string[] = [];

  /** Starts the tunnel here, with new sockets. */
  async function listen(): Promise<void> {
    tunnel = await startTunnel({
      folder: lab.folder,
      netns: lab.namespace.path,
      flags: lab.folders,
      listeners: "outbound,hbone,inbound",
    });
  }

  const tunnelStatus = async (): Promise<TunnelStatus> => {
    // A tunnel writes its status once a second.
    const { stdout } = await lab.kmesh("status", "--output", "json");
    return JSON.parse(stdout).tunnels[0];
  };

  beforeAll(async () => {
    lab = await MeshLab.create({ istiodEnv: { ...ISTIOD_FOR_STOCK_ENVOY, ...IMPATIENT_ISTIOD } });
    const ca = join(lab.folder, "root-cert.pem");
    const token = join(lab.folder, "istio-token");
    writeFileSync(ca, await lab.plane.rootCertificate());
    writeFileSync(token, await lab.plane.kube.serviceAccountToken("shop", "vm"), { mode: 0o600 });
    await lab.plane.kube.apply(
      { apiVersion: "v1", kind: "ServiceAccount", metadata: { name: "web", namespace: "shop" } },
      workloadGroup("vm"),
      workloadGroup("web", { template: { serviceAccount: "web" } }),
      workloadService("vm", "10.97.3.1"),
      workloadService("web", "10.97.3.2"),
      {
        apiVersion: "security.istio.io/v1",
        kind: "PeerAuthentication",
        metadata: { name: "default", namespace: "shop" },
        spec: { mtls: { mode: "STRICT" } },
      },
    );
    sidecar = await SidecarMachine.start(lab, {
      ca,
      here: VM,
      there: PEER,
      name: "web",
      metadata: { ENABLE_HBONE: "true" },
    });
    await sidecar.serve("web", `${PEER}:8080`);
    await lab.serve({ vm: `${VM}:8080` });
    await listen();
    joined = [
      `--istiod=localhost:${lab.plane.ports.secureGrpc}`,
      `--ca=${ca}`,
      `--token=${token}`,
      "--workload-group=vm",
      `--ip=${VM}`,
    ];
    await lab.startedAgent(...joined);
  }, 600_000);

  afterAll(async () => {
    await sidecar?.remove();
    await tunnel?.stop("SIGKILL");
    await lab?.remove();
  }, 60_000);

  test("an unmodified app here reaches the one behind Envoy, which sees our identity", async () => {
    await connectedEntry(lab.plane, `web-${PEER}`);
    await lab.connectUntil("the app behind Envoy answers", "10.97.3.2", 7000, ({ by }) => by.web === 1);
    expect((await lab.connect("10.97.3.2", 7000, { count: 20 })).by).toEqual({ web: 20 });
  });

  test("an app behind Envoy reaches ours, which sees its identity", async () => {
    await eventually("our app answers", async () => (await sidecar?.connect("10.97.3.1", 7000))?.by.vm === 1);
    expect((await sidecar?.connect("10.97.3.1", 7000, 20))?.by).toEqual({ vm: 20 });
    const id = "spiffe://cluster.local/ns/shop/sa/web";
    await eventually("its identity is counted", async () => {
      const { identities, ways } = await tunnelStatus();
      return (identities[id] ?? 0) >= 41 && ways.inbound.total >= 21 && ways.outbound.total >= 21;
    });
  });

  test("plaintext is refused both ways", async () => {
    expect((await lab.connectOutside(PEER, 8080, { count: 3 })).by).toEqual({});
    expect((await sidecar?.connectPast(VM, 8080, 3))?.by).toEqual({});
  });

  test("peers are told of the tunnel no more when its sockets are gone, and again when they are back", async () => {
    const name = `vm-${VM}`;
    const labels = async () => {
      const entry = (await entryOf(lab.plane, name))?.labels ?? {};
      return [entry["security.istio.io/tlsMode"], entry["networking.istio.io/tunnel"]].join();
    };
    await lab.agent.stop("SIGKILL");
    lab.agentCommand = IMPATIENT_AGENT;
    await lab.startedAgent(...joined);
    await eventually("peers are told", async () => (await labels()) === "istio,http");
    const { uid } = await connectedEntry(lab.plane, name);
    await tunnel?.stop("SIGKILL");
    await eventually("peers are told plaintext", async () => (await labels()) === "disabled,", 30_000);
    // Another entry: istiod changes no labels of one that exists.
    expect((await connectedEntry(lab.plane, name)).uid).not.toBe(uid);
    // Until all is back the port stays shut.
    expect((await sidecar?.connect("10.97.3.1", 7000, 3))?.by).toEqual({});
    await listen();
    await eventually("peers are told again", async () => (await labels()) === "istio,http", 30_000);
    await eventually(
      "our app answers",
      async () => (await sidecar?.connect("10.97.3.1", 7000))?.by.vm === 1,
      30_000,
    );
  });

  test("a peer of an alias of the trust domain is one of the mesh, both ways and for policies; another is not", async () => {
    /** Waits until one connection there and one back both get through, or neither. */
    const passes = (what: string, wanted: "1,1" | "0,0") =>
      eventually(
        what,
        async () => {
          const there = (await lab.connect("10.97.3.2", 7000)).by.web ?? 0;
          const back = (await sidecar?.connect("10.97.3.1", 7000))?.by.vm ?? 0;
          return `${there},${back}` === wanted;
        },
        30_000,
      );
    await lab.plane.kube.apply(policyFor("cluster.local/ns/shop/sa/web", "cluster.local/ns/shop/sa/vm"));
    await passes("the policy admits both", "1,1");
    await sidecar?.become("old.example", "web");
    await passes("another trust domain is refused", "0,0");
    await eventually("that is counted", async () => {
      const { inbound, outbound } = (await tunnelStatus()).ways;
      return (inbound.failures["wrong-san"] ?? 0) > 0 && (outbound.failures["wrong-san"] ?? 0) > 0;
    });
    await lab.plane.setMeshConfig({ trustDomainAliases: ["old.example"] });
    await passes("it is one of the mesh", "1,1");
    await eventually("its identity is counted", async () =>
      Object.hasOwn((await tunnelStatus()).identities, "spiffe://old.example/ns/shop/sa/web"),
    );
    // An alias changes the trust domain and nothing else.
    await sidecar?.become("old.example", "mallory");
    await passes("another account of it is refused", "0,0");
    await sidecar?.become("elsewhere.example", "web");
    await passes("a third trust domain is refused", "0,0");
    await sidecar?.become("cluster.local", "web");
    await passes("it is one of the mesh again", "1,1");
  });

  test("both reach each other by HBONE when istiod prefers that", async () => {
    await lab.plane.stopIstiod();
    await lab.plane.startIstiod({ PILOT_PREFER_SENDING_HBONE: "true" });
    /** Streams that either side has taken by HBONE. */
    const carried = async () => ({
      here: (await tunnelStatus()).ways.hbone.total,
      there: (await sidecar?.counter("http.connect_terminate.downstream_rq_total")) ?? 0,
    });
    await eventually(
      "both are reached by HBONE",
      async () => {
        await sidecar?.connect("10.97.3.1", 7000);
        await lab.connect("10.97.3.2", 7000);
        const { here, there } = await carried();
        return here > 0 && there > 0;
      },
      30_000,
      500,
    );
    // Meanwhile istiod may make the entry anew, and Envoy has no endpoint then.
    await eventually(
      "20 connections in a row, both ways",
      async () => {
        const before = await carried();
        if ((await sidecar?.connect("10.97.3.1", 7000, 20))?.by.vm !== 20) return false;
        if ((await lab.connect("10.97.3.2", 7000, { count: 20 })).by.web !== 20) return false;
        return eventually(
          "all are counted",
          async () => {
            const { here, there } = await carried();
            return here >= before.here + 20 && there >= before.there + 20;
          },
          3_000,
        );
      },
      30_000,
    );
    // Envoy sees our identity: its policy knows the account.
    await lab.plane.kube.apply(policyFor("cluster.local/ns/shop/sa/web"));
    await eventually(
      "Envoy refuses us",
      async () => (await lab.connect("10.97.3.2", 7000)).by.web === undefined,
    );
    await lab.plane.kube.apply(policyFor("cluster.local/ns/shop/sa/web", "cluster.local/ns/shop/sa/vm"));
    await eventually("Envoy admits us", async () => (await lab.connect("10.97.3.2", 7000)).by.web === 1);
  });
});
