/**
 * The daemon's life. It wires the rooms below: istiod's stream feeds the compiler, the compiler's mesh goes to the
 * data path. Nothing here detaches or empties anything: an agent that fails, stops or dies leaves the kernel as it is.
 */
import { join } from "node:path";
import { explainDestination } from "../admin/explain.ts";
import { AdminServer } from "../admin/server.ts";
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
import type { ApplyReport } from "../datapath/publisher.ts";
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
import { KernelNative } from "../kernel-native/kernel-native.ts";
import { Reflection } from "../kernel-native/reflection.ts";
import type { Changes, Mesh } from "../mesh/model.ts";
import { version } from "../runtime/version.ts";
import { shapeOf } from "./bond.ts";
import { type Config, formatExclude, requireReadable } from "./config.ts";
import { KeptGenerations } from "./kept-generations.ts";
import { Locks } from "./locks.ts";
import type { Log } from "./log.ts";
import { enrolledCgroups, machineAddresses, makeFolders, requireMachine, warnOfUnits } from "./machine.ts";
import { machineId } from "./machine-id.ts";
import { nodeIdentity, registrationOf } from "./node.ts";
import { type Differences, differences } from "./reload.ts";
import { meshStatusBefore, meshStatusOf, Reporter } from "./reporter.ts";
import { SnapshotKeeper } from "./snapshot-keeper.ts";
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

export class Agent {
  #config: Config;
  readonly #log: Log;
  readonly #locks: Locks;
  readonly #datapath: Datapath;
  readonly #snapshots: SnapshotKeeper;
  readonly #kept: KeptGenerations;
  readonly #compiler: KernelNative;
  readonly #identity: WorkloadIdentity | undefined;
  readonly #stream: IstiodStream;
  readonly #health: HealthWatch | undefined;
  #registration: RegistrationStatus | undefined;
  readonly #reporter: Reporter;
  readonly #startedAt = new Date();
  readonly #addresses: string[];
  #cgroups: string[];
  #admin: AdminServer | undefined;
  /** What the agent before this one left in the status file. */
  readonly #before: AgentStatus | undefined;
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
  readonly #told: (status: AgentStatus) => void;
  readonly #live = Promise.withResolvers<void>();

