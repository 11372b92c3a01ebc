/** What every benchmark needs around kmesh: a place of its own, an agent on it, programs compiled on the spot. */
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { homedir, tmpdir } from "node:os";
import { basename, join, resolve } from "node:path";
import { type AgentStatus, adminSocket } from "../../src/admin/status.ts";
import type { DemoService } from "../../src/demo/services.ts";
import { ownName, TestCgroup } from "../../test/lab/namespace.ts";
import { eventually, OwnedProcess, output, type RunResult, run } from "../../test/lab/process.ts";

const BPFFS = "/sys/fs/bpf";
export const KMESH = resolve(import.meta.dirname, "../../dist/kmesh");

/** Ends the benchmark with a line that says what is missing and what to do. */
export function requireTools(...tools: [name: string, debianPackage: string][]): void {
  if (process.getuid?.() !== 0) giveUp("benchmarks need root");
  if (!existsSync(KMESH)) giveUp(`${KMESH} is missing. Next: ./build/compile`);
  const others = existsSync(BPFFS)
    ? readdirSync(BPFFS).filter((name) => existsSync(join(BPFFS, name, "links")))
    : [];
  if (others.length > 0) {
    console.error(
      `bench: another kmesh is attached (${others.join(", ")} in ${BPFFS}): it counts as a part of the machine`,
    );
  }
  const path = `${process.env.PATH}:/usr/sbin:/sbin`.split(":");
  for (const [name, debianPackage] of tools) {
    if (!path.some((folder) => existsSync(join(folder, name)))) {
      giveUp(`${name} is missing. Next: apt-get install --no-install-recommends ${debianPackage}`);
    }
  }
}

function giveUp(reason: string): never {
  console.error(`bench: ${reason}`);
  process.exit(3);
}

/** Runs a benchmark; `cleanup` runs once, however it ends: also on Ctrl-C and SIGTERM. */
export async function runAndClean(work: () => Promise<void>, cleanup: () => Promise<void>): Promise<void> {
  let cleaned: Promise<void> | undefined;
  const clean = () => {
    cleaned ??= cleanup();
    return cleaned;
  };
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    process.on(signal, () => {
      clean().finally(() => process.exit(1));
    });
  }
  try {
    await work();
  } finally {
    await clean();
  }
}

/** Folder for what is downloaded once, outside the checkout. */
export function cacheFolder(name: string): string {
  return join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "kmesh", name);
}

/** What a service of the embedded control plane looks like; the agent's mesh consists of these. */
export interface SimpleService {
  host: string;
  addresses: string[];
  port: number;
  endpoints: { address: string; port: number }[];
}

export interface MeshSpec {
  services: readonly (SimpleService | DemoService)[];
  /** Further services that nobody calls: a count, and endpoints each. */
  many?: { count: number; endpoints: number };
}

/** One kmesh with folders, a cgroup and an embedded control plane of its own, in a network namespace. */
export class BenchMesh {
  readonly apps: string;
  readonly folder = mkdtempSync(join(tmpdir(), "kmesh-bench-"));
  readonly #netns: string;
  readonly #bpffs = `${BPFFS}/${ownName("x")}`;
  readonly #cgroup = TestCgroup.create("bench");
  readonly #unit = TestCgroup.create("bench", ".service");
  #plane: OwnedProcess | undefined;
  #agent: OwnedProcess | undefined;
  #starts = 0;

  /** `netns` is the path of the namespace whose connections are governed. */
  constructor(netns: string) {
    this.#netns = netns;
    this.apps = this.#cgroup.child("apps");
  }

  get stateFolder(): string {
    return join(this.folder, "state");
  }

  get folders(): string[] {
    return [`--bpffs=${this.#bpffs}`, `--state-dir=${this.stateFolder}`, `--run-dir=${this.folder}/run`];
  }

  /** The cgroup of a systemd unit that is enrolled by its name. */
  get unit(): string {
    return this.#unit.path;
  }

