/**
 * The daemon's life. It wires the rooms below: istiod's stream feeds the compiler, the compiler's mesh goes to the
 * data path. Nothing here detaches or empties anything: an agent that fails, stops or dies leaves the kernel as it is.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { explainDestination } from "../admin/explain.ts";
import { AdminServer, BadRequest, Conflict } from "../admin/server.ts";
import {
  type AgentStatus,
  adminSocket,
  type RegistrationStatus,
  readStatus,
  type SnapshotStatus,
  type TablesStatus,
  writeStatus,
} from "../admin/status.ts";
import { Datapath } from "../datapath/datapath.ts";
import { exemptSelfPinned } from "../datapath/enrolment.ts";
import { inspectPinned, summarizePinned } from "../datapath/inspect.ts";
import type { ApplyReport } from "../datapath/publisher.ts";
import { pinnedTotals } from "../datapath/totals.ts";
import { parseProbe } from "../health/probe.ts";
import { HealthWatch } from "../health/watch.ts";
import { CertificateStore } from "../istiod/certificate-store.ts";
import type { Security } from "../istiod/credentials.ts";
import { type IdentityEvent, WorkloadIdentity } from "../istiod/identity.ts";
import type { Identity } from "../istiod/node.ts";
import type { ResourceSink } from "../istiod/sink.ts";
import type { StreamEvent } from "../istiod/status.ts";
import { IstiodStream } from "../istiod/stream.ts";
import { formatTarget } from "../istiod/target.ts";
import { ensureBpffs } from "../kernel/bpffs.ts";
import { LockHeld } from "../kernel/lock.ts";
import { signalTask, spawnOrphan, type TaskIdentity } from "../kernel/process.ts";
import { KernelNative } from "../kernel-native/kernel-native.ts";
import { Reflection } from "../kernel-native/reflection.ts";
import type { Changes, Mesh } from "../mesh/model.ts";
import { isEmbedded } from "../runtime/assets.ts";
import { faultPoint } from "../runtime/fault.ts";
import { selfCommand } from "../runtime/self.ts";
import { version } from "../runtime/version.ts";
import { AddressWatch, mainFirst } from "./address-watch.ts";
import { shapeOf } from "./bond.ts";
import { type Config, ConfigError, formatExclude, requireReadable } from "./config.ts";
import { handOver, type Predecessor } from "./handover.ts";
import { causeOfStart, type Entry, historyFile, readHistory, remember } from "./history.ts";
import { INVITATION } from "./invitation.ts";
import { KeptGenerations } from "./kept-generations.ts";
import { Locks } from "./locks.ts";
import type { Log } from "./log.ts";
import { enrolledCgroups, makeFolders, requireMachine, warnOfUnits } from "./machine.ts";
import { machineAddresses } from "./machine-addresses.ts";
import { machineId } from "./machine-id.ts";
import { nodeIdentity, registrationOf } from "./node.ts";
import { type Order, readOrder } from "./order.ts";
import { type Differences, differences } from "./reload.ts";
import { meshStatusBefore, meshStatusOf, Reporter, tell } from "./reporter.ts";
import { SnapshotKeeper } from "./snapshot-keeper.ts";
import type { Candidate, Succession } from "./succession.ts";
import { settingValues } from "./values.ts";

/** Between two looks at whether the hooks are still attached, milliseconds. */
const UPKEEP = 5_000;
/** After a push that could not be written, milliseconds. */
const RETRY = 5_000;
/** How often the kernel is told that its tables follow istiod, milliseconds; it waits for ten times that. */
const CURRENT = 1_000;
/** How long istiod may take to fill the tables of a new version, before the snapshot does; milliseconds. */
const ISTIOD_PATIENCE = 10_000;
/**
 * From a change to the status file, milliseconds: many changes become one write. The numbers of a push that only
 * moved endpoints may lag: the file is for those who find no agent.
 */
const STATUS_DELAY = { news: 500, numbers: 5_000 };

