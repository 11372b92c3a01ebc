/**
 * Where the bench plays: this process's own network and mount namespaces, a cgroup on the machine's cgroup2 root, a
 * folder of pins, a small disk for the agent's state. The agent is the single file, the control plane the embedded one.
 */

import {
  copyFileSync,
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statfsSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { askAgent, orderAgent } from "../../src/admin/client.ts";
import { type AgentStatus, adminSocket } from "../../src/admin/status.ts";
import type { Inspection, Summary } from "../../src/datapath/inspect/state.ts";
import { codeOf } from "../../src/errors/reason.ts";
import type { Proof } from "../../src/handover/predecessor.ts";
import type { RestartRequest } from "../../src/handover/restart-request.ts";
import type { Mode } from "../../src/istiod/stream/types.ts";
import { machineId } from "../../src/machine/machine-id.ts";
import { hasManifest, readManifest } from "../../src/state/manifest.ts";
import { ownName, TestCgroup } from "../../test/lab/namespace.ts";
import { eventually, OwnedProcess, output, type RunResult, run, sleep } from "../../test/lab/process.ts";
import { compileC } from "../lab/machine.ts";
import { AdmissionLoad, admissionDifference } from "./admission.ts";
import { MACHINE, PORTS } from "./admission-plan.ts";
import type { Build, Builds } from "./builds.ts";
import { monotonic } from "./clock.ts";
import { countsAccepted } from "./ledger/kernel-counts.ts";
import type { Validity } from "./ledger/validity.ts";
import type { Plan } from "./plan.ts";
import { Talker } from "./talker.ts";
import { residentMemory, Tunnels } from "./tunnels.ts";

const BPFFS = "/sys/fs/bpf";
const ISTIOD = 15010;
/** The agent's disk, bytes. */
const DISK = 4 << 20;
/** Between two frames on a long connection, milliseconds. */
const BEAT = 1_000;
/** How long the agent may take to be in sync, milliseconds. */
const PATIENCE = 30_000;

export interface LoadOptions {
  /** Processes that connect. */
  makers: number;
  /** Short connections that each keeps under way. */
  window: number;
  /** Short connections a second in all; 0: as many as the machine makes. */
  rate: number;
  /** Long connections in all. */
  hold: number;
  /** Of another process, to services that demand mutual TLS. Connections a second: 0 for none but the long ones. */
  tunnel: { rate: number; hold: number };
}

/** Short connections through the tunnel that are under way at once. */
const TUNNEL_WINDOW = 8;

/** What a resolver got that asked all the time (test/names/resolver.py). */
export interface Lookups {
  asked: number;
  right: number;
  /** What came instead of an answer, and how often. */
  wrong: Record<string, number>;
}

export class Stage {
  readonly plan: Plan;
  readonly validity: Validity;
  readonly folder = mkdtempSync(join(tmpdir(), "kmesh-continuity-"));
  readonly bpffs = join(BPFFS, ownName("c"));
  /** The file that agents are started from. */
  readonly executable = join(this.folder, "bin", "kmesh");
  readonly state = join(this.folder, "disk", "state");
  readonly #cgroup = TestCgroup.create("c");
  readonly #apps = this.#cgroup.child("apps");
  readonly #agents = this.#cgroup.child("agents");
  #ends = "";
  #plane: Talker | undefined;
  #taker: Talker | undefined;
  #peersTaker: Talker | undefined;
  readonly tunnels: Tunnels;
  readonly #makers: Talker[] = [];
  #resolver: Talker | undefined;
  /** The agent that was started here last. */
  #agent: OwnedProcess | undefined;
  /** The running agent: the first one, or a successor after a hand-over, which is no child of this process. */
  #pid = 0;
  readonly #builds: Builds;
  /** The build that `executable` is. */
  installed: Build = "own";
  /** What the configuration says. */
  mode: Mode;
  /** Connections to the machine. */
  readonly admission = new AdmissionLoad(this.folder);

  /** `planned` gets the peers' identities, and makes the plan and its validity. */
  constructor(
    planned: (identities: Tunnels["identities"]) => { plan: Plan; validity: Validity },
    builds: Builds,
    mode: Mode,
  ) {
    this.#builds = builds;
    this.tunnels = new Tunnels({
      folder: this.folder,
      copy: (build) => this.#copy(build),
      bpffs: this.bpffs,
      state: this.state,
      runDir: this.#runDir,
      peersBpffs: join(BPFFS, ownName("p")),
      cgroup: this.#cgroup.child("tunnels"),
      unit: join(this.folder, "unit"),
      log: (name) => this.#log(name),
    });
    const { plan, validity } = planned(this.tunnels.identities);
    this.plan = plan;
    this.mode = mode;
    this.validity = validity;
  }

  /** Makes the disk, starts the servers, the control plane and the first agent; resolves when that is in sync. */
  async build(): Promise<void> {
    const disk = join(this.folder, "disk");
    for (const folder of [disk, join(this.folder, "bin")]) mkdirSync(folder);
    await output(["mount", "-t", "tmpfs", "-o", `size=${DISK},mode=0700`, "kmesh-continuity", disk]);
    await output(["ip", "link", "set", "lo", "up"]);
    await this.admission.link();
    this.#configure(this.mode);
    const { endpoints } = this.plan;
    for (const { address } of endpoints) {
      if (address.includes(":")) await output(["ip", "addr", "add", `${address}/128`, "dev", "lo", "nodad"]);
    }
    for (const [build, file] of Object.entries(this.#builds)) copyFileSync(file, this.#copy(build));
    this.install("own");
    this.#ends = await compileC("ends", this.folder, import.meta.dirname);
    await compileC("unit", this.folder, import.meta.dirname);
    const behindTunnels = endpoints.filter(({ service }) => this.plan.tunnelled(service));
    await this.tunnels.buildMachine(behindTunnels.map(({ address }) => address));
    const serve = async (where: "here" | "peers", ledger: string, netns?: string) => {
      const command = [this.#ends, "serve", ledger, ...this.plan.listeners(where)];
      const place = netns === undefined ? {} : { netns };
      const taker = new Talker(`the servers ${where}`, command, this.#log(`servers-${where}`), place);
      await taker.hear();
      return taker;
    };
    const [here = "", peers = ""] = this.takenFiles;
    this.#taker = await serve("here", here);
    this.#peersTaker = await serve("peers", peers, this.tunnels.netns);
    await this.startIstiod();
    await this.startAgent();
    await this.inSync();
    await this.tunnels.start("own");
  }

  get takenFiles(): string[] {
    return ["taken", "taken-peers"].map((name) => join(this.folder, name));
  }

  get madeFiles(): string[] {
    return this.#makers.map((_, i) => this.#madeFile(i));
  }

  // Load

  /** Starts the clients; resolves when the long connections are open. Short ones begin with `go`. */
  async startLoad(
    { makers, window, rate, hold, tunnel }: LoadOptions,
    lookups: readonly string[],
  ): Promise<void> {
    const start = (i: number, numbers: number[], by: "plaintext" | "tunnel") =>
      this.#makers.push(
        new Talker(
          `client ${i}`,
          [
            this.#ends,
            "connect",
            this.#madeFile(i),
            ...[i + 1, ...numbers].map(String),
            ...this.plan.targets(by),
          ],
          this.#log(`client-${i}`),
          { cgroup: this.#apps },
        ),
      );
    for (let i = 0; i < makers; i++)
      start(i, [window, Math.ceil(rate / makers), Math.ceil(hold / makers), BEAT], "plaintext");
    const { rate: tunnelRate, hold: tunnelHold } = tunnel;
    start(makers, [tunnelRate > 0 ? TUNNEL_WINDOW : 0, tunnelRate, tunnelHold, BEAT], "tunnel");
    for (const maker of this.#makers) await maker.hear();
    await this.#startResolver(lookups);
    await this.admission.start(this.#apps);
    await eventually("connections that the machine accepts are counted", () =>
      PORTS.slice(0, -1).every((port) => countsAccepted(this.bpffs, port)),
    );
    await this.pause();
  }

  /** A resolver that asks for mesh names until the load ends; no server listens: each answer is the kernel's. */
  async #startResolver(lookups: readonly string[]): Promise<void> {
    await eventually("names are live", async () => ((await this.status())?.names?.entries ?? 0) > 0);
    const script = join(import.meta.dirname, "../../test/names/resolver.py");
    const command = ["/usr/bin/python3", script, "86400", "127.0.0.1", "::1", "--", ...lookups];
    this.#resolver = new Talker("the resolver", command, this.#log("resolver"), { cgroup: this.#apps });
    await this.#resolver.hear();
  }

  async go(): Promise<void> {
    await this.admission.say("go");
    await Promise.all(this.#makers.map((maker) => maker.ask("go")));
  }

  /** No short connection is under way any more, and both ledgers are written, when this resolves. */
  async pause(): Promise<void> {
    await this.admission.say("pause");
    await Promise.all(this.#makers.map((maker) => maker.ask("pause", 60_000)));
    await this.#flushTakers();
  }

  /** Has so many of the oldest long connections closed, and others opened. */
  async churn(count: number): Promise<void> {
    await Promise.all(
      this.#makers.map((maker) => maker.ask(`churn ${Math.ceil(count / this.#makers.length)}`)),
    );
  }

  /** Ends all connections and the resolver; gives what that got. */
  async endLoad(): Promise<Lookups> {
    await this.admission.say("end");
    await Promise.all(this.#makers.map((maker) => maker.ask("end", 60_000)));
    await this.#flushTakers();
    const tally = await this.#resolver?.ask("end");
    return tally === undefined ? { asked: 0, right: 0, wrong: {} } : JSON.parse(tally);
  }

  async #flushTakers(): Promise<void> {
    await Promise.all([this.#taker, this.#peersTaker].map((taker) => taker?.ask("flush")));
  }

  // istiod

  async startIstiod(): Promise<void> {
    const script = join(import.meta.dirname, "control-plane.ts");
    this.#plane = new Talker("istiod", [process.execPath, script, String(ISTIOD)], this.#log("istiod"));
    await this.push();
  }

  async stopIstiod(): Promise<void> {
    await this.#plane?.end();
    this.#plane = undefined;
  }

  /** Makes istiod push the plan. While istiod is down, the push follows its restart. */
  async push(): Promise<void> {
    if (!this.#plane) return;
    const at = monotonic();
    this.plan.services.forEach((_, service) => {
      this.validity.pushed(service, this.plan.set(service), at);
    });
    this.plan.admission.pushed(at);
    await this.#plane.ask(JSON.stringify(this.plan.mesh()));
  }

  /**
   * Pushes what neither the plan nor the judge knows of: the first service has an endpoint of the second, impostors are said
   * to be right, and policies admit whom they should refuse and refuse whom they should admit.
   * Resolves when it is in the tables.
   */
  async misroute(): Promise<void> {
    const mesh = this.plan.meshWithImpostors();
    const [first, second] = mesh.services;
    const foreign = second?.endpoints.slice(0, 1) ?? [];
    if (!first) return;
    const services = [{ ...first, endpoints: [...first.endpoints, ...foreign] }, ...mesh.services.slice(1)];
    await this.#plane?.ask(JSON.stringify({ ...mesh, services, inbound: this.plan.admission.contrary() }));
    await eventually("the misroute is in the tables", async () => {
      const inspection = (await this.#ask("/dump/tables")) as Inspection | undefined;
      const differs = inspection && this.#difference(inspection) !== undefined;
      return differs && admissionDifference(this.bpffs, this.plan.admission) !== undefined;
    });
  }

  // The agent

  get folders(): string[] {
    return [
      `--bpffs=${this.bpffs}`,
      `--state-dir=${this.state}`,
      `--run-dir=${this.#runDir}`,
      `--config=${this.#config}`,
    ];
  }

  get #config(): string {
    return join(this.folder, "kmesh.yaml");
  }

  /** Writes the configuration; an agent reads it when it starts. */
  #configure(mode: Mode): void {
    this.mode = mode;
    const ports = PORTS.slice(0, -1).map((port) => `{name: p${port}, containerPort: ${port}}`);
    writeFileSync(this.#config, `mode: ${mode}\nports: [${ports.join(", ")}]\n`);
  }

  /** Another mode, and `kmesh restart --graceful`. Gives its proof. */
  changeMode(mode: Mode): Promise<Proof> {
    this.#configure(mode);
    return this.restartGracefully();
  }

  /** Puts a build into place by rename, as a package would. What runs is not touched. */
  install(build: Build): void {
    linkSync(this.#copy(build), `${this.executable}.put`);
    renameSync(`${this.executable}.put`, this.executable);
    this.installed = build;
  }

  async startAgent(): Promise<void> {
    const agent = new OwnedProcess({
      name: "kmesh",
      log: this.#log("agent"),
      command: [
        this.executable,
        "run",
        `--istiod=127.0.0.1:${ISTIOD}`,
        "--plaintext",
        "--tunnel=on",
        `--ip=${MACHINE[0]}`,
        "--namespace=demo",
        `--cgroup=${this.#apps}`,
        ...this.folders,
      ],
      cgroup: this.#agents,
    });
    this.#agent = agent;
    this.#pid = agent.pid;
  }

  /** Resident memory of the agent and of the tunnels that accept, KiB. */
  memory(): Record<string, number> {
    return { "the agent": residentMemory(this.#pid), ...this.tunnels.memory() };
  }

  signalAgent(signal: NodeJS.Signals): void {
    process.kill(this.#pid, signal);
  }

  /** SIGKILL; resolves once it is gone. */
  async killAgent(): Promise<void> {
    if (isAlive(this.#pid)) process.kill(this.#pid, "SIGKILL");
    await eventually("the agent is gone", () => !isAlive(this.#pid), 5_000, 2);
  }

  /** `kmesh restart --graceful`. Gives its proof. */
  restartGracefully(): Promise<Proof> {
    return this.#handOver("restart", "--graceful");
  }

  /** `kmesh upgrade FILE`, also for the way down. Gives its proof. */
  async upgrade(build: Build): Promise<Proof> {
    const proof = await this.#handOver("upgrade", this.#copy(build));
    this.installed = build;
    return proof;
  }

  /** `kmesh rollback`, to the build before the last upgrade. Gives its proof. */
  async rollback(to: Build): Promise<Proof> {
    const proof = await this.#handOver("rollback");
    this.installed = to;
    return proof;
  }

  /**
   * Has the agent hand over to what is no agent. `kmesh upgrade` would see that before: the agent itself is asked. Resolves
   * when it says that nothing came of it.
   */
  async failUpgrade(how: "ends" | "hangs"): Promise<void> {
    const file = join(this.folder, "bin", how);
    writeFileSync(file, `#!/bin/sh\n${how === "ends" ? "exit 1" : "exec sleep 60"}\n`, { mode: 0o755 });
    if ((await this.kmesh("upgrade", file)).code === 0)
      throw new Error("kmesh upgrade took what is no kmesh");
    const order: RestartRequest = {
      kind: "upgrade",
      graceful: true,
      executable: file,
      timeout: 1_500,
      asked: Date.now(),
    };
    let failed = false;
    const hear = (line: unknown) => {
      failed ||= typeof line === "object" && line !== null && "failure" in line;
    };
    await orderAgent(this.#socket, "/restart", order, hear, 10_000);
    if (!failed) throw new Error("an upgrade to what is no kmesh did not fail");
  }

  /**
   * Runs `kmesh upgrade` with programs that must not replace the agent. Rejects unless each is reported and leaves
   * nothing behind.
   */
  async failProbe(): Promise<void> {
    const before = this.#pins();
    const { code, stderr } = await this.kmesh("upgrade", this.#copy("bad"));
    if (code !== 6 || !stderr.includes("failed their probe"))
      throw new Error(`kmesh upgrade to a bad build: exit code ${code}: ${stderr}`);
    const left = this.#pins().filter((path) => !before.includes(path));
    const cgroups = readdirSync(this.#agents).filter((name) => name.startsWith("kmesh-probe"));
    if (left.length + cgroups.length > 0)
      throw new Error(`left of a probe: ${[...left, ...cgroups].join(", ")}`);
  }

  #pins(): string[] {
    return readdirSync(this.bpffs, { recursive: true, encoding: "utf8" });
  }

  /** The agent's status; undefined when no agent answers. */
  async status(): Promise<AgentStatus | undefined> {
    return (await this.#ask("/agent")) as AgentStatus | undefined;
  }

  /**
   * Resolves when the agent follows istiod and its tables hold what the plan says, which ends the validity of what they
   * held before. Gives the agent's status. Rejects after a while, saying what is missing.
   */
  async inSync(): Promise<AgentStatus> {
    return eventually(
      "the agent is in sync",
      async () => {
        if (!isAlive(this.#pid)) throw new Error(`the agent ended: ${this.#agent?.status}`);
        const status = await this.status();
        if (!status) throw new Error("the agent does not answer");
        const { stream, tables, pid } = status;
        if (pid !== this.#pid) throw new Error(`pid ${pid} answers`);
        if (!stream.connected || !stream.synced) throw new Error("it is not connected to istiod");
        if (tables.applies === 0) throw new Error("it has applied nothing");
        const inspection = (await this.#ask("/dump/tables")) as Inspection | undefined;
        const differs = inspection ? this.#difference(inspection) : "no tables";
        if (differs !== undefined) throw new Error(differs);
        const policies = admissionDifference(this.bpffs, this.plan.admission);
        if (policies !== undefined) throw new Error(policies);
        this.validity.applied(monotonic());
        this.plan.admission.applied(monotonic());
        return status;
      },
      PATIENCE,
      10,
    ).catch((error: Error) => {
      throw new Error(`${error.message} (${error.cause})\n${this.#agent?.tail(20)}`);
    });
  }

  /** Runs `kmesh ARGS` with the stage's folders, from the file that agents are started from. */
  kmesh(...args: string[]): Promise<RunResult> {
    return run([this.executable, ...args, ...this.folders], { timeoutMs: 60_000 });
  }

  agentLog(lines: number): string {
    return this.#agent?.tail(lines) ?? "";
  }

  /** Leaves no byte free on the agent's disk, until `freeDisk`. */
  fillDisk(): void {
    const { bavail, bsize } = statfsSync(join(this.folder, "disk"));
    try {
      writeFileSync(this.#filler, new Uint8Array(bavail * bsize + bsize));
    } catch (error) {
      if (!(codeOf(error) === "ENOSPC")) throw error;
    }
  }

  freeDisk(): void {
    rmSync(this.#filler, { force: true });
  }

  /** Rejects when the manifest says anything but that these tables govern and nothing is under way. */
  async checkManifest(): Promise<void> {
    const machine = machineId();
    if (machine === undefined) return;
    const { kernel } = (await this.#ask("/status")) as { kernel: Summary };
    const manifest = readManifest(this.state, machine);
    if (manifest?.live?.abi !== kernel.abi || manifest.step)
      throw new Error(
        `the tables of layout ${kernel.abi} govern, the manifest says ${JSON.stringify(manifest)}`,
      );
  }

  /** Puts other bytes into every file of the state folder. */
  corruptState(): void {
    if (!hasManifest(this.state)) throw new Error(`there is no manifest in ${this.state} to be corrupted`);
    for (const entry of readdirSync(this.state, { recursive: true, withFileTypes: true })) {
      if (entry.isFile()) writeFileSync(join(entry.parentPath, entry.name), "\0 not what was here");
    }
  }

  loseState(): void {
    rmSync(this.state, { recursive: true, force: true });
  }

  /** Copies the logs of all processes, and the status of each tunnel, into a folder. */
  keepLogs(folder: string): void {
    mkdirSync(folder, { recursive: true });
    for (const path of readdirSync(this.folder, { recursive: true, encoding: "utf8" }))
      if (/^[^/]+\.log$|\/tunnel\/\d+\.json$/.test(path))
        copyFileSync(join(this.folder, path), join(folder, path.replaceAll("/", "-")));
  }

  /** Stops and removes everything. Gives what could not be removed. */
  async remove(): Promise<string[]> {
    if (this.#pid !== 0) await this.killAgent();
    const talkers = [...this.#makers, this.#resolver, this.#plane, this.#taker, this.#peersTaker];
    for (const talker of talkers) await talker?.end();
    await this.admission.end();
    await this.tunnels.remove();
    if (existsSync(this.bpffs)) await this.kmesh("down", "--yes");
    await this.#cgroup.remove();
    // What a program of ours has open for another moment must not keep the disk.
    await run(["umount", "--lazy", join(this.folder, "disk")]);
    await sleep(20);
    rmSync(this.folder, { recursive: true, force: true });
    return [this.bpffs, this.#cgroup.path, this.folder].filter((path) => existsSync(path));
  }

  get #filler(): string {
    return join(this.folder, "disk", "filler");
  }

  get #runDir(): string {
    return join(this.folder, "run");
  }

  get #socket(): string {
    return adminSocket(this.#runDir);
  }

  async #handOver(...command: string[]): Promise<Proof> {
    const { code, stdout, stderr } = await this.kmesh(...command, "--output=json");
    if (code !== 0) {
      // It may have come to a hand-over all the same, where the command was too slow to see it.
      this.#pid = (await this.status())?.pid ?? this.#pid;
      throw new Error(`kmesh ${command.join(" ")}: exit code ${code}: ${stderr}`);
    }
    const proof: Proof = JSON.parse(stdout);
    this.#pid = proof.pid;
    return proof;
  }

  #ask(path: string): Promise<unknown> {
    return askAgent(this.#socket, path, 2_000);
  }

  /** The first service whose endpoints in the tables differ from the plan. */
  #difference(tables: Inspection): string | undefined {
    const clusters = new Map(tables.clusters.map((cluster) => [cluster.name, cluster]));
    const endpointsOf = (name: string, kind: string): string[] => {
      const cluster = clusters.get(name);
      if (kind === "split")
        return cluster?.shares.flatMap((share) => endpointsOf(share.cluster, "cluster")) ?? [];
      return cluster?.endpoints.map(({ address, port }) => `${address} ${port}`) ?? [];
    };
    const endpoints = new Set(this.plan.endpoints.map(({ address, port }) => `${address}:${port}`));
    for (const [service, name] of this.plan.services.entries()) {
      const wanted = this.plan.set(service).map((index) => {
        const endpoint = this.plan.endpoints[index];
        return `${endpoint?.address} ${endpoint?.port}`;
      });
      // In dual-engine mode a workload that takes HBONE has a frontend at its own address, too.
      const frontends = tables.frontends.filter(
        ({ service, match }) => service === name && !endpoints.has(match),
      );
      if (frontends.length === 0) return `no frontend of ${name}`;
      for (const { match, action, target } of frontends) {
        const found = new Set(action === "refuse" ? [] : endpointsOf(target, action));
        if (String([...found].sort()) !== String(wanted.sort())) {
          return `${match} leads to ${[...found].join(", ")} instead of ${wanted.join(", ")}`;
        }
        const [first] = action === "split" ? (clusters.get(target)?.shares ?? []) : [];
        if (
          action === "split" &&
          Math.round((first?.share ?? 0) * 100) !== this.plan.weightOf(first?.cluster ?? "")
        ) {
          return `${match} gives ${first?.cluster} ${first?.share}`;
        }
      }
    }
    return this.#leftover([...clusters.keys()]);
  }

  /**
   * A cluster that nothing leads to any more. It goes after a grace period: a start before that has to remove it, though
   * nothing has changed meanwhile.
   */
  #leftover(clusters: readonly string[]): string | undefined {
    const present = new Set(this.plan.services.flatMap((_, service) => this.plan.set(service)));
    // In dual-engine mode a workload that takes HBONE has a cluster of its own: outbound|PORT|ADDRESS|HOST.
    const gone = this.plan.endpoints
      .filter(({ index }) => this.mode !== "dual-engine" || !present.has(index))
      .map(({ address, port }) => `outbound|${port}|${address}|`);
    const left = clusters.find((name) => gone.some((prefix) => name.startsWith(prefix)));
    return left === undefined ? undefined : `the cluster ${left} is still there`;
  }

  /** What the agent's tables lead to, as lines that two looks can be compared by. */
  async contents(): Promise<Set<string>> {
    const tables = (await this.#ask("/dump/tables")) as Inspection | undefined;
    if (!tables) return new Set();
    const { frontends, clusters } = tables;
    return new Set([
      ...frontends.map(
        ({ match, service, action, target }) => `frontend ${match}: ${service} ${action} ${target}`,
      ),
      ...clusters.map(({ name, endpoints, shares }) => {
        const members = endpoints.map(({ address, port, share }) => `${address} ${port} ${share}`);
        return `cluster ${name}: ${[...members, ...shares.map(({ cluster, share }) => `${cluster} ${share}`)].join(", ")}`;
      }),
    ]);
  }

  #copy(build: string): string {
    return join(this.folder, "bin", `kmesh-${build}`);
  }

  #madeFile(i: number): string {
    return join(this.folder, `made-${i}`);
  }

  #log(name: string): string {
    return join(this.folder, `${name}.log`);
  }
}

/** Whether the process runs: it exists and is no zombie. */
function isAlive(pid: number): boolean {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, "utf8");
    const ended = /^[ZX]/.test(text.slice(text.lastIndexOf(")") + 2));
    // Its locks are free when its last thread has ended.
    return !ended || readdirSync(`/proc/${pid}/task`).length > 1;
  } catch {
    return false;
  }
}
