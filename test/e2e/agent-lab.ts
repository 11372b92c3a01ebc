/**
 * dist/kmesh with the embedded control plane: a network namespace, a cgroup, pins and folders of the test's own.
 * Service addresses are routed nowhere, so what reaches a server was redirected by the kernel.
 */
import {
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { stringify } from "yaml";
import { askAgent } from "../../src/admin/client.ts";
import { type AgentStatus, adminSocket } from "../../src/admin/status.ts";
import type { Summary } from "../../src/datapath/inspect/state.ts";
import type { DemoMesh } from "../../src/demo/services.ts";
import { type ClientSpec, KMESH, RunningClient, type Tally } from "../interop/mesh-lab.ts";
import { listLinks, listPrograms } from "../lab/bpftool.ts";
import { NetworkNamespace, ownName, TestCgroup } from "../lab/namespace.ts";
import { eventually, OwnedProcess, placed, type RunResult, run } from "../lab/process.ts";

export { KMESH, type RunningClient };

const PORT = 15010;

/** Why these tests can't run on this machine; undefined when they can. */
export function missing(): string | undefined {
  if (process.getuid?.() !== 0) return "needs root";
  if (!existsSync(KMESH)) return `${KMESH} is missing: run ./build/compile`;
  for (const tool of ["/usr/bin/python3", "/usr/sbin/ip"]) if (!existsSync(tool)) return `needs ${tool}`;
  return undefined;
}

/** Upstreams `a`, `b`, `c` at 127.1.0.1 to 127.1.0.3, port 8080. */
export const UPSTREAMS = { a: "127.1.0.1", b: "127.1.0.2", c: "127.1.0.3" } as const;
export const SERVICE = "10.96.0.10";

/** One service over the upstreams, `weights` to the subsets v1 (a, b) and v2 (c). */
export function shop(weights: { v1: number; v2: number }): DemoMesh {
  const at = (address: string, subset: string) => ({ address, port: 8080, subset });
  const endpoints = [at(UPSTREAMS.a, "v1"), at(UPSTREAMS.b, "v1"), at(UPSTREAMS.c, "v2")];
  return {
    services: [
      {
        host: "shop.demo.svc.cluster.local",
        addresses: [SERVICE],
        port: 80,
        protocol: "tcp",
        balance: "round-robin",
        endpoints,
        split: weights,
      },
    ],
  };
}

export type StatusJson = Partial<AgentStatus> & { alive: boolean; kernel: Summary | null };

export class AgentLab {
  readonly namespace: NetworkNamespace;
  readonly bpffs: string;
  readonly folder: string;
  /** What starts kmesh from now on: a single file, or a runtime and main.ts. */
  program: readonly string[];
  /** Variables of the agents that are started from now on. */
  environment: Record<string, string> = {};
  readonly #cgroup: TestCgroup;
  readonly apps: string;
  readonly #processes: OwnedProcess[] = [];
  readonly #clients: RunningClient[] = [];
  #controlPlane: OwnedProcess | undefined;
  #starts = 0;

  private constructor(namespace: NetworkNamespace, cgroup: TestCgroup, program: readonly string[]) {
    this.program = program;
    this.namespace = namespace;
    this.#cgroup = cgroup;
    this.apps = cgroup.child("apps");
    this.bpffs = `/sys/fs/bpf/${ownName("e")}`;
    this.folder = mkdtempSync(join(tmpdir(), "kmesh-e2e-"));
  }

  /** Starts the upstreams and the control plane, which serves `mesh`; no agent yet. */
  static async create(mesh: DemoMesh, program: readonly string[] = [KMESH]): Promise<AgentLab> {
    const lab = new AgentLab(await NetworkNamespace.create("e2e"), TestCgroup.create("e2e"), program);
    try {
      lab.configure(mesh);
      const servers = Object.entries(UPSTREAMS).map(([name, address]) => `${name}=${address}:8080`);
      await lab.#helper("upstreams", join(import.meta.dirname, "../interop/upstream.ts"), ...servers);
      await lab.startControlPlane();
      return lab;
    } catch (error) {
      await lab.remove();
      throw error;
    }
  }

  async startControlPlane(): Promise<void> {
    this.#controlPlane = await this.#helper(
      "control-plane",
      join(import.meta.dirname, "control-plane.ts"),
      this.meshFile,
      String(PORT),
    );
  }

  async stopControlPlane(): Promise<void> {
    await this.#controlPlane?.stop("SIGKILL");
  }

  /** It takes connections and says nothing, until it is thawed. */
  freezeControlPlane(frozen: boolean): void {
    this.#controlPlane?.signal(frozen ? "SIGSTOP" : "SIGCONT");
  }

  get meshFile(): string {
    return join(this.folder, "mesh.yaml");
  }

  /** Replaces what the control plane serves. */
  configure(mesh: DemoMesh): void {
    writeFileSync(`${this.meshFile}.new`, stringify(mesh, { aliasDuplicateObjects: false }));
    renameSync(`${this.meshFile}.new`, this.meshFile);
  }

  get folders(): string[] {
    return [
      `--bpffs=${this.bpffs}`,
      `--state-dir=${this.folder}/state`,
      `--run-dir=${this.folder}/run`,
      "--config=/dev/null",
    ];
  }

  /** Starts `kmesh run`; a flag in `more` takes the place of the lab's own. */
  startAgent(...more: string[]): OwnedProcess {
    this.#starts += 1;
    const flags = [
      `--istiod=127.0.0.1:${PORT}`,
      "--plaintext",
      "--ip=172.31.0.1",
      `--cgroup=${this.#cgroup.path}`,
      ...this.folders,
    ];
    const given = new Set(more.map((flag) => flag.split("=")[0]));
    const agent = new OwnedProcess({
      name: "kmesh",
      log: join(this.folder, `agent-${this.#starts}.log`),
      command: [...this.program, "run", ...flags.filter((flag) => !given.has(flag.split("=")[0])), ...more],
      netns: this.namespace.path,
      env: this.environment,
    });
    this.#processes.push(agent);
    return agent;
  }

  /** The lines with `text` that agents have logged until now. */
  said(text: string): string[] {
    const logs = readdirSync(this.folder).filter((name) => /^agent-\d+\.log$/.test(name));
    return logs.flatMap((name) => {
      const lines = readFileSync(join(this.folder, name), "utf8").split("\n");
      return lines.filter((line) => line.includes(text)).map((line) => `${name}: ${line}`);
    });
  }

  /** Starts an agent and waits until its first push is live. */
  async liveAgent(...more: string[]): Promise<OwnedProcess> {
    const agent = this.startAgent(...more);
    await this.statusOnce(
      "the first push is live",
      agent,
      (status) => status.pid === agent.pid && (status.tables?.applies ?? 0) > 0,
    );
    return agent;
  }

  /** What the agent itself says of `path`, undefined when there is none: a command takes far longer to start. */
  told(path: string): Promise<unknown> {
    return askAgent(adminSocket(join(this.folder, "run")), path);
  }

  /** The status, from the agent itself; without one, it is not alive. */
  async toldStatus(): Promise<StatusJson> {
    const told = (await this.told("/status")) as { agent: AgentStatus; kernel: Summary } | undefined;
    return told ? { alive: true, ...told.agent, kernel: told.kernel } : { alive: false, kernel: null };
  }

  /** The agent's status as soon as it fits. */
  statusOnce(what: string, agent: OwnedProcess, fits: (status: StatusJson) => boolean): Promise<StatusJson> {
    return eventually(what, async () => {
      if (agent.status !== undefined) throw new Error(`kmesh ended: ${agent.status}`);
      const status = await this.toldStatus();
      return status.alive && fits(status) && status;
    }).catch((error: Error) => {
      throw new Error(`${error.message} (${error.cause})\n${agent.tail(30)}`);
    });
  }

  /** Pids of the processes that are, or are to be, an agent of this lab. */
  agents(): number[] {
    return readdirSync("/proc")
      .filter((name) => /^\d+$/.test(name) && this.#isAgent(name))
      .map(Number);
  }

  #isAgent(pid: string): boolean {
    try {
      const words = readFileSync(join("/proc", pid, "cmdline"), "utf8").split("\0");
      return words.includes("run") && words.includes(`--state-dir=${this.folder}/state`);
    } catch {
      // The process has ended.
      return false;
    }
  }

  /** The pid of the agent that answers. Rejects when none does. */
  async agentPid(): Promise<number> {
    const { alive, pid } = await this.status();
    if (!alive || pid === undefined) throw new Error("no agent answers");
    return pid;
  }

  /** Runs `kmesh ARGS` with this lab's folders. */
  kmesh(...args: string[]): Promise<RunResult> {
    return run([...this.program, ...args, ...this.folders], { netns: this.namespace.path });
  }

  async json<T>(...args: string[]): Promise<T> {
    const { stdout, stderr } = await this.kmesh(...args, "--output=json");
    const value = stdout === "" ? { error: stderr } : JSON.parse(stdout);
    if ("error" in value) throw new Error(`kmesh ${args.join(" ")}: ${stderr}`);
    return value;
  }

  status(): Promise<StatusJson> {
    return this.json<StatusJson>("status");
  }

  /** `count` connections of an enrolled app, one after the other; of one that is not with `enrolled` false. */
  async connect(count: number, spec: Partial<ClientSpec> = {}, enrolled = true): Promise<Tally> {
    const client = this.#client("count", { count, ...spec }, enrolled);
    try {
      return JSON.parse(await client.line());
    } finally {
      await client.close();
    }
  }

  /** New connections all the time (storm) or connections that stay (hold), until its `end`. */
  async client(mode: "storm" | "hold", spec: Partial<ClientSpec> = {}): Promise<RunningClient> {
    const client = this.#client(mode, spec, true);
    this.#clients.push(client);
    await client.line();
    return client;
  }

  /** Ends and removes everything, and gives what is still there. */
  async remove(): Promise<string[]> {
    const programs = await programsOf(this.bpffs);
    for (const client of this.#clients) client.kill();
    for (const each of this.#processes.reverse()) await each.stop("SIGKILL");
    if (existsSync(this.bpffs)) await this.kmesh("down", "--yes");
    await this.#cgroup.remove();
    await this.namespace.remove();
    rmSync(this.folder, { recursive: true, force: true });
    const left = [this.bpffs, this.namespace.path, this.#cgroup.path, this.folder].filter((path) =>
      existsSync(path),
    );
    return [...left, ...(await loaded(programs))];
  }

  #client(mode: string, spec: Partial<ClientSpec>, enrolled: boolean): RunningClient {
    const text = JSON.stringify({ mode, address: SERVICE, port: 80, ...spec });
    const script = join(import.meta.dirname, "../interop/client.py");
    const place = { netns: this.namespace.path, ...(enrolled ? { cgroup: this.apps } : {}) };
    return new RunningClient(placed(["/usr/bin/python3", script, text], place));
  }

  async #helper(name: string, script: string, ...args: string[]): Promise<OwnedProcess> {
    const log = join(this.folder, `${name}.log`);
    rmSync(log, { force: true });
    const started = new OwnedProcess({
      name,
      log,
      command: [process.execPath, script, ...args],
      netns: this.namespace.path,
    });
    this.#processes.push(started);
    await eventually(`${name} is ready`, () => {
      if (started.status !== undefined) throw new Error(started.tail());
      return started.output().includes("ready");
    });
    return started;
  }
}

/** Ids of the programs that hang on the links pinned below `bpffs`. */
export async function programsOf(bpffs: string): Promise<number[]> {
  return (await listLinks())
    .filter(({ pinned }) => pinned?.some((path) => path.startsWith(`${bpffs}/`)))
    .map((link) => link.prog_id);
}

/** Those of `programs` that the kernel still has, after the moment that it takes to let go of them. */
export async function loaded(programs: readonly number[]): Promise<string[]> {
  let left = [...programs];
  await eventually(
    "programs are unloaded",
    async () => {
      const all = await listPrograms();
      left = programs.filter((id) => all.includes(id));
      return left.length === 0;
    },
    3_000,
  ).catch(() => undefined);
  return left.map((id) => `program ${id}`);
}
