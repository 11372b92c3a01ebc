/**
 * The daemon. It connects the modules: istiod's stream feeds the compiler, and the compiler's mesh goes to the data path.
 * Nothing here detaches or empties anything: an agent that fails, stops or dies leaves the kernel as it is.
 */

import { hostname } from "node:os";
import { Conflict } from "../admin/server.ts";
import { type AgentStatus, readStatus } from "../admin/status.ts";
import type { Config } from "../config/config.ts";
import { formatExclude } from "../config/exclude.ts";
import type { LevelledLog } from "../config/log.ts";
import { exemptSelfPinned } from "../datapath/generation/exempt-pinned.ts";
import { reasonOf } from "../errors/reason.ts";
import { type End, executedAnew, Restart } from "../handover/restart.ts";
import type { Succession } from "../handover/successor.ts";
import type { InboundSettings } from "../inbound/inbound.ts";
import { countRefusals } from "../inbound/refusals.ts";
import type { StreamEvent } from "../istiod/stream/status.ts";
import { ensureBpffs } from "../kernel/bpffs.ts";
import { mainFirst } from "../machine/address-watch.ts";
import { machineAddresses } from "../machine/addresses.ts";
import {
  enrolledCgroups,
  makeFolders,
  requireMachine,
  requirePrivate,
  warnOfUnits,
} from "../machine/machine.ts";
import { machineId } from "../machine/machine-id.ts";
import { wakeTunnel } from "../machine/tunnel/wake.ts";
import { WorkloadIndex } from "../mesh/workload.ts";
import type { NamesSettings } from "../names/status.ts";
import { isEmbedded } from "../runtime/assets.ts";
import { selfCommand } from "../runtime/self.ts";
import { version } from "../runtime/version.ts";
import { causeOfStart, type Entry, historyFile, readHistory, remember } from "../state/history.ts";
import { refuseUnknown } from "../state/manifest.ts";
import { SnapshotKeeper } from "../state/snapshot-writer.ts";
import { StatusFile } from "../state/status-file.ts";
import type { AgentNumbers } from "../telemetry/metrics/kmesh-metrics.ts";
import { readTunnels } from "../tunnel/process/status-file.ts";
import { ControlPlane } from "./control-plane.ts";
import { asPredecessor, asSuccessor, type HandoverContext } from "./handover-roles.ts";
import { LiveTables } from "./live-tables.ts";
import { Ownership } from "./ownership.ts";
import { type Differences, differences } from "./reload.ts";
import { Reporter, tell } from "./reporter.ts";
import { snapshotSettings } from "./snapshot-key.ts";
import { Sockets } from "./sockets.ts";
import { Telemetry } from "./telemetry.ts";

/** Callbacks of the agent's owner. */
export interface AgentListener {
  /** Called with each new status, at most twice a second. */
  status(status: AgentStatus): void;
  /** Reloads the configuration, as at SIGHUP. Returns the log line; throws when nothing was changed. */
  reload(): string;
  /** Another process has become the agent. */
  succeeded(pid: number): void;
}

export class Agent {
  #config: Config;
  readonly #log: LevelledLog;
  readonly #audience: AgentListener;
  readonly #addresses: string[];
  readonly #startedAt = new Date();
  readonly #reporter: Reporter;
  readonly #workloads = new WorkloadIndex();
  readonly #telemetry: Telemetry;
  readonly #controlPlane: ControlPlane;
  readonly #ownership: Ownership;
  readonly #snapshots: SnapshotKeeper;
  readonly #tables: LiveTables;
  readonly #statusFile: StatusFile;
  readonly #restart: Restart;
  readonly #sockets: Sockets;
  /** The socket on which a successor reports its progress. */
  #progress: ((text: string) => void) | undefined;
  readonly #end = Promise.withResolvers<End>();

