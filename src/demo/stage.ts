/**
 * The demo's environment: a network namespace (this process is in it already), a cgroup, a folder of pins and a folder of
 * files. All are named after this process's pid and removed at its end.
 */

import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { askAgent } from "../admin/client.ts";
import { type AgentStatus, adminSocket } from "../admin/status.ts";
import { removePinned } from "../datapath/removal.ts";
import { codeOf, reasonOf } from "../errors/reason.ts";
import { replaceFile } from "../files/replace-file.ts";
import type { Mode } from "../istiod/stream/types.ts";
import { BPFFS } from "../kernel/bpffs.ts";
import { cgroup2Root } from "../kernel/cgroup.ts";
import { Child } from "./child.ts";
import type { Ledger } from "./ledger.ts";
import { ISTIOD_PORT, MESH, meshYaml, type Shares } from "./mesh.ts";
import type { PartOptions } from "./parts.ts";

const NAME = "kmesh-demo-";
/** Time limit from a configuration to live tables, milliseconds. */
const PATIENCE = 15_000;

export class Stage {
  readonly folder: string;
  readonly cgroup: string;
  readonly bpffs: string;
  readonly configFile: string;
  readonly meshFile: string;
  /** A resolv.conf that names a missing server: the kernel answers. */
  readonly resolvFile: string;
  readonly #children = new Map<string, Child>();
  #agent: Child | undefined;
  #load: Child | undefined;

  readonly #mode: Mode;

  constructor(name = `${NAME}${process.pid}`, mode: Mode = "kernel-native") {
    this.#mode = mode;
    this.folder = join(filesFolder(), name);
    this.cgroup = join(cgroup2Root(), name);
    this.bpffs = join(BPFFS, name);
    this.configFile = join(this.folder, "kmesh.yaml");
    this.resolvFile = join(this.folder, "resolv.conf");
    this.meshFile = join(this.folder, "mesh.yaml");
  }

