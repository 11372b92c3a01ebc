/**
 * A VM of ours and a pod behind a real ztunnel, both under STRICT and told of each other by the real istiod. Opt-in: a new machine
 * has no ztunnel.
 *
 *     ZTUNNEL=/path/to/ztunnel bun test ./test/ztunnel
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { TunnelStatus } from "../../src/tunnel/process/status-file.ts";
import type { KubeObject } from "../control-plane/kube.ts";
import { connectedEntry, workloadGroup, workloadService } from "../interop/membership.ts";
import { KMESH, MeshLab, missing, RunningClient } from "../interop/mesh-lab.ts";
import { eventually, OwnedProcess, output, type Place, placed } from "../lab/process.ts";
import { ZtunnelMachine, ztunnelPath } from "./ztunnel-machine.ts";

setDefaultTimeout(120_000);
ztunnelPath();
const why = missing();
if (why !== undefined) throw new Error(`the lab can't run here: ${why}`);

const VM = "10.79.1.1";
const POD = "10.79.1.2";
const VM_VIP = "10.97.3.1";
const POD_VIP = "10.96.3.2";
const OUR_ID = "spiffe://cluster.local/ns/shop/sa/vm";
const POD_ID = "spiffe://cluster.local/ns/shop/sa/web";
const STREAMS = join(import.meta.dirname, "streams.py");
const MANY = 32 << 20;

const refusing = (app: string, account: string): KubeObject => ({
  apiVersion: "security.istio.io/v1",
  kind: "AuthorizationPolicy",
  metadata: { name: "refusing", namespace: "shop" },
  spec: {
    ...{ action: "DENY", selector: { matchLabels: { app } } },
    rules: [{ from: [{ source: { principals: [`cluster.local/ns/shop/sa/${account}`] } }] }],
  },
});

interface Answer {
  text: string;
  bytes: number;
  whole: boolean;
  error: string;
}

/** What an app at `place` gets from streams.py. */
async function ask(place: Place, vip: string, ...command: (string | number)[]): Promise<Answer> {
  const args = ["ask", vip, "7000", ...command.map(String)];
  const text = await output(["/usr/bin/python3", STREAMS, ...args], { ...place, timeoutMs: 60_000 });
  return JSON.parse(text);
}

/** Connections of an app at `place` that pass a line every 20 ms until their `end`. */
async function hold(place: Place, address: string, count: number): Promise<RunningClient> {
  const script = join(import.meta.dirname, "../interop/client.py");
  const spec = JSON.stringify({ mode: "hold", address, port: 7000, count });
  const client = new RunningClient(placed(["/usr/bin/python3", script, spec], place));
  await client.line();
  return client;
}

/** The number of HBONE connections that a machine has accepted. */
async function connections(netns: string): Promise<number> {
  const text = await output(["ss", "-Htn", "state", "established", "sport = :15008"], { netns });
  return text.split("\n").filter(Boolean).length;
}