  /** Checks the settings completely before the machine is touched. */
  private constructor(config: Config, log: LevelledLog, audience: AgentListener) {
    this.#config = config;
    this.#log = log;
    this.#audience = audience;
    this.#addresses =
      config.ips.length > 0
        ? config.ips
        : mainFirst(machineAddresses(), readStatus(config.runDir)?.node.addresses[0]);
    this.#telemetry = new Telemetry({
      config,
      addresses: this.#addresses,
      host: hostname(),
      workloads: this.#workloads,
      log,
      mesh: () => this.#tables.mesh,
      numbers: () => this.#numbers(),
      tunnels: () => readTunnels(this.#config.runDir),
      unready: () => this.#unready(),
    });
    const { units, excludes, netns, shadow } = config;
    this.#ownership = new Ownership({
      folders: config,
      governed: { cgroups: enrolledCgroups(config.cgroups), units, excludes, netns, shadow },
      names: namesSettings(config),
      inbound: inboundSettings(config),
      addresses: this.#addresses,
      log,
      isCurrent: () => this.#controlPlane.connected && !this.#tables.behind,
      onAcquired: (datapath) => this.#telemetry.open(datapath),
      onReleasing: () => this.#telemetry.close(),
      onFoldersRecreated: (paths) => this.#refill(paths),
      onLost: (holder) => this.#end.resolve({ kind: "lost", holder }),
      onNamesChanged: () => this.#statusFile.changed("news"),
      wakeTunnel: () => wakeTunnel(config),
    });
    warnOfUnits(config.units, log);
    this.#reporter = new Reporter(log);
    this.#statusFile = new StatusFile({
      runDir: config.runDir,
      log,
      status: () => this.status(),
      owns: () => this.#ownership.owns,
      heard: (status) => audience.status(status),
    });
    this.#controlPlane = new ControlPlane({
      config,
      workloads: this.#workloads,
      addresses: this.#addresses,
      log,
      reporter: this.#reporter,
      publish: (mesh, changes) => this.#tables.publish(mesh, changes),
      heard: (event) => this.#heard(event),
      changed: () => this.#statusFile.changed("news"),
      moved: () => this.#end.resolve(executedAnew()),
    });
    makeFolders(config);
    refuseUnknown(config.stateDir);
    ensureBpffs(config.bpffs);
    requirePrivate(config);
    this.#snapshots = new SnapshotKeeper(config.stateDir, machineId(), snapshotSettings(config), log, {
      owns: () => this.#ownership.owns,
    });
    this.#tables = new LiveTables({
      ownership: this.#ownership,
      snapshots: this.#snapshots,
      reporter: this.#reporter,
      log,
      changed: (urgency) => this.#statusFile.changed(urgency),
    });
    this.#sockets = new Sockets({
      config: () => this.#config,
      log,
      ownership: this.#ownership,
      tables: this.#tables,
      controlPlane: this.#controlPlane,
      telemetry: this.#telemetry,
      snapshots: this.#snapshots,
      status: () => this.status(),
      unready: () => this.#unready(),
      restart: (request, answer) => this.#restart.carryOut(request, answer),
      reload: () => this.#reloadByOrder(),
    });
    this.#restart = new Restart({
      log,
      holds: () => this.#ownership.datapath !== undefined,
      predecessor: () => asPredecessor(this.#party()),
      record: (entry) => this.#record(entry),
      reload: () => void this.#audience.reload(),
      end: (why) => this.#end.resolve(why),
    });
  }

  /**
   * Checks the machine, takes the locks, adopts or builds the tables, and connects to istiod. Rejects with Unsupported,
   * ConfigError, LockHeld, KernelError or an Error of one line. The process must then end; pinned state continues to work.
   */
  static async start(config: Config, log: LevelledLog, audience: AgentListener): Promise<Agent> {
    requireMachine(log);
    const agent = new Agent(config, log, audience);
    await agent.#tables.take();
    await agent.#sockets.serve();
    agent.#started();
    agent.#controlPlane.start();
    return agent;
  }

  /**
   * Succeeds a running agent. Rejects as `start`, and with an Error when the predecessor continues; this process must then
   * end.
   */
  static async succeed(
    config: Config,
    log: LevelledLog,
    audience: AgentListener,
    succession: Succession,
  ): Promise<Agent> {
    requireMachine(log);
    const agent = new Agent(config, log, audience);
    // Before the first connection. It needs no lock, because the entry is this process's own.
    exemptSelfPinned(config.bpffs);
    agent.#progress = (text) => succession.progress(text);
    agent.#controlPlane.start();
    try {
      agent.#ownership.prepare();
      await succession.take(asSuccessor(agent.#party()));
    } catch (error) {
      // Writes no file: all files belong to the other agent.
      agent.#quit();
      agent.#sockets.close();
      agent.#tables.release();
      throw error;
    }
    agent.#progress = undefined;
    agent.#statusFile.write();
    return agent;
  }

  /** Resolves when the tables hold a mesh: at once if they were adopted, otherwise with the first push. */
  get live(): Promise<void> {
    return this.#tables.live;
  }

  /** Resolves when this process must end: after `leave` if a successor runs, otherwise after `stop`. */
  get ended(): Promise<End> {
    return this.#end.promise;
  }

  /**
   * Applies the settings that can change while the agent runs; the others wait for the next start. Throws ConfigError,
   * KernelError or Conflict, and then nothing has changed.
   */
  reload(config: Config): Differences {
    if (this.#restart.isUnderWay || !this.#ownership.datapath)
      throw new Conflict("a hand-over is in progress: ask again when it has ended");
    const found = differences(this.#config, config);
    // Also when the names are equal: a cgroup that was made anew has another id.
    const cgroups = enrolledCgroups(config.cgroups);
    const { units, excludes, netns, shadow } = config;
    this.#ownership.govern(
      { cgroups, units, excludes, netns, shadow },
      namesSettings(config),
      inboundSettings(config),
    );
    const { dns, dnsExcludes, dnsTruncate, inbound, enforceEstablished, traffic, metrics, accessLog } =
      config;
    this.#config = {
      ...this.#config,
      ...{ cgroups: config.cgroups, units, excludes, netns, shadow },
      ...{ dns, dnsExcludes, dnsTruncate, inbound, enforceEstablished, traffic, metrics, accessLog },
    };
    this.#telemetry.configure(this.#config);
    this.#controlPlane.exclude(excludes);
    this.#statusFile.write();
    return found;
  }

  /** During a hand-over: lets the agent that results from it reload. Returns false without a hand-over. */
  postponeReload(): boolean {
    return this.#restart.postponeReload();
  }

  /** Stops the agent. Programs, maps and links stay pinned, so connections continue. */
  stop(): void {
    this.#restart.abandon();
    this.#quit();
    this.#sockets.close();
    if (!this.#ownership.datapath) return;
    this.#snapshots.close();
    this.#statusFile.write();
    this.#record({ kind: "stop", from: version, result: "done" });
    this.#tables.release();
  }

  /** Stops the agent after another one succeeded it or took the locks. Everything belongs to that one. */
  async leave(): Promise<void> {
    this.#quit();
    this.#snapshots.pause();
    await this.#sockets.finish();
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
      cgroups: this.#ownership.governed.cgroups,
      units: config.units,
      excludes: config.excludes.map(formatExclude),
      netns: config.netns,
      ...(this.#ownership.names ? { names: this.#ownership.names.status() } : {}),
      ...(this.#ownership.inbound ? { inbound: this.#ownership.inbound.status() } : {}),
      adopted: this.#ownership.adopted,
      ...(isEmbedded() ? { executable: selfCommand()[0] } : {}),
      ...this.#controlPlane.status(),
      ...this.#tables.status(),
    };
  }

  /** The reason, in one sentence, why istiod's configuration does not govern connections. */
  #unready(): string | undefined {
    const { datapath } = this.#ownership;
    if (!datapath?.attached) return "the hooks are not attached yet";
    return this.#controlPlane.synced ? undefined : "istiod has not sent its configuration yet";
  }

  #numbers(): Omit<AgentNumbers, "version"> {
    const kernel = this.#ownership.datapath?.vitals();
    const { tables } = this.#tables.status();
    return {
      connected: this.#controlPlane.connected,
      lastPush: tables.lastApplyAt ? Date.parse(tables.lastApplyAt) / 1000 : 0,
      pushes: tables.applies,
      writes: tables.writes,
      hooks: kernel?.hooks ?? [],
      tables: kernel?.tables ?? [],
      ejections: kernel?.ejections.ever ?? 0,
      ejected: kernel?.ejections.now.length ?? 0,
      inboundRefusals: countRefusals(this.#config.bpffs),
    };
  }

  /** Folders of this agent were removed. */
  #refill(paths: string[]): void {
    const { mesh, behind } = this.#tables;
    if (paths.includes(this.#config.stateDir) && mesh && !behind) this.#snapshots.changed(mesh);
    if (!paths.includes(this.#config.runDir)) return;
    this.#statusFile.write();
    if (this.#sockets.reachable) return;
    this.#sockets.close();
    this.#sockets.serve().catch((error) => this.#log.error(`the agent can't be asked: ${error.message}`));
  }

  #reloadByOrder(): string {
    if (this.#restart.isUnderWay)
      throw new Conflict("a hand-over is in progress: ask again when it has ended");
    return this.#audience.reload();
  }

  #started(): void {
    const { cause, from } = causeOfStart(readHistory(this.#config.stateDir));
    const { unfinished } = this.#ownership;
    this.#record({
      kind: "start",
      ...(from ? { from } : {}),
      to: version,
      result: "done",
      cause,
      ...(unfinished ? { unfinished } : {}),
    });
    const found = this.#ownership.datapath?.takesOver
      ? "foreign"
      : this.#ownership.adopted
        ? "own"
        : "nothing";
    this.#reporter.started(found, this.#config);
    this.#tables.begin();
    this.#statusFile.write();
  }

  #party(): HandoverContext {
    return {
      folders: this.#config,
      controlPlane: this.#controlPlane,
      ownership: this.#ownership,
      tables: this.#tables,
      snapshots: this.#snapshots,
      statusFile: this.#statusFile,
      serve: () => this.#sockets.serve(),
      isReachable: () => this.#sockets.reachable,
      succeeded: (pid) => this.#audience.succeeded(pid),
      end: (why) => this.#end.resolve(why),
    };
  }

  #heard(event: StreamEvent): void {
    this.#reporter.heard(event);
    if (event.kind === "connected" || event.kind === "disconnected") this.#progress?.(tell(event)[1]);
    this.#statusFile.changed(event.kind === "committed" ? "numbers" : "news");
  }

  #quit(): void {
    this.#telemetry.stop();
    this.#tables.stop();
    this.#statusFile.stop();
    this.#controlPlane.stop();
  }

  /** Adds an entry to `kmesh history`. A full disk does not stop the agent. */
  #record(entry: Omit<Entry, "at" | "boot" | "pid"> & { pid?: number }): void {
    try {
      remember(this.#config.stateDir, { pid: process.pid, ...entry });
    } catch (error) {
      this.#log.warn(`${historyFile(this.#config.stateDir)} can't be written: ${reasonOf(error)}`);
    }
  }
}

function namesSettings(config: Config): NamesSettings {
  const { cgroups, units, dns, dnsExcludes, dnsTruncate, shadow, netns } = config;
  const everybody = cgroups.includes("/") && units.length === 0;
  return {
    ...{ dns, excludes: dnsExcludes, truncate: dnsTruncate, shadow, everybody },
    forwarded: netns === "all",
  };
}

/** Shadow mode refuses no connection. */
function inboundSettings({ inbound, shadow, enforceEstablished }: Config): InboundSettings {
  return { enforce: inbound === "on" && !shadow, enforceEstablished };
}