/**
 * After istiod's first push names of DNS clusters are looked up; a successor waits for them so long at most, milliseconds.
 */
const NAMES_PATIENCE = 3_000;
/** Another agent's last moment with the tables, milliseconds. */
const LOCKS_PATIENCE = 5_000;
/** A sign of life for who waits for a hand-over, milliseconds. */
const BEAT = 1_000;

/** What one agent alone has at a time. */
interface Grip {
  locks: Locks;
  datapath: Datapath;
  kept: KeptGenerations;
}

/** Stands in the node of a machine without an address, which is told to nobody (RFC 5737). */
const UNSPOKEN = "192.0.2.0";

/** Who hears of the agent. */
export interface Audience {
  /** Each new status, half a second after the news at the earliest. */
  status(status: AgentStatus): void;
  /** Somebody asks for what SIGHUP asks for. Gives the line that tells of it; throws when all stays as it was. */
  reload(): string;
  /** Another process is the agent from now on. */
  succeeded(pid: number): void;
}

/** Why the agent has to end though nobody sent a signal. */
export type End =
  /** To be executed anew, under this pid. */
  | { kind: "restart"; command: string[] }
  /** Another has all that this one had. */
  | { kind: "succeeded"; pid: number };

export class Agent {
  #config: Config;
  readonly #log: Log;
  /** Absent before an agent takes over from another, and while another takes over from it. */
  #grip: Grip | undefined;
  #adopted = false;
  readonly #snapshots: SnapshotKeeper;
  readonly #compiler: KernelNative;
  readonly #identity: WorkloadIdentity | undefined;
  readonly #stream: IstiodStream;
  readonly #health: HealthWatch | undefined;
  #registration: RegistrationStatus | undefined;
  readonly #reporter: Reporter;
  readonly #startedAt = new Date();
  readonly #addresses: string[];
  #addressWatch: AddressWatch | undefined;
  #cgroups: string[];
  #admin: AdminServer | undefined;
  /** What the agent before this one left in the status file. */
  #before: AgentStatus | undefined;
  /** Another process is about to take over. */
  #handover: { kind: Order["kind"]; since: Date; task?: TaskIdentity } | undefined;
  /** Where an agent that is to take over tells how far it is. */
  #progress: ((text: string) => void) | undefined;
  #namesTimer: ReturnType<typeof setTimeout> | undefined;
  #relinked = 0;
  #mesh: Mesh | undefined;
  /** Set while the tables come from a snapshot. */
  #snapshot: SnapshotStatus | undefined;
  #tables: TablesStatus = { applies: 0, writes: 0 };
  /** The kernel lags behind the mesh: the next write compares everything. */
  #behind = false;
  #retryTimer: ReturnType<typeof setTimeout> | undefined;
  #currentTimer: ReturnType<typeof setInterval> | undefined;
  #patienceTimer: ReturnType<typeof setTimeout> | undefined;
  #statusTimer: ReturnType<typeof setTimeout> | undefined;
  #statusDue = 0;
  #statusWarned = false;
  #stopped = false;
  readonly #audience: Audience;
  readonly #live = Promise.withResolvers<void>();
  readonly #synced = Promise.withResolvers<void>();
  readonly #end = Promise.withResolvers<End>();