  /** All that can be wrong with the settings is found before the machine is touched. */
  private constructor(config: Config, log: Log, told: (status: AgentStatus) => void) {
    this.#config = config;
    this.#log = log;
    this.#told = told;
    this.#addresses = config.ips.length > 0 ? config.ips : machineAddresses();
    this.#cgroups = enrolledCgroups(config.cgroups);
    warnOfUnits(config.units, log);
    this.#reporter = new Reporter(log);
    this.#compiler = new KernelNative({
      allowPlaintext: config.allowPlaintext,
      publish: (mesh, changes) => this.#publish(mesh, changes),
    });
    this.#identity = this.#openIdentity(config);
    const node = nodeIdentity(config, this.#addresses);
    this.#registration = registrationOf(node);
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
    this.#locks = Locks.acquire(config);
    this.#before = readStatus(config.runDir);
    this.#datapath = Datapath.open({
      bpffs: config.bpffs,
      cgroups: this.#cgroups,
      units: config.units,
      excludes: config.excludes,
      netns: config.netns,
      shadow: config.shadow,
      nodeAddresses: this.#addresses,
      upkeep: UPKEEP,
      log: (line) => log.info(line),
    });
    this.#kept = new KeptGenerations(this.#datapath, log);
    this.#snapshots = new SnapshotKeeper(config.stateDir, machineId(), shapeOf(config), log);
    if (this.#datapath.governs) this.#snapshot = this.#before?.snapshot;
    // Before the first connection, or we would be sent through our own mesh.
    this.#datapath.exemptSelf();
  }

  /**
   * Checks the machine, takes the locks, adopts or builds the tables, and begins to talk to istiod.
   * Rejects with Unsupported, ConfigError, LockHeld, KernelError or an Error of one line: this process has to end
   * then, and what was pinned before works on.
   * `told` gets each new status, half a second after the news at the earliest.
   */
  static async start(
    config: Config,
    log: Log,
    told: (status: AgentStatus) => void = () => {},
  ): Promise<Agent> {
    requireMachine(log);
    const agent = new Agent(config, log, told);
    await agent.#begin();
    return agent;
  }

  /** Resolves as soon as the tables hold a mesh: at once when they were adopted, else with the first push. */
  get live(): Promise<void> {
    return this.#live.promise;
  }

  /**
   * Takes over what can change under running connections; the rest stays as it was until the next start.
   * Throws ConfigError or KernelError, and all stays as it was.
   */
  reload(config: Config): Differences {
    const found = differences(this.#config, config);
    const before = { ...this.#config, cgroups: this.#cgroups };
    // Also when their names are the same: a cgroup that was made anew is another one.
    const cgroups = enrolledCgroups(config.cgroups);
    const { units, excludes, netns, shadow } = config;
    try {
      this.#datapath.govern({ cgroups, units, excludes, netns, shadow });
    } catch (error) {
      this.#datapath.govern(before);
      throw error;
    }
    this.#cgroups = cgroups;
    this.#config = { ...this.#config, cgroups: config.cgroups, units, excludes, netns, shadow };
    this.#writeStatus();
    return found;
  }

  /** Ends the process's part. Programs, maps and links stay pinned: connections go on as they are. */
  stop(): void {
    clearTimeout(this.#retryTimer);
    clearInterval(this.#currentTimer);
    clearTimeout(this.#patienceTimer);
    this.#kept.stop();
    this.#stopped = true;
    this.#health?.stop();
    this.#identity?.stop();
    this.#stream.stop();
    this.#compiler.close();
    this.#admin?.close();
    this.#snapshots.close();
    this.#writeStatus();
    this.#datapath.close();
    this.#locks.release();
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
      adopted: this.#datapath.adopted,
      ...(this.#identity ? { identity: this.#identity.status() } : {}),
      ...(this.#registration ? { registration: this.#registration } : {}),
      ...(this.#health ? { health: this.#health.status() } : {}),
      ...(this.#snapshot ? { snapshot: this.#snapshot } : {}),
      stream: this.#stream.status(),
      tables: this.#tables,
      mesh: this.#mesh
        ? { ...meshStatusOf(this.#mesh), current: this.#snapshot === undefined }
        : meshStatusBefore(this.#datapath.adopted ? this.#before?.mesh : undefined),
    };
  }

  async #begin(): Promise<void> {
    this.#admin = await AdminServer.listen(adminSocket(this.#config.runDir), {
      "/agent": () => this.status(),
      "/config": () => settingValues(this.#config),
      "/status": () => ({ agent: this.status(), kernel: this.#datapath.summarize() }),
      "/dump/received": () => this.#compiler.describe(),
      "/dump/model": () => this.#mesh ?? null,
      "/dump/tables": () => this.#datapath.inspect(),
      "/explain": (query) => explainDestination(this.#config.bpffs, query.get("target") ?? "", this.#mesh),
    });
    const { adopted, governs, takesOver } = this.#datapath;
    this.#reporter.started(takesOver ? "foreign" : adopted ? "own" : "nothing", this.#config);
    if (takesOver) this.#patienceTimer = setTimeout(() => this.#restore(), ISTIOD_PATIENCE);
    if (governs) this.#live.resolve();
    else this.#restore();
    this.#kept.watch();
    this.#currentTimer = setInterval(() => this.#keepCurrent(), CURRENT);
    this.#writeStatus();
    this.#health?.start();
    void this.#connect();
  }

  /** The kernel takes the tables for stale when it hears this no more: without istiod nobody says which endpoints are gone. */
  #keepCurrent(): void {
    if (this.#stream.status().connected && !this.#behind) this.#datapath.keepCurrent();
  }

  /** The certificate first. Without one the stream begins with the token: whoever refuses both says why. */
  async #connect(): Promise<void> {
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
    if (this.#mesh) return;
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
    this.#apply(this.#behind ? { everything: true } : changes);
  }

  #apply(changes: Changes): void {
    const mesh = this.#mesh;
    if (!mesh) return;
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
    const { takesOver } = this.#datapath;
    const report = this.#datapath.apply(mesh, changes);
    if (takesOver) this.#kept.watch();
    return report;
  }

  #heard(event: StreamEvent): void {
    this.#reporter.heard(event);
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
    this.#told(status);
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