  get agent(): OwnedProcess {
    if (this.#agent === undefined) throw new Error("no agent runs");
    return this.#agent;
  }

  /** Starts (or replaces) the embedded control plane. */
  async serve(mesh: MeshSpec): Promise<void> {
    await this.#plane?.stop("SIGKILL");
    const file = join(this.folder, "mesh.json");
    const log = join(this.folder, `plane-${++this.#starts}.log`);
    writeFileSync(file, JSON.stringify(mesh));
    const plane = new OwnedProcess({
      name: "embedded control plane",
      log,
      command: [process.execPath, join(import.meta.dirname, "serve-mesh.ts"), file, "15010"],
      netns: this.#netns,
    });
    this.#plane = plane;
    await eventually("the control plane listens", () => {
      if (plane.status !== undefined) throw new Error(plane.tail());
      return plane.output().includes("ready");
    });
  }

  /** Starts the agent; resolves when its tables are live. */
  async up(istiod = "127.0.0.1:15010", ...more: string[]): Promise<void> {
    await this.upIn({}, istiod, ...more);
  }

  /** The same with the agent in a cgroup. */
  async upIn(place: { cgroup?: string }, istiod: string, ...more: string[]): Promise<void> {
    const agent = this.launch(place, istiod, ...more);
    await eventually(
      "kmesh's tables are live",
      async () => {
        if (agent.status !== undefined) throw new Error(`kmesh ended: ${agent.status}`);
        return ((await this.agentStatus())?.tables.applies ?? 0) > 0;
      },
      60_000,
      20,
    ).catch((error: Error) => {
      throw new Error(`${error.message}\n${agent.tail()}`);
    });
  }

  /** Starts the agent, and waits for nothing. */
  launch(place: { cgroup?: string } = {}, istiod = "127.0.0.1:15010", ...more: string[]): OwnedProcess {
    const log = join(this.folder, `agent-${++this.#starts}.log`);
    const agent = new OwnedProcess({
      name: "kmesh",
      log,
      command: [
        KMESH,
        "run",
        `--istiod=${istiod}`,
        "--plaintext",
        "--namespace=bench",
        "--ip=10.60.0.1",
        `--cgroup=${this.apps}`,
        `--unit=${basename(this.unit)}`,
        ...this.folders,
        ...more,
      ],
      netns: this.#netns,
      ...place,
    });
    this.#agent = agent;
    return agent;
  }

  /** The agent's own status, by its admin socket; undefined when nobody answers. */
  async agentStatus(): Promise<
    Pick<AgentStatus, "startedAt" | "adopted" | "stream" | "tables" | "snapshot"> | undefined
  > {
    try {
      const response = await fetch("http://localhost/agent", {
        unix: adminSocket(join(this.folder, "run")),
        proxy: "",
      });
      return (await response.json()) as AgentStatus;
    } catch {
      return undefined;
    }
  }

  /** Moves the first service's endpoints on; gives when the push was sent, ms since the epoch. */
  async change(): Promise<number> {
    const plane = this.#plane;
    if (plane === undefined) throw new Error("no control plane runs");
    const before = plane.output().length;
    plane.signal("SIGUSR2");
    return eventually(
      "the control plane's change",
      () => {
        const at = /^sent ([\d.]+)$/m.exec(plane.output().slice(before))?.[1];
        return at === undefined ? undefined : Number(at);
      },
      10_000,
      5,
    );
  }

  async stopServing(): Promise<void> {
    await this.#plane?.stop("SIGKILL");
  }

  /** Runs `kmesh ARGS` with this mesh's folders. */
  kmesh(command: string, ...args: string[]): Promise<RunResult> {
    return run([KMESH, command, ...args, ...this.folders], { netns: this.#netns });
  }

  /** As a reboot does: the agent and all that is pinned are gone, the state folder stays. */
  async reboot(): Promise<void> {
    await this.#agent?.stop("SIGKILL");
    this.#agent = undefined;
    for (const folder of [this.#bpffs, join(this.folder, "run")])
      rmSync(folder, { recursive: true, force: true });
  }

  /** Ends the agent and detaches everything: the machine is as if there were no kmesh. */
  async down(): Promise<void> {
    await this.#agent?.stop("SIGKILL");
    this.#agent = undefined;
    if (!existsSync(this.#bpffs)) return;
    const result = await this.kmesh("down", "--yes");
    if (result.code !== 0) throw new Error(`kmesh down: ${result.stderr}${result.stdout}`);
  }

  async remove(): Promise<void> {
    try {
      await this.down();
    } finally {
      await this.#plane?.stop("SIGKILL");
      await this.#cgroup.remove();
      await this.#unit.remove();
      rmSync(this.folder, { recursive: true, force: true });
    }
  }
}

/** Compiles a C program that lies in `home`; gives its path in a folder that the caller removes. */
export async function compileC(name: string, folder: string, home = import.meta.dirname): Promise<string> {
  const program = join(folder, name);
  const compiler = ["cc", "gcc", "clang"].find((tool) => Bun.which(tool) !== null);
  if (compiler === undefined)
    return giveUp("a C compiler is missing. Next: apt-get install --no-install-recommends clang");
  await output([compiler, "-O2", "-Wall", "-o", program, join(home, `${name}.c`)]);
  return program;
}
