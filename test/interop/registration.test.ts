/** A VM as the mesh sees it: registered, with its app's health, and spoken to in plaintext. */
import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { noteAbsence } from "../../src/machine/tunnel/absence.ts";
import type { OwnedProcess } from "../lab/process.ts";
import { eventually, run } from "../lab/process.ts";
import { connectedEntry, entryOf, keepsEntry, Peer, workloadGroup, workloadService } from "./membership.ts";
import { KMESH, MeshLab, missing } from "./mesh-lab.ts";

setDefaultTimeout(60_000);
const why = missing();
if (why !== undefined) console.warn(`interop tests are skipped: ${why}`);

const PROBE = { httpGet: { path: "/ready", port: 8080 }, periodSeconds: 1, failureThreshold: 2 };

describe.skipIf(why !== undefined)("the mesh's view of a VM", () => {
  let lab: MeshLab;
  let peer: Peer;
  let app: OwnedProcess | undefined;
  let ca = "";
  let token = "";

  beforeAll(async () => {
    lab = await MeshLab.create();
    ca = join(lab.folder, "root-cert.pem");
    token = join(lab.folder, "istio-token");
    writeFileSync(ca, await lab.plane.rootCertificate());
    writeFileSync(token, await lab.plane.kube.serviceAccountToken("shop", "vm"), { mode: 0o600 });
    await lab.plane.kube.apply(
      workloadGroup("vms"),
      workloadService("vms", "10.97.1.1"),
      workloadService("byhand", "10.97.1.2"),
      {
        apiVersion: "networking.istio.io/v1",
        kind: "WorkloadEntry",
        metadata: { name: "vm-1", namespace: "shop" },
        spec: { address: "172.31.0.2", serviceAccount: "vm", labels: { app: "byhand" } },
      },
    );
    app = await lab.serve({ app: "172.31.0.1:8080" });
    peer = await Peer.connect(lab);
  }, 600_000);

  afterEach(async () => {
    await lab.agent.stop("SIGKILL");
  });

  afterAll(async () => {
    await peer?.close();
    await lab?.remove();
  }, 60_000);

  const secure = (...more: string[]) => [
    `--istiod=localhost:${lab.plane.ports.secureGrpc}`,
    `--ca=${ca}`,
    `--token=${token}`,
    ...more,
  ];
  const inGroup = () =>
    secure("--workload-group=vms", `--readiness-probe=${JSON.stringify(PROBE)}`, "--ip=172.31.0.1");
  const NAME = "vms-172.31.0.1";

  test("it registers with its group, peers send it plaintext, and its health follows the app's", async () => {
    await lab.startedAgent(...inGroup());
    const entry = await connectedEntry(lab.plane, NAME);
    expect(entry).toMatchObject({
      address: "172.31.0.1",
      serviceAccount: "vm",
      labels: { app: "vms", "security.istio.io/tlsMode": "disabled" },
    });
    await peer.sees("vms", "172.31.0.1");
    await eventually("healthy", async () => (await entryOf(lab.plane, NAME))?.health?.healthy);
    await app?.stop("SIGKILL");
    await peer.sees("vms");
    const sick = await eventually("not healthy", async () => {
      const { health } = (await entryOf(lab.plane, NAME)) ?? {};
      return health?.healthy === false && health;
    });
    expect(sick.message).toContain("ECONNREFUSED");
    const { health, stream, registration } = await lab.status();
    expect(registration).toMatchObject({ group: "vms", entry: NAME, address: "172.31.0.1" });
    expect([health?.healthy, stream.reported?.healthy, stream.healthNotTaken]).toEqual([
      false,
      false,
      undefined,
    ]);
    const page = (await lab.kmesh("status")).stdout;
    expect(page).toMatch(
      /registered +while connected, as WorkloadEntry vms-172.31.0.1 of namespace shop by group vms/,
    );
    expect(page).toMatch(/health +NOT HEALTHY for .*; reported to istiod/);
    app = await lab.serve({ app: "172.31.0.1:8080" });
    await peer.sees("vms", "172.31.0.1");
    expect((await entryOf(lab.plane, NAME))?.uid).toBe(entry.uid);
  });

  test("cert and doctor find all well, and doctor tells what is not", async () => {
    await lab.startedAgent(...inGroup());
    const shown = await lab.kmesh("cert", "--output", "json");
    expect(shown.code).toBe(0);
    const { id, valid, chain, roots } = JSON.parse(shown.stdout);
    expect([id, valid, chain.length, roots.length]).toEqual([
      "spiffe://cluster.local/ns/shop/sa/vm",
      true,
      1,
      1,
    ]);
    expect(chain[0].names).toEqual([`URI:${id}`]);
    const account = ["--namespace=shop", "--service-account=vm"];
    const secured = (given: { ca?: string; token?: string; state?: string; run?: string }) => [
      `--istiod=localhost:${lab.plane.ports.secureGrpc}`,
      `--ca=${given.ca ?? ca}`,
      `--token=${given.token ?? token}`,
      `--bpffs=${lab.bpffs}`,
      `--state-dir=${given.state ?? join(lab.folder, "state")}`,
      `--run-dir=${given.run ?? join(lab.folder, "run")}`,
    ];
    const doctor = async (given: Parameters<typeof secured>[0] = {}, who = account) => {
      const command = [KMESH, "doctor", "--output=json", ...secured(given), ...who];
      const { code, stdout } = await run(command, { netns: lab.namespace.path });
      const { first, checks } = JSON.parse(stdout) as {
        first: { check: string; text: string; cure: string } | null;
        checks: { check: string; state: string }[];
      };
      return { code, first, states: Object.fromEntries(checks.map(({ check, state }) => [check, state])) };
    };
    const well = await doctor();
    expect([well.code, well.first]).toEqual([0, null]);
    expect(well.states).toMatchObject({ TLS: "ok", identity: "ok", agent: "ok" });
    // A dead token is nothing while there is a certificate, and what is wrong without one.
    const dead = join(lab.folder, "dead-token");
    const [head, claims, signature = ""] = readFileSync(token, "utf8").split(".");
    writeFileSync(dead, [head, claims, signature.split("").reverse().join("")].join("."), { mode: 0o600 });
    expect((await doctor({ token: dead })).code).toBe(0);
    const none = { state: join(lab.folder, "none"), run: join(lab.folder, "none") };
    const refused = await doctor({ ...none, token: dead });
    expect([refused.code, refused.first?.check]).toEqual([1, "identity"]);
    expect(refused.first?.text).toContain(`refuses the token in ${dead}`);
    expect(refused.first?.cure).toStartWith(
      "It looks right, so it is another cluster's or was revoked (a fresh one: kubectl create token vm",
    );
    expect(refused.states).toMatchObject({ TLS: "ok", agent: "skipped" });
    const another = await doctor(none, ["--namespace=shop", "--service-account=other"]);
    expect(another.first?.check).toBe("files");
    expect(another.first?.text).toContain(
      "it is system:serviceaccount:shop:vm's, not system:serviceaccount:shop:other's",
    );
  });

  test("the entry stays the same object through SIGKILL and a new agent, and through istiod's restart", async () => {
    await lab.startedAgent(...inGroup());
    await connectedEntry(lab.plane, NAME);
    await keepsEntry(lab.plane, NAME, async () => {
      await lab.agent.stop("SIGKILL");
      await lab.startedAgent(...inGroup());
    });
    const restart = Date.now();
    await keepsEntry(lab.plane, NAME, () => lab.plane.restartIstiod());
    // The new istiod is told, too: the old one may have died with the news.
    await eventually("health told again", async () => {
      const { reported } = (await lab.status()).stream;
      return reported?.healthy === true && reported.at > restart;
    });
  });

  test("an entry made by hand: the commands that status prints are what it lacks", async () => {
    await peer.sees("byhand", "172.31.0.2+mtls");
    const well = join(lab.folder, "well");
    const probe = JSON.stringify({ exec: { command: ["test", "-e", well] }, periodSeconds: 1 });
    const flags = secure("--workload-entry=vm-1", `--readiness-probe=${probe}`, "--ip=172.31.0.2");
    await lab.startedAgent(...flags);
    const { registration } = await lab.status();
    expect(registration?.group).toBeUndefined();
    expect(registration?.peers).toEqual({ plaintext: [], mtls: ["byhand.shop.internal:7000"], hbone: [] });
    const [label = ""] = registration?.needs ?? [];
    const [annotate = "", restart = ""] = registration?.healthNeeds ?? [];
    const page = (await lab.kmesh("status")).stdout;
    expect(page).toContain("peers are told to send mTLS to 172.31.0.2 for byhand.shop.internal:7000, WHICH");
    for (const command of [label, annotate, restart]) expect(page).toContain(command);
    await kubectl(label);
    await peer.sees("byhand", "172.31.0.2");
    await eventually("status sees it, too", async () =>
      (await lab.kmesh("status")).stdout.includes(
        "peers are told to send plaintext to 172.31.0.2 for byhand",
      ),
    );
    // From the next connection on istiod takes its health, and leaves it out until then.
    await kubectl(annotate);
    expect(restart).toStartWith("systemctl restart kmesh");
    await lab.agent.stop("SIGKILL");
    await lab.startedAgent(...flags);
    const health = () => entryOf(lab.plane, "vm-1").then((entry) => entry?.health);
    expect(await eventually("its health", health)).toEqual({
      healthy: false,
      message: "test ended with exit code 1",
    });
    await peer.sees("byhand");
    writeFileSync(well, "");
    await peer.sees("byhand", "172.31.0.2");
    expect((await health())?.healthy).toBe(true);
  });

  test("an entry that another agent has left is noticed, and replaced by the commands that status prints", async () => {
    await lab.plane.kube.apply({
      apiVersion: "networking.istio.io/v1",
      kind: "WorkloadEntry",
      metadata: {
        name: "vms-172.31.0.4",
        namespace: "shop",
        annotations: { "istio.io/autoRegistrationGroup": "vms" },
      },
      spec: { address: "172.31.0.4", serviceAccount: "vm", labels: { app: "vms" } },
    });
    const flags = secure("--workload-group=vms", "--ip=172.31.0.4");
    // It was away from istiod within the hour to have the entry replaced, and does not try that again.
    noteAbsence(join(lab.folder, "run"));
    const agent = await lab.startedAgent(...flags);
    const left = await connectedEntry(lab.plane, "vms-172.31.0.4");
    await eventually("status tells it", async () =>
      (await lab.kmesh("status")).stdout.includes("WHICH NO TUNNEL TAKES: the entry is another agent's"),
    );
    expect(agent.output()).toContain("Peers are told to send mTLS to this machine (vms.shop.internal:7000)");
    expect((await lab.status()).registration?.needs[0]).toBe(
      "kubectl delete workloadentry vms-172.31.0.4 --namespace shop",
    );
    await lab.plane.kube.remove({
      apiVersion: "networking.istio.io/v1",
      kind: "WorkloadEntry",
      metadata: { name: "vms-172.31.0.4", namespace: "shop" },
    });
    await lab.agent.stop("SIGKILL");
    await lab.startedAgent(...flags);
    const entry = await connectedEntry(lab.plane, "vms-172.31.0.4");
    expect(entry.uid).not.toBe(left.uid);
    await eventually("status tells plaintext", async () =>
      (await lab.kmesh("status")).stdout.includes("peers are told to send plaintext to 172.31.0.4 for vms"),
    );
  });

  /** Does what `kubectl label|annotate KIND NAME --namespace NS --overwrite KEY=VALUE|KEY-...` does. */
  async function kubectl(command: string): Promise<void> {
    const [, verb, name, changes] =
      /^kubectl (label|annotate) workloadentry (\S+) --namespace shop --overwrite (\S.*)$/.exec(command) ??
      [];
    if (verb === undefined || changes === undefined) throw new Error(`no such command: ${command}`);
    // A key with a minus at its end is removed.
    const pairs = changes.split(" ").map((each) => /^([^=]+?)(?:-|=(.*))$/.exec(each) ?? []);
    const values = Object.fromEntries(pairs.map(([, key, value]) => [key, value ?? null]));
    await lab.plane.kube.request(
      "PATCH",
      `/apis/networking.istio.io/v1/namespaces/shop/workloadentries/${name}`,
      JSON.stringify({ metadata: { [verb === "label" ? "labels" : "annotations"]: values } }),
      "application/merge-patch+json",
    );
  }

  test("a group that does not exist, or is another account's, is named with what to do", async () => {
    rmSync(join(lab.folder, "state/identity"), { recursive: true, force: true });
    const agent = lab.startAgent(...secure("--workload-group=nobody", "--ip=172.31.0.3"));
    await eventually("the refusal", () => agent.output().includes("there is no WorkloadGroup nobody"));
    expect(agent.output()).toContain("istioctl x workload group create --name nobody --namespace shop");
    await agent.stop("SIGKILL");
    await lab.plane.kube.apply(workloadGroup("theirs", { template: { serviceAccount: "db" } }));
    const other = lab.startAgent(...secure("--workload-group=theirs", "--ip=172.31.0.3"));
    await eventually("the refusal", () => other.output().includes("is for service account db"));
    expect(other.output()).toContain("set spec.template.serviceAccount there to vm");
  });
});
