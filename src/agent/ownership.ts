/**
 * What one agent alone has at a time: the locks, the kernel's tables, and those that the version before left. An agent
 * lets go of it while another takes over, and takes it again when that one fails.
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
import { preloadAhead, selfTestAhead } from "../datapath/takeover.ts";
import { reasonOf } from "../errors/reason.ts";
import { InboundKeeper } from "../inbound/inbound.ts";
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
import { Locks } from "./locks.ts";

/** Between two looks at whether the hooks are still attached, milliseconds. */
const UPKEEP = 5_000;
/** How often the kernel is told that its tables follow istiod, milliseconds; it waits for ten times that. */
const CURRENT = 1_000;
/** Another agent's last moment with the tables, and a command's with what is pinned, milliseconds. */
const LOCKS_PATIENCE = { agent: 5_000, command: 500 } as const;

export interface OwnershipOptions {
  folders: Folders;
  governed: Governed;
  /** How queries for mesh names are answered. */
  names: NamesSettings;
  /** Whether inbound policies are enforced. */
  inbound: boolean;
  /** The machine's own. */
  addresses: string[];
  log: Log;
  /** The tables are this process's from now on, until `onReleasing`. */
  onAcquired?(datapath: Datapath): void;
  /** They are about to be closed. */
  onReleasing?(): void;
  /** Whether the tables follow istiod now: without it nobody says which endpoints are gone. */
  isCurrent(): boolean;
  /** These folders were lost, with all that was in them. */
  onFoldersRecreated(paths: string[]): void;
  /** Another process holds the locks, after somebody removed what they lay on: this one has to end. */
  onLost(holder: LockHeld): void;
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
  #enforceInbound: boolean;
  /** Absent before an agent takes over from another, and while another takes over from it. */
  #held: Held | undefined;
  #adopted = false;
  #unfinished: string | undefined;
  #before: AgentStatus | undefined;
  #tested: SelfTestResult | undefined;
  #preloaded: PreloadedPrograms | undefined;
  #currentTimer: ReturnType<typeof setInterval> | undefined;
  #foldersTimer: ReturnType<typeof setInterval> | undefined;
  /** Told once. */
  #trouble = "";

  /** Holds nothing yet. */
  constructor(options: OwnershipOptions) {
    this.#options = options;
    this.#governed = options.governed;
    this.#nameSettings = options.names;
    this.#enforceInbound = options.inbound;
  }

  /** The tables; undefined while another agent has them, or may have. */
  get datapath(): Datapath | undefined {
    return this.#held?.datapath;
  }

  /**
   * Whether this agent holds the locks, and with them all that is pinned and all files in its folders. False also while
   * another process holds a lock that somebody removed under this agent.
   */
  get owns(): boolean {
    return this.#held !== undefined && this.#held.locks.lockedElsewhere() === undefined;
  }

  /** Whether the tables were those of an earlier start when they were taken last. */
  get adopted(): boolean {
    return this.#adopted;
  }

  /** The step in whose middle the agent ended that had them before. */
  get unfinished(): string | undefined {
    return this.#unfinished;
  }

  /** What the agent that had them before left in the status file. */
  get before(): AgentStatus | undefined {
    return this.#before;
  }

  /** Who is enrolled and what is left alone, now and whenever the tables are taken again. */
  get governed(): Governed {
    return this.#governed;
  }

  /**
   * Proves and loads this build's programs while another agent has the tables, if they would take hooks over: its part is
   * not held up by that then. Throws SelfTestFailed or KernelError, and what governs goes on.
   */
  prepare(): void {
    const { folders, log } = this.#options;
    const { netns } = this.#governed;
    this.#tested = selfTestAhead({ bpffs: folders.bpffs, netns, ...told(log) });
    this.#preloaded = preloadAhead(folders.bpffs);
  }

  /** Takes locks and tables. What is pinned governs on, whatever this throws: LockHeld, UnknownManifest, KernelError, or an Error of one line. */
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
      const kept = new KeptGenerations(datapath, log);
      const names = new Names({
        bpffs: folders.bpffs,
        ...this.#nameSettings,
        ownsPins: () => locks.lockedElsewhere() === undefined,
        log: (line) => log.warn(line),
      });
      const inbound = new InboundKeeper({
        bpffs: folders.bpffs,
        enforce: this.#enforceInbound,
        ownsPins: () => locks.lockedElsewhere() === undefined,
        log: (line) => log.warn(line),
      });
      this.#held = { locks, manifest, datapath, names, inbound, kept };
      this.#adopted = datapath.adopted;
      // Before the first connection, or we would be sent through our own mesh.
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
   * The same when whoever has them is about to be gone: an agent, since a dead process's locks end a moment after its
   * sockets; or a command, which tells no pid. With `command` an agent is not waited for.
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

  /** Programs, tables and links stay pinned: connections go on as they are. */
  release(): void {
    clearInterval(this.#currentTimer);
    clearInterval(this.#foldersTimer);
    const held = this.#held;
    if (!held) return;
    held.kept.stop();
    try {
      // What another process owns by now is not to be touched, not even to end an access log.
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

  /** How queries for mesh names are answered; undefined as `datapath` is. */
  get names(): Names | undefined {
    return this.#held?.names;
  }

  /** Authorization of inbound connections; undefined as `datapath` is. */
  get inbound(): InboundKeeper | undefined {
    return this.#held?.inbound;
  }

  /** Takes effect at once. Throws KernelError, and everything stays as it was. */
  govern(governed: Governed, names: NamesSettings, enforceInbound: boolean): void {
    try {
      this.datapath?.govern(governed);
    } catch (error) {
      this.datapath?.govern(this.#governed);
      throw error;
    }
    this.#governed = governed;
    this.#nameSettings = names;
    this.names?.configure(names);
    this.#enforceInbound = enforceInbound;
    this.inbound?.configure({ enforce: enforceInbound });
  }

  /** Makes `mesh` what connections see; see Datapath.publish. Throws also when another agent has the tables. */
  publish(mesh: Mesh, changes: Changes): ReturnType<Datapath["publish"]> {
    const held = this.#held;
    if (!held || !this.owns) throw new Error("another agent has the tables");
    const { takesOver, attached: wasAttached } = held.datapath;
    try {
      const report = held.datapath.publish(mesh, changes);
      // Behind the frontends: a name leads to an address that is governed already.
      held.names.publish(mesh, changes);
      held.inbound.publish(mesh.inbound);
      return report;
    } finally {
      // Also when only what came behind the last hook failed.
      if (takesOver && !held.datapath.takesOver) held.kept.watch();
      if (wasAttached !== held.datapath.attached) this.#recordLinks();
    }
  }

  /**
   * Folders that somebody removed are made and locked again: another agent could start with them. When one did, this one
   * gives up all that it held and has to end: what is pinned, and every file, is the other's from then on.
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
        // A command may have it for a moment.
      } else if (again) {
        log.error(
          `This agent lost its locks, which somebody removed: ${text}. It ends and leaves everything as it is: the other agent goes on`,
        );
        this.release();
        onLost(error);
      }
    }
  }

  /** So that the next start finds them even where somebody mounts a bpffs over their pins. */
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
