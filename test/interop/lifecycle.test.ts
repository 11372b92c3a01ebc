/**
 * A VM's life in the mesh, by istioctl's five files and the real agent: a certificate of minutes that is renewed again
 * and again, a token that is dead from the beginning on, connections that istiod ends for their age, istiod's restart,
 * the agent's death, a reboot, an expired certificate; and a load that notices none of it.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { X509Certificate } from "node:crypto";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { stringify } from "yaml";
import type { AgentStatus } from "../../src/admin/status.ts";
import { binaries, istioctl } from "../control-plane/control-plane.ts";
import { Authority } from "../lab/authority.ts";
import { eventually, OwnedProcess, output, type RunResult, run } from "../lab/process.ts";
import {
  connectedEntry,
  type Entry,
  entryOf,
  keepsEntry,
  Peer,
  workloadGroup,
  workloadService,
} from "./membership.ts";
import { KMESH, MeshLab, missing, type RunningClient } from "./mesh-lab.ts";
import { serviceEntry } from "./objects.ts";

setDefaultTimeout(90_000);
const why = missing();
if (why !== undefined) console.warn(`interop tests are skipped: ${why}`);

/** istiod dates back by 120 s: such a certificate is renewed after some seconds. */
const LIFE = "126s";
const NAME = "vms-172.31.0.1";