  /** Makes the folders, starts the upstreams and the control plane. */
  async build(shares: Shares): Promise<void> {
    mkdirSync(join(this.folder, "state"), { recursive: true, mode: 0o700 });
    mkdirSync(join(this.folder, "run"), { mode: 0o700 });
    for (const part of ["", "load", "play"]) mkdirSync(join(this.cgroup, part));
    this.configure(shares);
    writeFileSync(this.configFile, this.#agentConfig());
    writeFileSync(this.resolvFile, "nameserver 127.0.0.1\n");
    for (const { name, address } of MESH.upstreams) {
      await this.#start(`upstream ${name}`, "upstream", { name, address, port: MESH.upstreamPort });
    }
    await this.#start("control plane", "control-plane", { file: this.meshFile, port: ISTIOD_PORT });
  }

  /** Writes the file that the control plane watches. */
  configure(shares: Shares): void {
    // By rename, so that the control plane never reads a part.
    replaceFile(this.meshFile, meshYaml(shares), { mode: 0o644 });
  }

  /** Starts an agent. Resolves with its status when its first tables are live. */
  async startAgent(): Promise<AgentStatus> {
    const args: PartOptions["agent"] = ["run", "--config", this.configFile];
    this.#agent = Child.start("agent", "agent", args, this.#log("agent"), environment());
    this.#children.set("agent", this.#agent);
    return this.agentOnce(
      (status) => status.pid === this.#agent?.pid && status.tables.firstApplyAt !== undefined,
    );
  }

  get agentPid(): number {
    return this.#agent?.pid ?? 0;
  }

  /** SIGKILL: no handler runs, nothing is cleaned up. */
  async killAgent(): Promise<void> {
    await this.#agent?.end("SIGKILL");
  }

  /** Resolves with the agent's status as soon as it matches. Rejects after 15 s, or when the agent is dead. */
  async agentOnce(fits: (status: AgentStatus) => boolean): Promise<AgentStatus> {
    const deadline = performance.now() + PATIENCE;
    while (performance.now() < deadline && this.#agent?.dead === false) {
      const status = (await askAgent(adminSocket(join(this.folder, "run")), "/agent").catch(
        () => undefined,
      )) as AgentStatus | undefined;
      if (status && fits(status)) return status;
      await sleep(10);
    }
    const what = this.#agent?.dead === false ? "did not take the configuration over in time" : "died";
    throw new Error(`the agent ${what}: ${lastLine(this.#log("agent"))}`);
  }

  async startLoad(options: Omit<PartOptions["load"], "cgroup" | "address" | "port" | "name">): Promise<void> {
    const { address, port, host } = MESH.service;
    await this.agentOnce(({ names }) => (names?.entries ?? 0) > 0);
    this.#load = await this.#start("load", "load", {
      ...options,
      address,
      port,
      name: host,
      cgroup: join(this.cgroup, "load"),
    });
  }

  async ledger(): Promise<Ledger> {
    if (!this.#load) throw new Error("there is no load");
    return (await this.#load.ask("ledger")) as Ledger;
  }

  /** Ends the load, waits for the last answers, and returns the final count. */
  async stopLoad(): Promise<Ledger> {
    if (!this.#load) throw new Error("there is no load");
    const ledger = (await this.#load.ask("stop")) as Ledger;
    await this.#load.end();
    return ledger;
  }

  /** Ends all processes and removes everything. Returns the things that could not be removed, with the reasons. */
  async clear(): Promise<string[]> {
    await Promise.all([...this.#children.values()].map((child) => child.end()));
    return removeStage(this.folder, this.cgroup, this.bpffs);
  }

  async #start<Part extends keyof PartOptions>(
    name: string,
    part: Part,
    options: PartOptions[Part],
  ): Promise<Child> {
    const child = Child.start(name, part, options, this.#log(name.replaceAll(" ", "-")), environment());
    this.#children.set(name, child);
    await child.ready();
    return child;
  }

  #agentConfig(): string {
    const lines = {
      istiod: `127.0.0.1:${ISTIOD_PORT}`,
      plaintext: true,
      mode: this.#mode,
      ip: MESH.node,
      namespace: "demo",
      cgroup: this.cgroup,
      bpffs: this.bpffs,
      "state-dir": join(this.folder, "state"),
      "run-dir": join(this.folder, "run"),
    };
    return Object.entries(lines)
      .map(([key, value]) => `${key}: ${JSON.stringify(value)}\n`)
      .join("");
  }

  #log(name: string): string {
    return join(this.folder, `${name}.log`);
  }
}

/** Removes leftovers of demos that were killed by SIGKILL. */
export function sweepDeadStages(): void {
  const homes = [cgroup2Root(), BPFFS, ...filesFolders()];
  const names = new Set(
    homes
      .filter((home) => existsSync(home))
      .flatMap((home) => readdirSync(home))
      .filter((name) => name.startsWith(NAME)),
  );
  for (const name of names) {
    const pid = Number(name.slice(NAME.length));
    if (!Number.isInteger(pid) || existsSync(`/proc/${pid}`)) continue;
    for (const files of filesFolders())
      removeStage(join(files, name), join(cgroup2Root(), name), join(BPFFS, name));
  }
}

function removeStage(folder: string, cgroup: string, bpffs: string): string[] {
  const left: string[] = [];
  const attempt = (what: string, remove: () => void) => {
    try {
      remove();
    } catch (error) {
      left.push(`${what} (${reasonOf(error)})`);
    }
  };
  if (existsSync(bpffs)) attempt(bpffs, () => removePinned(bpffs));
  for (const path of [join(cgroup, "load"), join(cgroup, "play"), cgroup]) {
    if (!existsSync(path)) continue;
    attempt(path, () => {
      evacuate(path);
      rmdirPatiently(path);
    });
  }
  attempt(folder, () => rmSync(folder, { recursive: true, force: true }));
  return left;
}

/** Moves the operator's shells, which followed the hints of --keep, out of the cgroup. */
function evacuate(cgroup: string): void {
  for (const pid of readFileSync(join(cgroup, "cgroup.procs"), "utf8").split("\n").filter(Boolean)) {
    try {
      writeFileSync(join(cgroup2Root(), "cgroup.procs"), pid);
    } catch {
      // The process has ended meanwhile.
    }
  }
}

/** Removes a cgroup, which is busy for a moment after its last process ended. */
function rmdirPatiently(path: string): void {
  for (let tries = 0; ; tries++) {
    try {
      rmdirSync(path);
      return;
    } catch (error) {
      if (tries === 50 || !(codeOf(error) === "EBUSY")) throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20);
    }
  }
}

/** A writable folder: /tmp may be read-only, /run may be missing. */
function filesFolders(): string[] {
  return ["/run", tmpdir(), "/dev/shm"];
}

function filesFolder(): string {
  const usable = filesFolders().find((folder) => {
    try {
      accessSync(folder, constants.W_OK);
      return true;
    } catch {
      return false;
    }
  });
  if (usable === undefined) throw new Error(`none of ${filesFolders().join(", ")} can be written to`);
  return usable;
}

/** The environment without variables that would configure the demo's agent. */
function environment(): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("KMESH_")));
}

function lastLine(path: string): string {
  try {
    return readFileSync(path, "utf8").trimEnd().split("\n").at(-1) ?? "it said nothing";
  } catch {
    return "it said nothing";
  }
}

export function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
