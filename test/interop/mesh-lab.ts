/**
 * A machine in a mesh, in one network namespace: a real istiod, `kmesh run`, upstream servers and clients.
 *
 * Endpoints are addresses on loopback outside 127/8; service addresses are routed nowhere, so what reaches a
 * server was redirected by the kernel, and what kmesh lets pass fails with ENETUNREACH.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { askAgent } from "../../src/admin/client.ts";
import { type AgentStatus, adminSocket } from "../../src/admin/status.ts";
import { binaries, ControlPlane, type ControlPlaneOptions } from "../control-plane/control-plane.ts";
import { NetworkNamespace, ownName, TestCgroup } from "../lab/namespace.ts";
import { eventually, OwnedProcess, placed, plainEnvironment, type RunResult, run } from "../lab/process.ts";

export const KMESH = process.env.KMESH ?? resolve(import.meta.dirname, "../../dist/kmesh");
const BPFFS = "/sys/fs/bpf";

/** Why these tests can't run on this machine; undefined when they can. Builds the control plane if need be. */
export function missing(): string | undefined {
  if (process.getuid?.() !== 0) return "needs root";
  if (!existsSync(KMESH)) return `${KMESH} is missing: run ./build/compile`;
  if (!existsSync("/usr/bin/python3")) return "needs python3";
  const built = binaries();
  return "missing" in built ? built.missing : undefined;
}

/** What client.py counts. */
export interface Tally {
  made: number;
  /** Connections by the server that answered. */
  by: Record<string, number>;
  /** Failures by errno's name. */
  errors: Record<string, number>;
  /** Number of connections by the address from getpeername(): "ADDRESS PORT". */
  peers: Record<string, number>;
  /** mode hold: connections that broke. */
  cut: number;
  answers: number;
}

export interface ClientSpec {
  address: string;
  port: number;
  count?: number;
  mapped?: boolean;
  v6only?: boolean;
  source?: string;
  source_port?: number;
  threads?: number;
  pace?: number;
  /** Seconds that the other end may take. */
  timeout?: number;
  /** IPPROTO_MPTCP sockets. */
  mptcp?: boolean;
}

/** A client that runs until `end` and then reports its connections. */
export class RunningClient {
  readonly #child: ChildProcess;
  readonly #lines: string[] = [];
  #rest = "";
  #failure = "";

