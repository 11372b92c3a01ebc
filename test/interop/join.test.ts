/** From istioctl's five files to a machine in the mesh: `kmesh join`, then `kmesh run` with nothing but its configuration. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { stringify } from "yaml";
import { binaries, istioctl } from "../control-plane/control-plane.ts";
import { eventually, OwnedProcess, output, type RunResult, run } from "../lab/process.ts";
import { KMESH, MeshLab, missing } from "./mesh-lab.ts";

setDefaultTimeout(60_000);
const why = missing();
if (why !== undefined) console.warn(`skipped: joining a mesh: ${why}`);

describe.skipIf(why !== undefined)("a VM with istioctl's files", () => {
  const built = binaries();
  let lab: MeshLab;
  let files = "";
  let config = "";
  let agent: OwnedProcess | undefined;

  beforeAll(async () => {
    if ("missing" in built) return;
    lab = await MeshLab.create({
      meshConfig: { defaultConfig: { discoveryAddress: "istiod.istio-system.svc:15012" } },
    });
    await lab.plane.kube.apply({
      apiVersion: "networking.istio.io/v1",
      kind: "WorkloadGroup",
      metadata: { name: "vms", namespace: "shop" },
      spec: {
        metadata: { labels: { app: "vms" } },
        template: { serviceAccount: "vm", network: "net1", ports: { http: 8080 } },
      },
    });
    await lab.plane.rootCertificate();
    files = join(lab.folder, "files");
    mkdirSync(files);
    const configure = ["x", "workload", "entry", "configure", "--name=vms", "--namespace=shop"];
    const more = ["--clusterID=Kubernetes", "--ingressIP=127.0.0.1", "--autoregister", "-o", files];
    await istioctl(lab.plane, built.folder, lab.namespace.path, ...configure, ...more);
    await output(["ip", "-n", lab.namespace.name, "addr", "add", "172.31.0.1/32", "dev", "lo"]);
    // What only this machine's operator knows.
    config = join(lab.folder, "config.yaml");
    const folders = { bpffs: lab.bpffs, "state-dir": `${lab.folder}/state`, "run-dir": `${lab.folder}/run` };
    writeFileSync(config, stringify({ ...folders, cgroup: [lab.apps], namespace: "elsewhere" }));
  }, 600_000);

  afterAll(async () => {
    await agent?.stop("SIGKILL");
    await lab?.remove();
  }, 60_000);

  const kmesh = (...args: string[]): Promise<RunResult> =>
    run([KMESH, ...args], { netns: lab.namespace.path, env: { KMESH_CONFIG: config } });

  test("join says what it would do, and then does it", async () => {
    const dry = await kmesh("join", "--from", files, "--dry-run");
    expect(dry).toMatchObject({ code: 0 });
    expect(dry.stdout).toStartWith("Dry run, nothing is changed:\n");
    expect(dry.stdout).toContain(`replace ${config} (`);
    // istioctl leaves its files open to all.
    expect(dry.stderr).toContain(
      `others can read ${files}/istio-token, and be spiffe://cluster.local/ns/shop/sa/vm`,
    );
    const joined = await kmesh("join", "--from", files);
    expect(joined).toMatchObject({ code: 0, stdout: expect.stringContaining("Next: kmesh run") });
    for (const name of ["root-cert.pem", "istio-token"])
      expect(statSync(join(lab.folder, "state", name)).mode & 0o777).toBe(0o600);
    const again: { steps: { action: string }[] } = JSON.parse(
      (await kmesh("join", "--from", files, "--output=json")).stdout,
    );
    expect(again.steps.map(({ action }) => action)).toEqual(["keep", "keep", "keep"]);
  });

  test("the configuration alone is enough: certificate, stream by the address from hosts, WorkloadEntry", async () => {
    rmSync(files, { recursive: true });
    agent = new OwnedProcess({
      name: "kmesh",
      log: join(lab.folder, "joined.log"),
      command: [KMESH, "run", `--config=${config}`],
      netns: lab.namespace.path,
    });
    const status = await eventually("the agent is in the mesh", async () => {
      if (agent?.status !== undefined) throw new Error(agent.tail(20));
      const { stdout } = await kmesh("status", "--output=json");
      const found = JSON.parse(stdout || "{}");
      return found.stream?.connected && found.tables?.applies > 0 ? found : undefined;
    });
    expect(status.identity).toMatchObject({
      id: "spiffe://cluster.local/ns/shop/sa/vm",
      certificate: { valid: true },
    });
    expect(status.stream).toMatchObject({ target: "istiod.istio-system.svc:15012", plaintext: false });
    expect(readdirSync(join(lab.folder, "state")).sort()).toContain("identity");
    const entry = await eventually("the WorkloadEntry", () =>
      lab.plane.kube.get("/apis/networking.istio.io/v1/namespaces/shop/workloadentries/vms-172.31.0.1-net1"),
    );
    expect(entry).toMatchObject({
      spec: { address: "172.31.0.1", serviceAccount: "vm", network: "net1", labels: { app: "vms" } },
    });
  });

  test("the configuration is checked, and compared with what is in use", async () => {
    expect(await kmesh("config", "check")).toMatchObject({ code: 0, stdout: `${config} is valid.\n` });
    const same = await eventually("a snapshot", async () => {
      const result = await kmesh("config", "diff");
      return result.stdout.includes("no snapshot") ? undefined : result;
    });
    expect(same).toMatchObject({ code: 0, stdout: `${config}, the agent, the snapshot: no difference.\n` });
    const before = readFileSync(config, "utf8");
    writeFileSync(config, `${before.replace("network: net1", "network: net2")}\nexclude: [192.0.2.0/24]\n`);
    const changed = await kmesh("config", "diff");
    expect(changed.stdout).toMatch(/^network +net2 +net1 +net1$/m);
    expect(changed.stdout).toMatch(/^exclude +192\.0\.2\.0\/24 +\(none\) +-$/m);
    expect(changed.stdout).toContain(
      "systemctl restart kmesh applies the file (connections continue): network",
    );
    const json = JSON.parse((await kmesh("config", "diff", "--output=json")).stdout);
    expect(json).toMatchObject({ alive: true, snapshot: true, reload: ["exclude"], restart: ["network"] });
    writeFileSync(config, "istiod: a:0\nnamspace: shop\ncgroup: [/none]\n");
    const wrong = await kmesh("config", "check");
    expect(wrong.code).toBe(2);
    for (const text of [
      '"0" is not a port',
      'no setting "namspace"',
      "no cgroup /none",
      "root certificate is missing",
    ])
      expect(wrong.stdout).toContain(text);
    writeFileSync(config, before);
  });
});
