/**
 * Exclusive ownership of the locks, the kernel's tables, and the previous version's tables. An agent releases it during a
 * hand-over, and acquires it again if the successor fails.
 */

import { type AgentStatus, readStatus } from "../admin/status.ts";
import type { Folders } from "../config/config.ts";
import type { Log } from "../config/log.ts";
import { Datapath, type DatapathOptions } from "../datapath/datapath.ts";
import { generationStateAt } from "../datapath/generation/generation-state.ts";
import { pinHiddenLinks } from "../datapath/generation/hidden-links.ts";
import type { PreloadedPrograms } from "../datapath/generation/preload.ts";
import type { SelfTestResult } from "../datapath/generation/self-test.ts";
import type { Governed } from "../datapath/governed.ts";
import { enrolmentTest } from "../datapath/tables/enrolment.ts";
import { preloadAhead, selfTestAhead } from "../datapath/takeover.ts";
import { reasonOf } from "../errors/reason.ts";
import { InboundKeeper, type InboundSettings } from "../inbound/inbound.ts";
import { LockHeld } from "../kernel/lock.ts";
import { makeFolders } from "../machine/machine.ts";
import { machineId } from "../machine/machine-id.ts";
import type { Changes, Mesh } from "../mesh/model.ts";
import { Names } from "../names/names.ts";
import type { NamesSettings } from "../names/status.ts";
import { bootId } from "../state/history.ts";
import { linksInManifest, Manifest } from "../state/manifest.ts";
import { recover } from "../state/recovery.ts";
import { KeptGenerations } from "../state/retention.ts";
import { readTunnels } from "../tunnel/process/status-file.ts";
import { Locks } from "./locks.ts";

/** Interval of the check that hooks are attached, milliseconds. */
const UPKEEP = 5_000;
/** Interval at which the kernel is marked as in sync with istiod, milliseconds. The mark expires after ten intervals. */
const CURRENT = 1_000;
/** Longest waits for a previous agent and for a command to release the tables, milliseconds. */
const LOCKS_PATIENCE = { agent: 5_000, command: 500 } as const;

export interface OwnershipOptions {
  folders: Folders;
  governed: Governed;
  /** Settings for mesh names. */
  names: NamesSettings;
  /** Whether inbound policies are enforced, on new connections and on established ones. */
  inbound: InboundSettings;
  /** The machine's addresses. */
  addresses: string[];
  log: Log;
  /** Called when this process has acquired the tables. */
  onAcquired?(datapath: Datapath): void;
  /** Called before the tables are closed. */
  onReleasing?(): void;
  /** Whether the tables follow istiod now. Otherwise nobody reports removed endpoints. */
  isCurrent(): boolean;
  /** Called with folders that were removed with their content. */
  onFoldersRecreated(paths: string[]): void;
  /** Called when another process holds the locks, because their folders were removed: this process must end. */
  onLost(holder: LockHeld): void;
  /** Called when the status of mesh names has changed. */
  onNamesChanged(): void;
  /** A service port needs the tunnel, and no tunnel has offered its listener yet. */
  wakeTunnel(): void;
}

interface Held {
  locks: Locks;
  manifest: Manifest;
  datapath: Datapath;
  names: Names;
  inbound: InboundKeeper;
  kept: KeptGenerations;
}

export class Ownership {
  readonly #options: OwnershipOptions;
  #governed: Governed;
  #nameSettings: NamesSettings;
  #inboundSettings: InboundSettings;
  /** Absent in a successor before it acquires, and in a predecessor after it releases. */
  #held: Held | undefined;
  #adopted = false;
  #unfinished: string | undefined;
  #before: AgentStatus | undefined;
  #tested: SelfTestResult | undefined;
  #preloaded: PreloadedPrograms | undefined;
  #currentTimer: ReturnType<typeof setInterval> | undefined;
  #foldersTimer: ReturnType<typeof setInterval> | undefined;
  /** Logged once. */
  #trouble = "";

  /** Acquires nothing yet. */
  constructor(options: OwnershipOptions) {
    this.#options = options;
    this.#governed = options.governed;
    this.#nameSettings = options.names;
    this.#inboundSettings = options.inbound;
  }

  /** The tables; undefined while another agent may own them. */
  get datapath(): Datapath | undefined {
    return this.#held?.datapath;
  }