  /** All that can be wrong with the settings is found before the machine is touched. */
  private constructor(config: Config, log: Log, audience: Audience) {
    this.#config = config;
    this.#log = log;
    this.#audience = audience;
    this.#addresses =
      config.ips.length > 0
        ? config.ips
        : mainFirst(machineAddresses(), readStatus(config.runDir)?.node.addresses[0]);
    this.#cgroups = enrolledCgroups(config.cgroups);
    warnOfUnits(config.units, log);
    this.#reporter = new Reporter(log);
    this.#compiler = new KernelNative({
      allowPlaintext: config.allowPlaintext,
      publish: (mesh, changes) => this.#publish(mesh, changes),
    });
    this.#identity = this.#openIdentity(config);
    // Without an address the stream is made and never begins.
    const node = nodeIdentity(config, this.#nameless ? [UNSPOKEN] : this.#addresses);
    this.#registration = this.#nameless ? undefined : registrationOf(node);
    this.#health = this.#openHealth(config);
    this.#stream = new IstiodStream({
      istiod: formatTarget(config.istiod),
      security: securityOf(config, this.#identity),
      hosts: config.hosts,
      identity: node,
      sink: this.#reflecting(node),
      on: (event) => this.#heard(event),
    });
    makeFolders(config);
    ensureBpffs(config.bpffs);
    this.#snapshots = new SnapshotKeeper(config.stateDir, machineId(), shapeOf(config), log);
  }

  /**
   * Checks the machine, takes the locks, adopts or builds the tables, and begins to talk to istiod.
   * Rejects with Unsupported, ConfigError, LockHeld, KernelError or an Error of one line: this process has to end
   * then, and what was pinned before works on.
   */
  static async start(config: Config, log: Log, audience: Audience): Promise<Agent> {
    requireMachine(log);
    const agent = new Agent(config, log, audience);
    agent.#grasp();
    await agent.#serve();
    agent.#started();
    agent.#health?.start();
    void agent.#connect();
    return agent;
  }

  /**
   * Takes over from an agent that runs. Rejects as `start`, and with an Error when the other one goes on: this process has
   * to end then.
   */
  static async succeed(config: Config, log: Log, audience: Audience, succession: Succession): Promise<Agent> {
    requireMachine(log);
    const agent = new Agent(config, log, audience);
    // Before the first connection, and without a lock: it is one entry of our own.
    exemptSelfPinned(config.bpffs);
    agent.#progress = (text) => succession.progress(text);
    agent.#health?.start();
    void agent.#connect();
    try {
      await succession.take(agent.#candidate());
    } catch (error) {
      // Without a word in any file: they are the other agent's.
      agent.#quit();
      agent.#admin?.close();
      agent.#letGo();
      throw error;
    }
    agent.#progress = undefined;
    agent.#writeStatus();
    return agent;
  }

  /** Resolves as soon as the tables hold a mesh: at once when they were adopted, else with the first push. */
  get live(): Promise<void> {
    return this.#live.promise;
  }

  /** Resolves when this process has to end: with `leave` when another took over, else with `stop`. */
  get ended(): Promise<End> {
    return this.#end.promise;
  }

  /**
   * Takes over what can change under running connections; the rest stays as it was until the next start.
   * Throws ConfigError or KernelError, and all stays as it was.
   */
  reload(config: Config): Differences {
    const datapath = this.#grip?.datapath;
    if (this.#handover || !datapath)
      throw new ConfigError(
        "another agent is about to take over from this one",
        "Reload that one: it has read the configuration at its start.",
      );
    const found = differences(this.#config, config);
    const before = { ...this.#config, cgroups: this.#cgroups };
    // Also when their names are the same: a cgroup that was made anew is another one.
    const cgroups = enrolledCgroups(config.cgroups);
    const { units, excludes, netns, shadow } = config;
    try {
      datapath.govern({ cgroups, units, excludes, netns, shadow });
    } catch (error) {
      datapath.govern(before);
      throw error;
    }
    this.#cgroups = cgroups;
    this.#config = { ...this.#config, cgroups: config.cgroups, units, excludes, netns, shadow };
    this.#writeStatus();
    return found;
  }

  /** Ends the process's part. Programs, maps and links stay pinned: connections go on as they are. */
  stop(): void {
    // One that is about to take over would be an agent that nobody asked for.
    if (this.#handover?.task) signalTask(this.#handover.task, "SIGKILL");
    this.#quit();
    this.#admin?.close();
    if (!this.#grip) return;
    this.#snapshots.close();
    this.#writeStatus();
    this.#record({ kind: "stop", from: version, result: "done" });
    this.#letGo();
  }

  /** Ends the process's part after another took over: everything is that one's. */
  async leave(): Promise<void> {
    this.#quit();
    await this.#admin?.finish();
  }

  status(): AgentStatus {
    const config = this.#config;
    return {
      version,
      pid: process.pid,
      startedAt: this.#startedAt.toISOString(),
      writtenAt: new Date().toISOString(),
      mode: config.mode,
      node: {
        namespace: config.namespace,
        serviceAccount: config.serviceAccount,
        addresses: this.#addresses,
      },
      shadow: config.shadow,
      cgroups: this.#cgroups,
      units: config.units,
      excludes: config.excludes.map(formatExclude),
      netns: config.netns,
      adopted: this.#adopted,
      ...(isEmbedded() ? { executable: selfCommand()[0] } : {}),
      ...(this.#identity ? { identity: this.#identity.status() } : {}),
      ...(this.#registration ? { registration: this.#registration } : {}),
      ...(this.#health ? { health: this.#health.status() } : {}),
      ...(this.#snapshot ? { snapshot: this.#snapshot } : {}),
      stream: this.#stream.status(),
      tables: this.#tables,
      mesh: this.#mesh
        ? { ...meshStatusOf(this.#mesh), current: this.#snapshot === undefined }
        : meshStatusBefore(this.#adopted ? this.#before?.mesh : undefined),
    };
  }

  /** Locks and tables. What is pinned governs on, whatever this throws. */
  #grasp(): void {
    const config = this.#config;
    const locks = Locks.acquire(config);
    try {
      this.#before = readStatus(config.runDir);
      const datapath = Datapath.open({
        bpffs: config.bpffs,
        cgroups: this.#cgroups,
        units: config.units,
        excludes: config.excludes,
        netns: config.netns,
        shadow: config.shadow,
        nodeAddresses: this.#addresses,
        upkeep: UPKEEP,
        log: (line) => this.#log.info(line),
      });
      this.#grip = { locks, datapath, kept: new KeptGenerations(datapath, this.#log) };
      this.#adopted = datapath.adopted;
      if (datapath.governs) this.#snapshot = this.#before?.snapshot;
      // Before the first connection, or we would be sent through our own mesh.
      datapath.exemptSelf();
      this.#grip.kept.watch();
      this.#currentTimer = setInterval(() => this.#keepCurrent(), CURRENT);
    } catch (error) {
      if (this.#grip) this.#letGo();
      else locks.release();
      throw error;
    }
  }

  /** The same when whoever had them last is about to be gone: a dead process's locks end a moment after its sockets. */
  async #graspPatiently(): Promise<void> {
    const until = performance.now() + LOCKS_PATIENCE;
    for (;;) {
      try {
        this.#grasp();
        return;
      } catch (error) {
        if (!(error instanceof LockHeld) || performance.now() > until) throw error;
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
    }
  }

  #letGo(): void {
    clearInterval(this.#currentTimer);
    clearTimeout(this.#patienceTimer);
    this.#grip?.kept.stop();
    this.#grip?.datapath.close();
    this.#grip?.locks.release();
    this.#grip = undefined;
  }

  /** Answers on the admin socket. */
  async #serve(): Promise<void> {
    const { bpffs, runDir } = this.#config;
    this.#admin = await AdminServer.listen(
      adminSocket(runDir),
      {
        "/agent": () => this.status(),
        "/config": () => settingValues(this.#config),
        "/status": () => ({
          agent: this.status(),
          kernel: this.#grip?.datapath.summarize() ?? summarizePinned(bpffs),
        }),
        "/dump/received": () => this.#compiler.describe(),
        "/dump/model": () => this.#mesh ?? null,
        "/dump/tables": () => this.#grip?.datapath.inspect() ?? inspectPinned(bpffs),
        "/explain": (query) => explainDestination(bpffs, query.get("target") ?? "", this.#mesh),
      },
      {
        "/restart": (body, answer) => this.#restart(readOrder(body), answer),
        "/reload": async (_, answer) => answer({ reloaded: this.#reloadByOrder() }),
      },
    );
  }

  #reloadByOrder(): string {
    try {
      return this.#audience.reload();
    } catch (error) {
      throw error instanceof ConfigError ? new BadRequest(`${error.message}. ${error.next}`) : error;
    }
  }

  #started(): void {
    const { cause, from } = causeOfStart(readHistory(this.#config.stateDir));
    this.#record({ kind: "start", ...(from ? { from } : {}), to: version, result: "done", cause });
    const { governs = false, takesOver = false } = this.#grip?.datapath ?? {};
    this.#reporter.started(takesOver ? "foreign" : this.#adopted ? "own" : "nothing", this.#config);
    if (takesOver) this.#patienceTimer = setTimeout(() => this.#restore(), ISTIOD_PATIENCE);
    if (governs) this.#live.resolve();
    else this.#restore();
    this.#writeStatus();
  }

  // --- another process takes over ---

  /** Answers `kmesh restart`, `upgrade` and `rollback`. Throws Conflict when it can't be now. */
  async #restart(order: Order, answer: (line: unknown) => void): Promise<void> {
    if (this.#handover) {
      const { kind, since, task } = this.#handover;
      const whom = task ? ` (pid ${task.tgid})` : "";
      throw new Conflict(`a ${kind} is under way since ${since.toISOString()}${whom}`);
    }
    if (!this.#grip) throw new Conflict("this agent is only about to take over itself");
    const [executable = "", ...rest] = order.executable ? [order.executable] : selfCommand();
    const args = [...rest, ...process.argv.slice(2)];
    if (!existsSync(executable)) throw new Conflict(`there is no ${executable} to be started`);
    if (!order.graceful) {
      answer({ restarts: process.pid });
      this.#end.resolve({ kind: "restart", command: [executable, ...args] });
      return;
    }
    if (process.pid === 1)
      throw new Conflict("the agent is the first process of its container, which would end with it");
    this.#handover = { kind: order.kind, since: new Date() };
    this.#log.info(`A ${order.kind} was asked for: ${executable} is to take over`);
    const beat = setInterval(() => answer({ beat: true }), BEAT);
    const tellProgress = (text: string) => {
      this.#log.debug(text);
      answer({ progress: text });
    };
    try {
      const spawn = (socket: string) => {
        const env = { ...process.env, [INVITATION]: socket, WATCHDOG_PID: undefined };
        const task = spawnOrphan(executable, [executable, ...args], env);
        if (this.#handover) this.#handover.task = task;
        return task;
      };
      const proof = await handOver(
        this.#predecessor(),
        { timeout: order.timeout, spawn, progress: tellProgress },
        version,
      );
      const { from_version: from, to_version: to, pid, synced: _, seconds: __, ...figures } = proof;
      this.#record({ kind: order.kind, from, to, result: "done", pid, ...figures });
      this.#log.info(`pid ${pid} (${to}) took over after ${figures.gap_ms} ms; this agent ends`);
      answer({ proof });
      this.#end.resolve({ kind: "succeeded", pid });
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      this.#handover = undefined;
      this.#log.error(`No ${order.kind}, this agent goes on: ${reason}`);
      this.#record({ kind: order.kind, from: version, result: "failed", reason });
      answer({ failure: reason });
    } finally {
      clearInterval(beat);
    }
  }

  #predecessor(): Predecessor {
    const { runDir, bpffs } = this.#config;
    const { synced, connected } = this.#stream.status();
    return {
      runDir,
      synced: synced && connected,
      totals: () => this.#grip?.datapath.totals() ?? pinnedTotals(bpffs),
      flush: () => this.#snapshots.flush(),
      pause: () => this.#pause(),
      resume: () => this.#resume(),
      pinnedTotals: () => pinnedTotals(bpffs),
      succeeded: (pid) => this.#audience.succeeded(pid),
    };
  }

  /** From here on pushes only change the mesh in memory. */
  #pause(): void {
    clearTimeout(this.#retryTimer);
    this.#writeStatus();
    this.#snapshots.pause();
    this.#letGo();
  }

  /** The successor is gone; whatever it did to the tables, they become what istiod wants. */
  async #resume(): Promise<void> {
    try {
      await this.#graspPatiently();
    } catch (error) {
      // A start like any other, with its patience and its words.
      this.#end.resolve({ kind: "restart", command: [...selfCommand(), ...process.argv.slice(2)] });
      throw error;
    }
    if (this.#mesh && !this.#snapshot) this.#apply({ everything: true });
    // It came as far as to govern by its own tables.
    else if (this.#grip?.datapath.takesOver) this.#fallBack();
    if (!this.#admin?.reachable) {
      // The one before still answers who asked for all this.
      await this.#serve();
    }
    this.#writeStatus();
  }

  /** Governs by the snapshot again. */
  #fallBack(): void {
    this.#mesh = undefined;
    this.#restore();
  }

  /** This agent as one that is to take over. */
  #candidate(): Candidate {
    return {
      synced: this.#synced.promise,
      size: () => {
        const { services, endpoints } = this.#mesh ? meshStatusOf(this.#mesh) : { services: 0, endpoints: 0 };
        return { services, endpoints };
      },
      take: async () => {
        await this.#graspPatiently();
        faultPoint("successor.locks");
        if (this.#mesh) {
          this.#apply({ everything: true });
          if (this.#behind) throw new Error(this.#tables.lastError?.text ?? "the tables can't be written");
        } else if (!this.#grip?.datapath.governs || this.#grip.datapath.takesOver) this.#restore();
        if (this.#grip?.datapath.takesOver)
          throw new Error("istiod does not answer, and no snapshot is there to fill this version's tables");
        this.#live.resolve();
        faultPoint("successor.written");
        return { writes: this.#tables.writes, relinked: this.#relinked };
      },
      serve: () => this.#serve(),
    };
  }

  /** A successor is in sync when it knows the addresses of names, too, or nobody says them in time. */
  #noteSync(mesh: Mesh): void {
    const waits = [...mesh.clusters.values()].some(({ pending }) => pending);
    if (!waits) this.#synced.resolve();
    else this.#namesTimer ??= setTimeout(() => this.#synced.resolve(), NAMES_PATIENCE);
  }

  #quit(): void {
    this.#addressWatch?.stop();
    clearTimeout(this.#retryTimer);
    clearTimeout(this.#statusTimer);
    clearTimeout(this.#namesTimer);
    clearTimeout(this.#patienceTimer);
    clearInterval(this.#currentTimer);
    this.#stopped = true;
    this.#health?.stop();
    this.#identity?.stop();
    this.#stream.stop();
    this.#compiler.close();
  }

  /** For `kmesh history`. A disk that takes nothing is no reason to stop anything. */
  #record(entry: Omit<Entry, "at" | "boot" | "pid"> & { pid?: number }): void {
    try {
      remember(this.#config.stateDir, { pid: process.pid, ...entry });
    } catch (error) {
      this.#log.warn(
        `${historyFile(this.#config.stateDir)} can't be written: ${error instanceof Error ? error.message : error}`,
      );
    }
  }

  /** The kernel takes the tables for stale when it hears this no more: without istiod nobody says which endpoints are gone. */
  #keepCurrent(): void {
    if (this.#stream.status().connected && !this.#behind) this.#grip?.datapath.keepCurrent();
  }

  /** Whether there is no address yet by which istiod could be told of this machine. */
  get #nameless(): boolean {
    return this.#addresses.length === 0 && this.#config.serviceIp === undefined;
  }

  /** Other addresses make another node of this machine: the agent begins anew, in this process, and nobody notices. */
  #watchAddresses(): void {
    if (this.#config.ips.length > 0) return;
    this.#addressWatch = new AddressWatch(this.#addresses, machineAddresses, (addresses) => {
      this.#log.info(
        `This machine's addresses are ${addresses.join(", ")} now, not ${this.#addresses.join(", ") || "none"}: ` +
          "the agent begins anew to tell istiod, what the kernel holds stays",
      );
      this.#end.resolve({ kind: "restart", command: [...selfCommand(), ...process.argv.slice(2)] });
    });
  }

  /** The certificate first. Without one the stream begins with the token: whoever refuses both says why. */
  async #connect(): Promise<void> {
    this.#watchAddresses();
    if (this.#nameless) {
      this.#log.warn(
        "This machine has no address that peers could reach, so istiod is not told of it yet. " +
          "It is as soon as there is one; --ip names one",
      );
      return;
    }
    try {
      await this.#identity?.begin();
    } catch (error) {
      this.#log.error(
        `A fault of kmesh, no certificate is asked for: ${error instanceof Error ? error.message : error}`,
      );
    }
    if (!this.#stopped) this.#stream.start();
  }

  /** Whoever has a token gets a certificate for it. */
  #openIdentity(config: Config): WorkloadIdentity | undefined {
    if (config.plaintext || config.ca === undefined || config.token === undefined) return undefined;
    const identity = new WorkloadIdentity({
      istiod: formatTarget(config.caServer ?? config.istiod),
      hosts: config.hosts,
      id: {
        trustDomain: config.trustDomain,
        namespace: config.namespace,
        serviceAccount: config.serviceAccount,
      },
      ca: config.ca,
      token: config.token,
      clusterId: config.clusterId,
      validity: config.certificateLife,
      store: new CertificateStore(join(config.stateDir, "identity")),
      on: (event) => this.#heardOfIdentity(event),
      renewed: () => this.#stream.renew(),
    });
    if (identity.status().certificate === undefined) requireReadable("--token", config.token);
    return identity;
  }

  /** The way to the compiler; for a machine that is registered it is looked for on that way. */
  #reflecting(node: Identity): ResourceSink {
    const [address] = node.ips;
    if (!this.#registration || address === undefined) return this.#compiler;
    return new Reflection(this.#compiler, address, (peers) => {
      if (this.#registration) this.#registration = { ...this.#registration, peers };
      this.#reporter.heardOfPeers(peers, this.#registration);
      this.#writeStatusWithin(STATUS_DELAY.news);
    });
  }

  /** istiod can be told only of a machine that it has a WorkloadEntry of; `kmesh status` tells in any case. */
  #openHealth(config: Config): HealthWatch | undefined {
    if (config.readinessProbe === undefined) return undefined;
    const probe = parseProbe(config.readinessProbe);
    return new HealthWatch({
      probe,
      address: config.probeLocalhost ? "localhost" : (this.#addresses[0] ?? "localhost"),
      on: (verdict) => {
        this.#reporter.heardOfHealth(verdict);
        if (this.#registration) this.#stream.report(verdict);
        this.#writeStatusWithin(STATUS_DELAY.news);
      },
    });
  }

  #heardOfIdentity(event: IdentityEvent): void {
    this.#reporter.heardOfIdentity(event);
    this.#writeStatusWithin(STATUS_DELAY.news);
  }

  /** Governs by the last good snapshot until istiod answers, unless it has by now. */
  #restore(): void {
    if (this.#mesh || !this.#grip) return;
    const found = this.#snapshots.load();
    if (!found) return;
    const { mesh, writtenAt } = found;
    try {
      const { writes, milliseconds } = this.#write(mesh, { everything: true });
      const appliedAt = new Date().toISOString();
      this.#mesh = mesh;
      this.#snapshot = { writtenAt: writtenAt.toISOString(), appliedAt, writes, milliseconds };
      this.#reporter.restored(mesh, this.#snapshot);
      this.#live.resolve();
    } catch (error) {
      // What it left half done is not attached, and istiod's first push compares all of it.
      this.#log.error(
        `The snapshot can't be made live: ${error instanceof Error ? error.message : error}. Waiting for istiod`,
      );
    }
  }

  #publish(mesh: Mesh, changes: Changes): void {
    this.#mesh = mesh;
    if (!this.#grip) {
      // Whoever takes the tables next compares everything.
      this.#behind = true;
      this.#noteSync(mesh);
      return;
    }
    this.#apply(this.#behind ? { everything: true } : changes);
  }

  #apply(changes: Changes): void {
    const mesh = this.#mesh;
    if (!mesh || !this.#grip) return;
    clearTimeout(this.#retryTimer);
    try {
      const { writes, milliseconds } = this.#write(mesh, changes);
      const now = new Date().toISOString();
      const first = this.#tables.firstApplyAt === undefined;
      this.#tables = {
        applies: this.#tables.applies + 1,
        writes: this.#tables.writes + writes,
        firstApplyAt: this.#tables.firstApplyAt ?? now,
        firstWrites: this.#tables.firstWrites ?? writes,
        lastApplyAt: now,
        lastWrites: writes,
        lastMilliseconds: milliseconds,
      };
      this.#behind = false;
      this.#snapshot = undefined;
      this.#snapshots.changed(mesh);
      this.#live.resolve();
      this.#reporter.applied(mesh, { first, writes, milliseconds });
    } catch (error) {
      // What was not written yet stays as it was; the mesh is tried again as a whole.
      this.#behind = true;
      this.#snapshots.hold();
      const reason = error instanceof Error ? error.message : String(error);
      this.#tables = { ...this.#tables, lastError: { at: new Date().toISOString(), text: reason } };
      this.#log.error(
        `istiod's push is not wholly live, the rest of the tables stays as it is: ${reason}. Next try in ${RETRY / 1000} s.`,
      );
      this.#retryTimer = setTimeout(() => this.#apply({ everything: true }), RETRY);
    }
    this.#writeStatusWithin(
      changes.everything || changes.services.size > 0 ? STATUS_DELAY.news : STATUS_DELAY.numbers,
    );
  }

  #write(mesh: Mesh, changes: Changes): ApplyReport {
    const grip = this.#grip;
    if (!grip) throw new Error("another agent has the tables");
    const { takesOver } = grip.datapath;
    const { relinked, ...report } = grip.datapath.apply(mesh, changes);
    this.#relinked += relinked;
    if (takesOver) grip.kept.watch();
    return report;
  }

  #heard(event: StreamEvent): void {
    this.#reporter.heard(event);
    if (event.kind === "connected" || event.kind === "disconnected") this.#progress?.(tell(event)[1]);
    this.#writeStatusWithin(event.kind === "committed" ? STATUS_DELAY.numbers : STATUS_DELAY.news);
  }

  /** Off the path from a push to live tables. */
  #writeStatusWithin(milliseconds: number): void {
    const due = performance.now() + milliseconds;
    if (this.#statusTimer !== undefined && this.#statusDue <= due) return;
    clearTimeout(this.#statusTimer);
    this.#statusDue = due;
    this.#statusTimer = setTimeout(() => this.#writeStatus(), milliseconds);
  }

  #writeStatus(): void {
    clearTimeout(this.#statusTimer);
    this.#statusTimer = undefined;
    const status = this.status();
    this.#audience.status(status);
    // The file is whose the tables are.
    if (!this.#grip) return;
    try {
      writeStatus(this.#config.runDir, status);
      this.#statusWarned = false;
    } catch (error) {
      // A full disk is no reason to stop serving, nor to say so at every write.
      this.#log[this.#statusWarned ? "debug" : "warn"](
        `the status can't be written to ${this.#config.runDir}: ${error instanceof Error ? error.message : error}`,
      );
      this.#statusWarned = true;
    }
  }
}

function securityOf(config: Config, identity: WorkloadIdentity | undefined): Security {
  if (config.plaintext || config.ca === undefined) return { kind: "plaintext" };
  return {
    kind: "tls",
    ca: config.ca,
    ...(config.token === undefined ? {} : { token: config.token }),
    ...(identity ? { identity } : {}),
  };
}