  constructor(command: readonly string[]) {
    const [file = "", ...args] = command;
    this.#child = spawn(file, args, { stdio: ["pipe", "pipe", "pipe"], env: plainEnvironment() });
    this.#child.stdout?.setEncoding("utf8").on("data", (text: string) => {
      const lines = (this.#rest + text).split("\n");
      this.#rest = lines.pop() ?? "";
      this.#lines.push(...lines);
    });
    this.#child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.#failure += text;
    });
  }

  /** The next line that it printed. */
  async line(): Promise<string> {
    // Emulated kernels are slow.
    return eventually(`a line of the client${this.#failure}`, () => this.#lines.shift(), 60_000);
  }

  /** Sends an empty line, so that the client continues. */
  go(): void {
    this.#child.stdin?.write("\n");
  }

  async end(): Promise<Tally> {
    this.#child.stdin?.end();
    return JSON.parse(await this.line());
  }

  /** For a client whose tally was already read. */
  async close(): Promise<void> {
    if (this.#child.exitCode !== null) return;
    const gone = new Promise((resolve) => this.#child.once("exit", resolve));
    this.#child.stdin?.end();
    await gone;
  }

  kill(): void {
    this.#child.kill("SIGKILL");
  }
}

export class MeshLab {
  readonly namespace: NetworkNamespace;
  readonly plane: ControlPlane;
  /** Clients run here and are enrolled; nothing else is. */
  readonly apps: string;
  readonly bpffs: string;
  readonly folder: string;
  /** What `startAgent` runs. */
  agentCommand: readonly string[] = [KMESH];
  readonly #cgroup: TestCgroup;
  readonly #clients = new Set<RunningClient>();
  readonly #servers = new Map<string, OwnedProcess>();
  #agent: OwnedProcess | undefined;
  #starts = 0;

  private constructor(namespace: NetworkNamespace, plane: ControlPlane, cgroup: TestCgroup) {
    this.namespace = namespace;
    this.plane = plane;
    this.#cgroup = cgroup;
    this.apps = cgroup.child("apps");
    this.bpffs = `${BPFFS}/${ownName("b")}`;
    this.folder = mkdtempSync(join(tmpdir(), "kmesh-lab-"));
  }

  /** Starts the control plane in a namespace of its own; no agent yet. */
  static async create(options: Omit<ControlPlaneOptions, "binaries" | "netns"> = {}): Promise<MeshLab> {
    const built = binaries();
    if ("missing" in built) throw new Error(built.missing);
    const namespace = await NetworkNamespace.create("lab");
    try {
      const plane = await ControlPlane.start({
        namespaces: ["shop", "other"],
        ...options,
        binaries: built.folder,
        netns: namespace.path,
      });
      return new MeshLab(namespace, plane, TestCgroup.create("lab"));
    } catch (error) {
      await namespace.remove();
      throw error;
    }
  }

  /** Ends and removes everything; throws when kmesh left something behind. */
  async remove(): Promise<void> {
    try {
      for (const client of this.#clients) client.kill();
      await this.#agent?.stop("SIGKILL");
      if (existsSync(this.bpffs)) await this.kmesh("down", "--yes");
    } finally {
      await this.plane.stop();
      for (const server of this.#servers.values()) await server.stop("SIGKILL");
      await this.#cgroup.remove();
      await this.namespace.remove();
      rmSync(this.folder, { recursive: true, force: true });
    }
    if (existsSync(this.bpffs)) throw new Error(`${this.bpffs} is still there: ${readdirSync(this.bpffs)}`);
  }

  /** The folder flags of every command. */
  get folders(): string[] {
    return [`--bpffs=${this.bpffs}`, `--state-dir=${this.folder}/state`, `--run-dir=${this.folder}/run`];
  }

  /** Starts `kmesh run`; resolves at once. Flags in `more` come last. */
  startAgent(...more: string[]): OwnedProcess {
    this.#starts += 1;
    this.#agent = new OwnedProcess({
      name: "kmesh",
      log: join(this.folder, `agent-${this.#starts}.log`),
      command: [
        ...this.agentCommand,
        "run",
        ...(more.some((flag) => flag.startsWith("--ca"))
          ? []
          : [`--istiod=127.0.0.1:${this.plane.ports.grpc}`, "--plaintext"]),
        ...(more.some((flag) => flag.startsWith("--mode")) ? [] : ["--mode=kernel-native"]),
        "--namespace=shop",
        "--service-account=vm",
        `--cgroup=${this.apps}`,
        ...(more.some((flag) => flag.startsWith("--ip")) ? [] : ["--ip=172.31.0.1"]),
        ...this.folders,
        ...more,
      ],
      netns: this.namespace.path,
    });
    return this.#agent;
  }

  get agent(): OwnedProcess {
    if (this.#agent === undefined) throw new Error("no agent was started");
    return this.#agent;
  }

  /** Starts the agent and waits until its first push is live. */
  async startedAgent(...more: string[]): Promise<OwnedProcess> {
    const agent = this.startAgent(...more);
    await this.live();
    return agent;
  }

  /** Waits until the agent has applied istiod's first push. */
  async live(): Promise<void> {
    await eventually(
      "kmesh's tables are live",
      async () => {
        if (this.agent.status !== undefined) return true;
        // By its socket: a command that is started again and again takes half a processor from the agent's start.
        const told = (await askAgent(adminSocket(join(this.folder, "run")), "/status")) as
          | { agent: AgentStatus }
          | undefined;
        return told?.agent.pid === this.agent.pid && told.agent.tables.applies > 0;
      },
      30_000,
    ).catch((error: Error) => {
      throw new Error(`${error.message} (${error.cause})\n${this.agent.tail(40)}`);
    });
    const { status } = this.agent;
    if (status !== undefined) throw new Error(`kmesh ended: ${status}\n${this.agent.tail(40)}`);
  }

  /** What the agent answers to GET /metrics. */
  async metrics(): Promise<string> {
    const unix = adminSocket(join(this.folder, "run"));
    return (await fetch("http://localhost/metrics", { unix, proxy: "" })).text();
  }

  /** Runs `kmesh ARGS` with this lab's folders. */
  kmesh(command: string, ...args: string[]): Promise<RunResult> {
    return run([KMESH, command, ...args, ...this.folders], { netns: this.namespace.path });
  }

  /** `kmesh status --output json`. */
  async status(): Promise<AgentStatus & { alive: boolean }> {
    const result = await this.kmesh("status", "--output", "json");
    if (result.stdout.trim() === "") throw new Error(`kmesh status: ${result.stderr}`);
    const status: AgentStatus & { alive: boolean } = JSON.parse(result.stdout);
    if (status.tables === undefined) throw new Error("kmesh status knows of no agent");
    return status;
  }

  /** Starts servers: name -> ADDRESS:PORT; the addresses are added to loopback. One process for each call. */
  async serve(servers: Record<string, string>): Promise<OwnedProcess> {
    const addresses = new Set(
      Object.values(servers).map((at) => at.replace(/:\d+$/, "").replace(/[[\]]/g, "")),
    );
    for (const address of addresses) {
      const family = address.includes(":") ? "-6" : "-4";
      await run([
        "ip",
        "-n",
        this.namespace.name,
        family,
        "addr",
        "replace",
        `${address}/${family === "-6" ? 128 : 32}`,
        "dev",
        "lo",
      ]);
    }
    const key = Object.keys(servers).join(" ");
    const process_ = new OwnedProcess({
      name: `server ${key}`,
      log: join(this.folder, "servers.log"),
      command: [
        process.execPath,
        join(import.meta.dirname, "upstream.ts"),
        ...Object.entries(servers).map(([name, at]) => `${name}=${at}`),
      ],
      netns: this.namespace.path,
    });
    this.#servers.set(`${key} ${process_.pid}`, process_);
    await eventually(`${key} listen`, async () => {
      for (const at of Object.values(servers)) {
        const [, address = "", port = "0"] = /^\[?(.*?)\]?:(\d+)$/.exec(at) ?? [];
        const tally = await this.#count({ address, port: Number(port) }, {});
        if (tally.made !== 1) return undefined;
      }
      return true;
    });
    return process_;
  }

  /** `count` connections of an enrolled app, one after the other. */
  connect(address: string, port: number, more: Partial<ClientSpec> = {}): Promise<Tally> {
    return this.#count({ address, port, ...more }, { cgroup: this.apps });
  }

  /** The same by an app that is not enrolled. */
  connectOutside(address: string, port: number, more: Partial<ClientSpec> = {}): Promise<Tally> {
    return this.#count({ address, port, ...more }, {});
  }

  /** Waits until `check` accepts a connection's result, and gives that tally. */
  connectUntil(
    what: string,
    address: string,
    port: number,
    check: (tally: Tally) => boolean,
    more: Partial<ClientSpec> = {},
  ): Promise<Tally> {
    let last: Tally | undefined;
    return eventually(what, async () => {
      last = await this.connect(address, port, more);
      return check(last) ? last : undefined;
    }).catch((error: Error) => {
      throw new Error(`${error.message}; last: ${JSON.stringify(last)}\n${this.agent.tail(10)}`);
    });
  }

  /** Runs curl as an enrolled app; gives its output and exit code. */
  curl(url: string, ...args: string[]): Promise<RunResult> {
    return run(["curl", "-sS", "--noproxy", "*", "--max-time", "5", ...args, url], {
      netns: this.namespace.path,
      cgroup: this.apps,
    });
  }

  /**
   * Runs a shell command as an enrolled app whose resolv.conf names 127.0.0.1, where no server is, and `search`. What
   * it resolves came from the kernel.
   */
  resolving(command: string, search?: string): Promise<RunResult> {
    const file = join(this.folder, `resolv-${search ?? "plain"}.conf`);
    writeFileSync(
      file,
      `nameserver 127.0.0.1\noptions timeout:1 attempts:1\n${search === undefined ? "" : `search ${search}\n`}`,
    );
    return run(["unshare", "-m", "sh", "-c", `mount --bind ${file} /etc/resolv.conf && ${command}`], {
      netns: this.namespace.path,
      cgroup: this.apps,
    });
  }

  /** New connections all the time (storm) or connections that stay (hold), until its `end`. */
  async startClient(mode: "storm" | "hold", spec: ClientSpec): Promise<RunningClient> {
    const client = this.#client({ mode, ...spec }, { cgroup: this.apps });
    await client.line();
    return client;
  }

  /** `count` connections that stay open until `close`, and their tally. */
  async keep(spec: ClientSpec): Promise<{ client: RunningClient; tally: Tally }> {
    const client = this.#client({ mode: "count", keep: true, ...spec }, { cgroup: this.apps });
    return { client, tally: JSON.parse(await client.line()) };
  }

  #client(spec: object, place: { cgroup?: string }): RunningClient {
    const script = join(import.meta.dirname, "client.py");
    const client = new RunningClient(
      placed(["/usr/bin/python3", script, JSON.stringify(spec)], { netns: this.namespace.path, ...place }),
    );
    this.#clients.add(client);
    return client;
  }

  async #count(spec: ClientSpec, place: { cgroup?: string }): Promise<Tally> {
    const client = this.#client({ mode: "count", ...spec }, place);
    try {
      return JSON.parse(await client.line());
    } finally {
      await client.close();
      this.#clients.delete(client);
    }
  }
}