  /**
   * Whether this agent holds the locks, and thereby owns all pins and all files in its folders. Also false while another
   * process holds a lock whose folder was removed under this agent.
   */
  get owns(): boolean {
    return this.#held !== undefined && this.#held.locks.lockedElsewhere() === undefined;
  }

  /** Whether the last acquisition adopted existing tables. */
  get adopted(): boolean {
    return this.#adopted;
  }

  /** The step that the previous owner did not finish. */
  get unfinished(): string | undefined {
    return this.#unfinished;
  }

  /** The status file of the previous owner. */
  get before(): AgentStatus | undefined {
    return this.#before;
  }

  /** Enrolment and exclusions, applied now and at each acquisition. */
  get governed(): Governed {
    return this.#governed;
  }

  /**
   * Tests and loads this build's programs while another agent still owns the tables, if a flip is ahead. The pause of the
   * hand-over is shorter then. Throws SelfTestFailed or KernelError; the live generation stays.
   */
  prepare(): void {
    const { folders, log } = this.#options;
    const { netns } = this.#governed;
    this.#tested = selfTestAhead({ bpffs: folders.bpffs, netns, ...told(log) });
    this.#preloaded = preloadAhead(folders.bpffs);
  }

  /** Acquires locks and tables. Throws LockHeld, UnknownManifest, KernelError, or an Error of one line; pinned state stays live. */
  acquire(): void {
    const { folders, addresses, log } = this.#options;
    const locks = Locks.acquire(folders);
    let datapath: Datapath | undefined;
    try {
      this.#before = readStatus(folders.runDir);
      for (const line of pinHiddenLinks(
        folders.bpffs,
        linksInManifest(folders.stateDir, machineId(), bootId()),
      ))
        log.warn(line);
      const manifest = Manifest.open(folders.stateDir, machineId(), generationStateAt(folders.bpffs), log);
      datapath = Datapath.open({
        bpffs: folders.bpffs,
        ...this.#governed,
        nodeAddresses: addresses,
        upkeep: UPKEEP,
        ownsPins: () => locks.lockedElsewhere() === undefined,
        ...(this.#tested ? { tested: this.#tested } : {}),
        ...(this.#preloaded ? { preloaded: this.#preloaded } : {}),
        announce: (step) => {
          if (locks.lockedElsewhere() === undefined) manifest.announce(step);
        },
        ...told(log),
      });
      this.#preloaded?.close();
      const opened = datapath;
      const kept = new KeptGenerations(datapath, log);
      const names = new Names({
        bpffs: folders.bpffs,
        ...this.#nameSettings,
        ownsPins: () => locks.lockedElsewhere() === undefined,
        changed: () => this.#options.onNamesChanged(),
        isEnrolled: (cgroup) => enrolmentTest(opened.tables)(cgroup),
        log: (line) => log.warn(line),
      });
      const inbound = new InboundKeeper({
        bpffs: folders.bpffs,
        ...this.#inboundSettings,
        tunnels: () => readTunnels(folders.runDir).flatMap(({ pid, workers = [] }) => [pid, ...workers]),
        ownsPins: () => locks.lockedElsewhere() === undefined,
        log: (line) => log.warn(line),
        wakeTunnel: () => this.#options.wakeTunnel(),
      });
      this.#held = { locks, manifest, datapath, names, inbound, kept };
      this.#adopted = datapath.adopted;
      // Before the first connection of this process, or the mesh would redirect it.
      datapath.exemptSelf();
      this.#options.onAcquired?.(datapath);
      this.#unfinished = recover(manifest, datapath, log);
      const since = manifest.account.kept?.since;
      kept.watch(since === undefined ? undefined : Date.parse(since));
      this.#recordLinks();
      this.#currentTimer = setInterval(() => this.#keepCurrent(), CURRENT);
      this.#foldersTimer = setInterval(() => this.#keepFolders(), UPKEEP);
    } catch (error) {
      if (this.#held) {
        this.release();
      } else {
        datapath?.close();
        locks.release();
      }
      throw error;
    }
  }

  /**
   * The same, but waits for a holder that is about to end: an agent, because the locks of a dead process end a moment after
   * its sockets, or a command, which writes no pid. With `command` it does not wait for an agent.
   */
  async acquireWithin(holder: "agent" | "command"): Promise<void> {
    const until = performance.now() + LOCKS_PATIENCE[holder];
    for (;;) {
      try {
        this.acquire();
        return;
      } catch (error) {
        if (!(error instanceof LockHeld) || performance.now() > until) throw error;
        if (holder === "command" && error.pid !== undefined) throw error;
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
    }
  }

  /** Releases everything. Programs, tables and links stay pinned, so connections continue. */
  release(): void {
    clearInterval(this.#currentTimer);
    clearInterval(this.#foldersTimer);
    const held = this.#held;
    if (!held) return;
    held.kept.stop();
    try {
      // Another process may own the state by now, so even the access log is not ended.
      if (held.locks.lockedElsewhere() === undefined) this.#options.onReleasing?.();
    } catch (error) {
      this.#options.log.warn(`while the tables were released: ${reasonOf(error)}`);
    } finally {
      this.#held = undefined;
      held.names.close();
      held.inbound.close();
      held.datapath.close();
      held.locks.release();
    }
    this.#trouble = "";
  }

  /** The names tables; undefined as `datapath` is. */
  get names(): Names | undefined {
    return this.#held?.names;
  }

  /** The inbound policies; undefined as `datapath` is. */
  get inbound(): InboundKeeper | undefined {
    return this.#held?.inbound;
  }

  /** Applies enrolment and exclusions at once. Throws KernelError, and then nothing has changed. */
  govern(governed: Governed, names: NamesSettings, inbound: InboundSettings): void {
    try {
      this.datapath?.govern(governed);
    } catch (error) {
      this.datapath?.govern(this.#governed);
      throw error;
    }
    this.#governed = governed;
    this.#nameSettings = names;
    this.names?.configure(names);
    this.#inboundSettings = inbound;
    this.inbound?.configure(inbound);
  }

  /** Publishes `mesh`; see Datapath.publish. Also throws when another agent owns the tables. */
  publish(mesh: Mesh, changes: Changes): ReturnType<Datapath["publish"]> {
    const held = this.#held;
    if (!held || !this.owns) throw new Error("another agent has the tables");
    const { takesOver, attached: wasAttached } = held.datapath;
    try {
      const report = held.datapath.publish(mesh, changes);
      // After the frontends, so that a name never leads to an address that is not governed yet.
      held.names.publish(mesh, changes);
      held.inbound.publish(mesh.inbound);
      return report;
    } finally {
      // Also when only a step after the last hook failed.
      if (takesOver && !held.datapath.takesOver) held.kept.watch();
      if (wasAttached !== held.datapath.attached) this.#recordLinks();
    }
  }

  /**
   * Creates and locks removed folders again, because another agent could start with them. If one did, this agent releases
   * everything and must end: all pins and files then belong to the other agent.
   */
  #keepFolders(): void {
    const { folders, log, onFoldersRecreated, onLost } = this.#options;
    if (!this.#held) return;
    try {
      const taken = this.#held.locks.lockedElsewhere();
      if (taken) throw taken;
      makeFolders(folders);
      const paths = this.#held.locks.renew();
      for (const path of paths)
        log.warn(`${path} was removed under this agent; it is there and locked again`);
      if (paths.length > 0) onFoldersRecreated(paths);
      this.#recordLinks();
      this.#held.manifest.keep();
      this.#trouble = "";
    } catch (error) {
      const text = reasonOf(error);
      const again = text === this.#trouble;
      this.#trouble = text;
      if (!(error instanceof LockHeld)) {
        if (!again) log.error(text);
        // A command may hold it for a moment.
      } else if (again) {
        log.error(
          `This agent lost its locks, which somebody removed: ${text}. It ends and leaves everything as it is: the other agent goes on`,
        );
        this.release();
        onLost(error);
      }
    }
  }

  /** Records the link ids, so that the next start finds the links even if a mount hides their pins. */
  #recordLinks(): void {
    if (this.#held) this.#held.manifest.recordLinks(this.#held.datapath.linkIds, bootId());
  }

  #keepCurrent(): void {
    if (this.#options.isCurrent()) this.#held?.datapath.keepCurrent();
  }
}

function told(log: Log): Pick<DatapathOptions, "log" | "warn"> {
  return { log: (line) => log.info(line), warn: (line) => log.warn(line) };
}