describe.skipIf(why !== undefined)("a VM's life in the mesh", () => {
  const built = binaries();
  let lab: MeshLab;
  let peer: Peer;
  let app: OwnedProcess;
  let agent: OwnedProcess | undefined;
  let successor: number | undefined;
  let config = "";
  let token = "";
  let starts = 0;

  beforeAll(async () => {
    if ("missing" in built) return;
    lab = await MeshLab.create({
      meshConfig: { defaultConfig: { discoveryAddress: "istiod.istio-system.svc:15012" } },
      maxConnectionAge: "10s",
    });
    const probe = { httpGet: { path: "/ready", port: 8080 }, periodSeconds: 1 };
    await lab.plane.kube.apply(
      workloadGroup("vms", { probe }),
      workloadService("vms", "10.97.2.1"),
      serviceEntry("shop", {
        addresses: ["10.97.1.1"],
        ports: [{ number: 7000, name: "tcp", protocol: "TCP", targetPort: 9000 }],
        endpoints: [{ address: "172.31.1.1" }, { address: "172.31.1.2" }],
      }),
    );
    await lab.plane.rootCertificate();
    await lab.serve({ a: "172.31.1.1:9000", b: "172.31.1.2:9000" });
    app = await lab.serve({ app: "172.31.0.1:8080" });
    peer = await Peer.connect(lab);
    const files = join(lab.folder, "files");
    mkdirSync(files);
    const configure = ["x", "workload", "entry", "configure", "--name=vms", "--namespace=shop"];
    const more = ["--clusterID=Kubernetes", "--ingressIP=127.0.0.1", "--autoregister", "-o", files];
    await istioctl(lab.plane, built.folder, lab.namespace.path, ...configure, ...more);
    config = join(lab.folder, "config.yaml");
    token = join(lab.folder, "state/istio-token");
    const own = { bpffs: lab.bpffs, "state-dir": `${lab.folder}/state`, "run-dir": `${lab.folder}/run` };
    // The machine of this test has other addresses, which the servers need.
    const operators = { cgroup: [lab.apps], ip: ["172.31.0.1"], "certificate-life": LIFE };
    writeFileSync(config, stringify({ ...own, ...operators }));
    expect(await kmesh("join", "--from", files)).toMatchObject({ code: 0 });
    rmSync(files, { recursive: true });
  }, 600_000);

  /** Nobody's child, so no test's process ends it. */
  function endSuccessor(): void {
    if (successor !== undefined) process.kill(successor, "SIGKILL");
    successor = undefined;
  }

  afterAll(async () => {
    endSuccessor();
    await agent?.stop("SIGKILL");
    await peer?.close();
    await lab?.remove();
  }, 60_000);

  const kmesh = (...args: string[]): Promise<RunResult> =>
    run([KMESH, ...args], { netns: lab.namespace.path, env: { KMESH_CONFIG: config } });

  const status = async (): Promise<AgentStatus & { alive: boolean }> =>
    JSON.parse((await kmesh("status", "--output=json")).stdout);

  /** Starts `kmesh run` by the configuration alone, and waits until it has applied a push of istiod's. */
  async function start(): Promise<OwnedProcess> {
    starts += 1;
    const started = new OwnedProcess({
      name: "kmesh",
      log: join(lab.folder, `life-${starts}.log`),
      command: [KMESH, "run", `--config=${config}`],
      netns: lab.namespace.path,
    });
    agent = started;
    await eventually(
      "the agent is in the mesh",
      async () => {
        if (started.status !== undefined) throw new Error(`kmesh ended: ${started.tail()}`);
        const { pid, tables } = await status();
        return pid === started.pid && tables.applies > 0;
      },
      20_000,
      100,
    );
    return started;
  }

  const healthy = (wanted: boolean): Promise<Entry> =>
    eventually(`its entry says ${wanted ? "healthy" : "not healthy"}`, async () => {
      const entry = await entryOf(lab.plane, NAME);
      return entry?.health?.healthy === wanted ? entry : undefined;
    });

  test("by the five files alone it has a certificate, an entry, and its app's health", async () => {
    await start();
    writeFileSync(token, "dead");
    const { identity, stream } = await status();
    expect(identity).toMatchObject({ id: "spiffe://cluster.local/ns/shop/sa/vm", obtained: 1 });
    expect(stream).toMatchObject({ connected: true, plaintext: false });
    expect((await connectedEntry(lab.plane, NAME)).labels["security.istio.io/tlsMode"]).toBe("disabled");
    await healthy(true);
    await peer.sees("vms", "172.31.0.1");
  });

  test("no connection fails through three renewals, aging connections, istiod's restart and the agent's death", async () => {
    const spec = { address: "10.97.1.1", port: 7000, threads: 2, pace: 0.005 };
    const clients: [RunningClient, RunningClient] = [
      await lab.startClient("storm", spec),
      await lab.startClient("hold", { address: "10.97.1.1", port: 7000, count: 10 }),
    ];
    const first = await connectedEntry(lab.plane, NAME);
    const renewals = async () => (await status()).identity?.obtained ?? 0;
    const begun = await renewals();
    await Promise.all([
      (async () => {
        await eventually("three renewals", async () => (await renewals()) >= begun + 3, 60_000, 250);
      })(),
      (async () => {
        await app.stop("SIGKILL");
        await healthy(false);
        await peer.sees("vms");
        app = await lab.serve({ app: "172.31.0.1:8080" });
        await healthy(true);
        await peer.sees("vms", "172.31.0.1");
      })(),
    ]);
    await keepsEntry(lab.plane, NAME, () => lab.plane.restartIstiod());
    await keepsEntry(lab.plane, NAME, async () => {
      const { code, stderr } = await kmesh("restart", "--graceful");
      expect({ code, stderr }).toMatchObject({ code: 0 });
      successor = (await status()).pid;
      expect(successor).not.toBe(agent?.pid);
    });
    await keepsEntry(lab.plane, NAME, async () => {
      endSuccessor();
      await start();
    });
    // Whatever its age, a connection is followed by the next before istiod ends it.
    const { connections } = (await status()).stream;
    await eventually(
      "older connections are replaced",
      async () => {
        const { stream } = await status();
        return stream.connections >= connections + 2 && stream.connected;
      },
      30_000,
    );
    const [storm, hold] = await Promise.all(clients.map((client) => client.end()));
    expect(storm?.errors).toEqual({});
    expect(hold).toMatchObject({ errors: {}, cut: 0 });
    expect(Object.keys(storm?.by ?? {}).sort()).toEqual(["a", "b"]);
    expect(storm?.made).toBeGreaterThan(1_000);
    const log = agent?.output() ?? "";
    expect(log).not.toMatch(/refuse|No new certificate|token/);
    expect((await connectedEntry(lab.plane, NAME)).uid).toBe(first.uid);
  });

  test("after a reboot it comes back with what it kept, and the token is still dead", async () => {
    await reboot();
    await start();
    const { identity, adopted } = await status();
    expect([identity?.certificate?.valid, adopted]).toEqual([true, false]);
    expect((await lab.connect("10.97.1.1", 7000, { count: 20 })).errors).toEqual({});
    await connectedEntry(lab.plane, NAME);
    await healthy(true);
  });

  /** What a reboot does: processes, pins and the run folder are gone, the disk is as it was. */
  async function reboot(): Promise<void> {
    await agent?.stop("SIGKILL");
    rmSync(lab.bpffs, { recursive: true });
    rmSync(join(lab.folder, "run"), { recursive: true });
    expect((await lab.connect("10.97.1.1", 7000)).errors).toEqual({ ENETUNREACH: 1 });
  }

  test("expired and without a token that is good: one line with the command, and traffic continues", async () => {
    await agent?.stop("SIGKILL");
    await expire();
    starts += 1;
    const late = new OwnedProcess({
      name: "kmesh",
      log: join(lab.folder, `life-${starts}.log`),
      command: [KMESH, "run", `--config=${config}`],
      netns: lab.namespace.path,
    });
    agent = late;
    const trouble = () =>
      late
        .output()
        .split("\n")
        .filter((line) => /token/.test(line));
    await eventually("the line", () => trouble().length > 0);
    await eventually("further attempts", async () => ((await status()).stream.lastError?.at ?? 0) > 0);
    expect((await lab.connect("10.97.1.1", 7000, { count: 20 })).errors).toEqual({});
    expect(trouble().length).toBe(1);
    const [line = ""] = trouble();
    expect(line).toMatch(/the certificate of spiffe:\/\/cluster.local\/ns\/shop\/sa\/vm expired at \S+Z/);
    expect(line).toContain(`kubectl create token vm --namespace shop --audience istio-ca > ${token}`);
    expect((await kmesh("cert")).code).toBe(1);
    const page = (await kmesh("status")).stdout;
    expect(page.match(/kubectl create token/g)?.length).toBe(1);
    const doctor = await kmesh("doctor");
    expect(doctor.code).toBe(1);
    expect(doctor.stdout).toContain(`First: the token in ${token} can't be used`);
    writeFileSync(token, await lab.plane.kube.serviceAccountToken("shop", "vm"));
    await eventually("the new certificate", async () => (await status()).identity?.obtained === 1, 20_000);
    await eventually("the stream", async () => (await status()).stream.connected, 20_000);
    expect((await kmesh("cert")).code).toBe(0);
    expect((await kmesh("doctor")).code).toBe(0);
  });

  test("istiod's CA is replaced: traffic continues, doctor names it, and the new root with a token mends it", async () => {
    const roots = join(lab.folder, "state/root-cert.pem");
    const before = await lab.plane.rootCertificate();
    await lab.plane.stopIstiod("SIGKILL");
    await lab.plane.kube.remove({
      apiVersion: "v1",
      kind: "Secret",
      metadata: { name: "istio-ca-secret", namespace: "istio-system" },
    });
    await lab.plane.startIstiod();
    const root = await eventually("the new root", async () => {
      const now = await lab.plane.rootCertificate();
      return now.trim() === before.trim() ? undefined : now;
    });
    const doctor = await eventually("the refusal", async () => {
      const found = await kmesh("doctor");
      return found.stdout.includes("is not signed by") && found;
    });
    expect(doctor.stdout).toMatch(/TLS +WRONG .*\n +Pass the mesh's root there/);
    expect((await lab.connect("10.97.1.1", 7000, { count: 20 })).errors).toEqual({});
    writeFileSync(token, await lab.plane.kube.serviceAccountToken("shop", "vm"));
    writeFileSync(roots, root);
    const since = Date.now();
    await eventually(
      "the stream",
      async () => {
        const { connected, connectedSince = 0 } = (await status()).stream;
        return connected && connectedSince > since;
      },
      20_000,
    );
    expect((await kmesh("doctor")).code).toBe(0);
    const { roots: kept } = JSON.parse((await kmesh("cert", "--output=json")).stdout);
    expect(kept.map(({ fingerprint }: { fingerprint: string }) => fingerprint)).toEqual([
      new X509Certificate(root).fingerprint256,
    ]);
    await connectedEntry(lab.plane, NAME);
  });

  /** Puts a certificate of yesterday in the place of the kept one, signed by istiod's own CA for the same key. */
  async function expire(): Promise<void> {
    const current = join(lab.folder, "state/identity/current");
    const secret = (await lab.plane.kube.get("/api/v1/namespaces/istio-system/secrets/istio-ca-secret")) as {
      data: Record<string, string>;
    };
    const part = (key: string) => Buffer.from(secret.data[key] ?? "", "base64").toString();
    const folder = join(lab.folder, "expire");
    mkdirSync(folder);
    const authority = new Authority(folder, { root: part("ca-cert.pem"), key: part("ca-key.pem") });
    const csr = await output(["openssl", "req", "-new", "-key", join(current, "key.pem"), "-subj", "/"]);
    const yesterday = { from: -2 * 86_400, to: -86_400 };
    const chain = authority.sign(csr, "URI:spiffe://cluster.local/ns/shop/sa/vm", yesterday);
    writeFileSync(join(current, "cert-chain.pem"), chain);
  }
});