describe.each(["kernel-native", "dual-engine"])("a real ztunnel under STRICT, %s mode", (mode) => {
  let lab: MeshLab;
  let pod: ZtunnelMachine;
  let tunnel: OwnedProcess | undefined;
  let server: OwnedProcess | undefined;

  /** Apps of each machine, and the other's service. */
  const ours = () => ({ place: { netns: lab.namespace.path, cgroup: lab.apps }, vip: POD_VIP, other: "web" });
  const theirs = () => ({ place: pod.place, vip: VM_VIP, other: "vm" });
  const both = () => [ours(), theirs()];

  const tunnels = async (): Promise<TunnelStatus[]> =>
    JSON.parse((await lab.kmesh("status", "--output", "json")).stdout).tunnels;
  const tunnelStatus = async (): Promise<TunnelStatus> => {
    const [first] = await tunnels();
    if (!first) throw new Error("no tunnel runs");
    return first;
  };

  beforeAll(async () => {
    lab = await MeshLab.create();
    const { plane } = lab;
    const file = async (name: string, text: Promise<string>) => {
      const path = join(lab.folder, name);
      writeFileSync(path, await text, { mode: 0o600 });
      return path;
    };
    await plane.kube.apply(
      { apiVersion: "v1", kind: "ServiceAccount", metadata: { name: "web", namespace: "shop" } },
      workloadGroup("vm"),
      workloadService("vm", VM_VIP),
      {
        apiVersion: "security.istio.io/v1",
        kind: "PeerAuthentication",
        metadata: { name: "default", namespace: "shop" },
        spec: { mtls: { mode: "STRICT" } },
      },
    );
    const ca = await file("root-cert.pem", plane.rootCertificate());
    const token = await file("istio-token", plane.kube.serviceAccountToken("shop", "vm"));
    pod = await ZtunnelMachine.start(lab, {
      ...{ ca, here: VM, there: POD, name: "web", vip: POD_VIP },
      token: await file("web-token", plane.kube.serviceAccountToken("shop", "web")),
    });
    await pod.begin("app", ["/usr/bin/python3", STREAMS, "serve", "web", `${POD}:8080`]);
    server = new OwnedProcess({
      name: "app",
      log: join(lab.folder, "app.log"),
      command: ["/usr/bin/python3", STREAMS, "serve", "vm", `${VM}:8080`],
      netns: lab.namespace.path,
    });
    // On sockets of its own, which its successor takes over.
    tunnel = new OwnedProcess({
      name: "tunnel",
      log: join(lab.folder, "tunnel.log"),
      command: [KMESH, "tunnel", ...lab.folders],
      netns: lab.namespace.path,
    });
    await eventually("the tunnel accepts", () => tunnel?.output().includes("accepts (pid"));
    await lab.startedAgent(
      ...[`--mode=${mode}`, `--istiod=localhost:${plane.ports.secureGrpc}`, `--ca=${ca}`, `--token=${token}`],
      ...["--workload-group=vm", `--ip=${VM}`],
      ...[`--access-log=${join(lab.folder, "access.log")}`, "--access-log-format=json"],
    );
    await connectedEntry(plane, `vm-${VM}`);
  }, 600_000);

  afterAll(async () => {
    await pod?.remove();
    // Also the one that was started by a hand-over.
    for (const { pid } of await tunnels().catch(() => [])) process.kill(pid, "SIGKILL");
    await tunnel?.stop("SIGKILL");
    await server?.stop("SIGKILL");
    await lab?.remove();
  }, 60_000);

  test("an app here reaches the one behind ztunnel, whose log names us", async () => {
    await lab.connectUntil("the app behind ztunnel answers", POD_VIP, 7000, ({ by }) => by.web === 1);
    const before = pod.accessLog(({ direction }) => direction === "inbound").length;
    expect((await lab.connect(POD_VIP, 7000, { count: 20 })).by).toEqual({ web: 20 });
    const lines = await eventually("ztunnel has logged them", () => {
      const lines = pod.accessLog(({ direction }) => direction === "inbound").slice(before);
      return lines.length >= 20 && lines;
    });
    for (const line of lines) {
      expect(line["src.identity"]).toBe(OUR_ID);
      expect(line.error).toBeUndefined();
    }
    await eventually("its identity is counted", async () => {
      return ((await tunnelStatus()).identities[POD_ID] ?? 0) >= 20;
    });
  });

  test("an app behind ztunnel reaches ours, and all that we show names the caller", async () => {
    await eventually("our app answers", async () => (await pod.connect(VM_VIP, 7000)).by.vm === 1);
    expect((await pod.connect(VM_VIP, 7000, 20)).by).toEqual({ vm: 20 });
    await eventually("HBONE is counted", async () => (await tunnelStatus()).ways.hbone.total >= 21);
    const line = await eventually("a line of our log", () =>
      readFileSync(join(lab.folder, "access.log"), "utf8")
        .split("\n")
        .filter((text) => text !== "")
        .map((text) => JSON.parse(text))
        .findLast(({ direction }) => direction === "in"),
    );
    expect(line).toMatchObject({ mutual_tls: true, principal: POD_ID, workload: "web-0" });
    const series = /^istio_tcp_connections_opened(?:_total)?\{reporter="destination".*\} \d+$/gm;
    const counted = (await lab.metrics()).match(series) ?? [];
    expect(counted.length).toBeGreaterThan(0);
    for (const each of counted) expect(each).toContain(`source_principal="${POD_ID}"`);
    const out = pod.accessLog(({ direction }) => direction === "outbound");
    expect(out.at(-1)).toMatchObject({ "src.identity": POD_ID, "dst.identity": OUR_ID });
  });

  test("plaintext is refused both ways", async () => {
    expect((await lab.connectOutside(POD, 8080, { count: 3 })).by).toEqual({});
    expect((await pod.connectPast(VM, 8080, 3)).by).toEqual({});
  });

  test("a DENY by principal refuses ztunnel's workload here, and us there", async () => {
    const { kube } = lab.plane;
    await kube.apply(refusing("vm", "web"));
    await eventually(
      "ztunnel's app is refused",
      async () => (await pod.connect(VM_VIP, 7000)).by.vm === undefined,
    );
    const refused = pod.accessLog(({ direction }) => direction === "outbound").at(-1);
    expect(refused?.error).toContain("401");
    await eventually(
      "that is counted",
      async () => ((await tunnelStatus()).ways.hbone.failures.denied ?? 0) > 0,
    );
    await kube.apply(refusing("web", "vm"));
    await eventually("ours is refused", async () => (await lab.connect(POD_VIP, 7000)).by.web === undefined);
    await eventually(
      "the reason is counted",
      async () => ((await tunnelStatus()).ways.outbound.failures["denied-by-peer"] ?? 0) > 0,
    );
    await kube.remove(refusing("web", "vm"));
    for (const { place, vip, other } of both())
      await eventually(
        `${other} answers again`,
        async () => (await ask(place, vip, "hello")).text === `${other} hello`,
      );
  });

  test("32 MB each way and both ways at once, a half-close, an early answer, a reset", async () => {
    for (const { place, vip } of both()) {
      const answers = {
        // The digest comes after our half-close.
        digest: await ask(place, vip, "digest", MANY),
        give: await ask(place, vip, "give", MANY),
        both: await ask(place, vip, "both", MANY),
        empty: await ask(place, vip, "digest", 0),
        early: await ask(place, vip, "early", MANY),
        reset: await ask(place, vip, "reset"),
      };
      expect({ vip, ...answers }).toMatchObject({
        vip,
        digest: { text: "whole", error: "" },
        give: { whole: true, bytes: MANY, error: "" },
        both: { whole: true, text: "whole", error: "" },
        empty: { text: "whole", error: "" },
        early: { text: "enough" },
        // ztunnel passes it on as an end.
        reset: { text: "", error: "" },
      });
    }
  });

  test("ztunnel's streams share connections, and downloads that nobody reads starve no other stream", async () => {
    for (const { place, vip, other } of both()) {
      const reader = new RunningClient(
        placed(["/usr/bin/python3", STREAMS, "hold", vip, "7000", "3", String(MANY)], place),
      );
      expect(await reader.line()).toBe("ready");
      for (let i = 0; i < 10; i++) expect((await ask(place, vip, "hello")).text).toBe(`${other} hello`);
      // Whole when they are read at last.
      expect((await reader.end()) as unknown).toBe(3);
    }
  });

  test("our hand-over cuts nothing of ztunnel's, and new connections use the next process", async () => {
    const held = await hold(pod.place, VM_VIP, 20);
    expect(await connections(lab.namespace.path)).toBe(1);
    const { pid } = await tunnelStatus();
    process.kill(pid, "SIGHUP");
    await eventually("the next process serves", async () => {
      return (await tunnels()).some((each) => each.pid !== pid && !each.draining);
    });
    expect((await pod.connect(VM_VIP, 7000, 50)).by).toEqual({ vm: 50 });
    const { cut, answers } = await held.end();
    expect(cut).toBe(0);
    expect(answers).toBeGreaterThan(20);
  });

  test("ztunnel's restart: it drains, its connections end as resets, and the next one is found", async () => {
    const held = await hold(ours().place, POD_VIP, 5);
    const ending = pod.ztunnel.stop("SIGTERM", 20_000);
    // Its grace period for connections is five seconds: until then they go on.
    await eventually("ztunnel has taken leave", () =>
      pod.ztunnel.output().includes("received signal SIGTERM"),
    );
    await ending;
    await pod.startZtunnel();
    await lab.connectUntil("the next one answers", POD_VIP, 7000, ({ by }) => by.web === 1);
    expect((await lab.connect(POD_VIP, 7000, { count: 20 })).by).toEqual({ web: 20 });
    await eventually("our app is reached", async () => (await pod.connect(VM_VIP, 7000)).by.vm === 1);
    expect((await held.end()).cut).toBe(5);
  });
});
