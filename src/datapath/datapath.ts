/** The data path as the agent sees it: opened once, given meshes, closed without a trace in the traffic. */

import { reasonOf } from "../errors/reason.ts";
import { cgroup2Root } from "../kernel/cgroup.ts";
import { monotonic } from "../kernel/clock.ts";
import { waitForGracePeriod } from "../kernel/grace-period.ts";
import type { Hook } from "../kernel/link.ts";
import type { Changes, Mesh } from "../mesh/model.ts";
import { ClosedSockets } from "./generation/closed-sockets.ts";
import { Generation, governedByOthers } from "./generation/generation.ts";
import { generationStateAt } from "./generation/generation-state.ts";
import type { LinkIds } from "./generation/hidden-links.ts";
import { PreloadedPrograms } from "./generation/preload.ts";
import { type Code, ownCode } from "./generation/programs.ts";
import {
  removeDeadSelfTests,
  SelfTestFailed,
  type SelfTestResult,
  selfTest,
} from "./generation/self-test.ts";
import type { Announce, GenerationName, Step } from "./generation/step.ts";
import { type Damage, formatFaults } from "./inspect/damage.ts";
import { type Inspection, inspectTables, type Summary, summarizeTables } from "./inspect/inspect.ts";
import { isOwnNetns } from "./inspect/preexisting-connections.ts";
import { formatReconciliation, reconcileLive } from "./inspect/reconcile.ts";
import { type ApplyReport, Publisher } from "./mesh-tables/publisher.ts";
import { type Exclusion, enrol, exclude, exemptSelf, governNetns } from "./tables/enrolment.ts";
import type { Tables } from "./tables/tables.ts";
import { type Totals, totalsOf } from "./tables/totals.ts";

/** Who is governed, and whether in earnest. */
export interface Governed {
  /** Enrolled: these cgroup2 folders and what is below them. */
  cgroups: string[];
  /** Enrolled too: these systemd units, by their whole names, whichever cgroup they have. */
  units: string[];
  excludes: Exclusion[];
  netns: "own" | "all";
  /** Decide and count, change nothing. */
  shadow: boolean;
}

export interface DatapathOptions extends Governed {
  /** Folder on a bpffs for the pins. */
  bpffs: string;
  /** What source hashing takes for sockets that have no address yet. */
  nodeAddresses: string[];
  /**
   * Looks after what is attached, so often in milliseconds: hooks that somebody detached are attached again, and live
   * counts are put right at the start. Absent: neither.
   */
  upkeep?: number;
  /** Asked before pins are repaired and before the last writes: whether this process still owns them. Absent: it does. */
  ownsPins?(): boolean;
  /** What `Datapath.selfTest` gave before, so that it need not be done again. */
  tested?: SelfTestResult;
  /** What `Datapath.preloaded` gave before. */
  preloaded?: PreloadedPrograms;
  /** Hears of each step between two generations before it is taken. */
  announce?: Announce;
  log(line: string): void;
  /** Of what should not stay so; absent: goes to `log`. */
  warn?(line: string): void;
}

/** Between two looks for sockets whose connections have ended, milliseconds; and what a look may take of that, a share. */
const CLOSED_EVERY = 1_000;
const CLOSED_SHARE = 0.02;

/** Between two tries of programs that failed their probe, milliseconds; each waits twice as long. */
const PROBE_RETRY = { first: 5_000, longest: 300_000 };

export class Datapath {
  readonly #options: DatapathOptions;
  /** What holds from the moment on at which connections read this generation. */
  #governed: Governed;
  readonly #generation: Generation;
  /** Absent until the tables that were found are read, and after a write that failed halfway. */
  #publisher: Publisher | undefined;
  #attached: boolean;
  /** There is more to be removed than a push will say. */
  #untidy = false;
  #upkeep: ReturnType<typeof setInterval> | undefined;
  #closedTimer: ReturnType<typeof setTimeout> | undefined;
  /** Loaded when it is first wanted; null when this kernel does not take it. */
  #closedSockets: ClosedSockets | null | undefined;
  /** Set until live counts are compared with the sockets: whether sock_release had been gone. */
  #uncompared: boolean | undefined;
  #closed = false;
  /** What upkeep could not do, told once. */
  #trouble = "";
  readonly #code: Code;
  /** That these programs may take the hooks over. */
  #tested: SelfTestResult | undefined;
  /** They may not, and when to try again: by performance.now(). */
  #flaw: { error: SelfTestFailed; until: number; wait: number } | undefined;

  private constructor(options: DatapathOptions, generation: Generation, code: Code) {
    this.#options = options;
    this.#governed = options;
    this.#generation = generation;
    this.#code = code;
    this.#tested = options.tested;
    // Programs that were not proved yet wait for the first push, for all hooks.
    const mends = generation.others !== "live" && generation.live && !generation.replaces;
    const lost = mends ? this.#relink() : [];
    this.#attached = generation.attached;
    if (!generation.adopted) this.#publisher = this.#publish();
    if (options.upkeep === undefined) return;
    this.#upkeep = setInterval(() => this.#lookAfter(), options.upkeep);
    this.#upkeep.unref?.();
    this.#lookForClosed(CLOSED_EVERY);
    if (generation.adopted) this.#uncompared = lost.includes("sock_release");
  }

  /**
   * Adopts what is pinned below `options.bpffs`, or builds empty tables; attaches nothing yet. Settings (enrolment,
   * exclusions, shadow) take effect at once, or while the tables of another version govern, when these take over.
   * Throws KernelError, and Error for a pin that is none of ours and for a cgroup or namespace that can't be governed;
   * what was pinned before keeps working. `code` is what runs, this build's own but in tests.
   */
  static open(options: DatapathOptions, code: Code = ownCode()): Datapath {
    removeDeadSelfTests();
    const generation = Generation.open(options.bpffs, options.announce, options.log, code, options.preloaded);
    try {
      const { tables } = generation;
      if (generation.others !== "live") govern(tables, options);
      tables.settings.setNodeAddresses(options.nodeAddresses);
      return new Datapath(options, generation, code);
    } catch (error) {
      generation.close();
      throw error;
    }
  }

  /**
   * Proves this build's programs if they would take hooks over from others: undefined when they would not. Needs no lock
   * and changes nothing. Throws SelfTestFailed.
   */
  static selfTest(
    options: Pick<DatapathOptions, "bpffs" | "netns" | "log" | "warn">,
  ): SelfTestResult | undefined {
    const { bpffs, netns } = options;
    const code = ownCode();
    if (!governedByOthers(bpffs, code)) return undefined;
    const tested = selfTest(bpffs, code, netns);
    formatSelfTest(tested, options);
    return tested;
  }

  /**
   * Loads this build's programs if they would take hooks over from others: undefined when they would not. Needs no lock,
   * and nothing is left of it but what is given, which `close` ends. Throws KernelError.
   */
  static preloaded(bpffs: string): PreloadedPrograms | undefined {
    const code = ownCode();
    return governedByOthers(bpffs, code) ? PreloadedPrograms.load(bpffs, code) : undefined;
  }

  /** What these tables and programs are called beside those of other versions. */
  get name(): GenerationName {
    return this.#generation.name;
  }

  /** True when tables from an earlier start were found and are in use. */
  get adopted(): boolean {
    return this.#generation.adopted;
  }

  /** The kernel's numbers of the links that run, whichever generation's programs they run. */
  get linkIds(): LinkIds {
    return this.#generation.linkIds;
  }

  /** Whether connections are being governed by this generation. */
  get attached(): boolean {
    return this.#attached;
  }

  /**
   * Whether what an earlier start pinned governs, be it of this version or another. False after a reboot, and when that
   * start ended before its hooks were all attached.
   */
  get governs(): boolean {
    return this.takesOver || (this.#generation.adopted && this.#generation.linked);
  }

  /** Whether the tables of another version govern, until the first `apply` has filled these. */
  get takesOver(): boolean {
    return this.#generation.others === "live";
  }

  /** Layouts of other versions' tables that lie beside and don't govern. */
  get kept(): string[] {
    return this.#generation.keptLayouts;
  }

  /** Removes what is kept of another version: no way back to it is left but by filling it anew. */
  removeKept(layout: string): void {
    this.#removeOther(layout);
    this.#untidy = true;
  }

  /** Removes what a flip to these programs left that was cut short behind its last hook. Before that it does nothing. */
  finishFlip(): void {
    this.#generation.finishFlip();
  }

  /**
   * Other settings from now on, for new connections. Throws as `open`, and some may have changed then: call it again
   * with those from before.
   */
  govern(governed: Governed): void {
    if (!this.takesOver) govern(this.#generation.tables, governed);
    this.#governed = governed;
  }

  /**
   * Reads the tables that were found, unless that is done. The first `apply` does it otherwise: call this when nothing
   * waits. Throws KernelError or RangeError for tables that can't be read.
   */
  readBack(): void {
    this.#publisher ??= this.#readBack();
  }

  /** Keeps this process's own connections out of the mesh. Call it before the first one. */
  exemptSelf(): void {
    exemptSelf(this.#generation.tables.maps.agents);
  }

  /**
   * Makes `mesh` what connections see, then, the first time, attaches the hooks or takes them over from another version,
   * whose tables govern unchanged until then. `changes` names what may differ from the mesh before.
   *
   * Programs that take hooks over are proved first. When they don't work the hooks stay as they are: throws SelfTestFailed if
   * another version's tables govern, and gives it as `flaw` if it is these tables, which are written then. Throws
   * KernelError (out of memory, say): what was not written yet stays as it was, and the next call, which compares
   * everything whatever its `changes` say, mends the rest.
   */
  apply(mesh: Mesh, changes: Changes): ApplyReport & { relinked: number; flaw?: SelfTestFailed } {
    const flaw = this.#attached ? undefined : this.#findFlaw();
    if (flaw && this.takesOver) throw flaw;
    if (!this.#attached && !flaw) this.#announce("fill");
    const report = this.#write(mesh, this.#untidy ? { everything: true } : changes);
    this.#untidy = false;
    if (flaw) return { ...report, relinked: 0, flaw };
    const relinked = this.#attached ? 0 : this.#attach(mesh);
    // Not before: it takes a while, and nobody waits for it.
    if (this.#uncompared !== undefined) setTimeout(() => this.#compareOnce(), 0);
    return { ...report, relinked };
  }

  /** The kernel's count of connections, over all services. */
  totals(): Totals {
    return totalsOf(this.#generation.tables.serviceCounts);
  }

  /**
   * Says that the tables follow istiod. Ten seconds after the last time they are stale, and every cluster leaves out
   * endpoints whose connects fail.
   */
  keepCurrent(): void {
    this.#generation.tables.settings.set("current_ns", monotonic());
  }

  /** The tables, for who reads counters: they stay the data path's, which closes them. */
  get tables(): Tables {
    return this.#generation.tables;
  }

  /** Takes connections that have ended out of the live counts, though apps still hold their sockets. Throws KernelError. */
  uncountClosed(): void {
    this.#closedSockets ??= ClosedSockets.open(this.#generation.tables);
    this.#closedSockets.uncount();
  }

  inspect(): Inspection {
    return inspectTables(this.#options.bpffs, this.#generation.tables);
  }

  /** The same without the long lists: cheap enough to ask for at any time. */
  summarize(): Summary {
    return summarizeTables(this.#options.bpffs, this.#generation.tables);
  }

  /** What somebody did to the pins, as far as it is not put right yet. */
  damage(): Damage[] {
    const { bpffs } = this.#options;
    const faults = this.#generation.pinFaults(this.#attached);
    const trouble =
      this.#trouble === ""
        ? []
        : [
            {
              what: this.#trouble,
              consequence: "it stays as it is",
              cure: "what it says; the agent tries again every 5 s",
            },
          ];
    return [...formatFaults(bpffs, faults), ...trouble];
  }

  /**
   * Closes descriptors. Programs, tables and links stay pinned: connections go on as they are. Programs that failed their
   * self-test are unpinned. When the pins are another process's, nothing is written.
   */
  close(): void {
    clearInterval(this.#upkeep);
    clearTimeout(this.#closedTimer);
    this.#closedSockets?.close();
    this.#closed = true;
    if (this.#ownsPins) {
      this.#publisher?.close();
      // What was unpinned since the last look would end with this process's descriptors.
      if (this.#options.upkeep !== undefined) this.#repinLast();
      if (this.#flaw) this.#generation.discard();
    } else this.#publisher?.abandon();
    this.#generation.close();
  }

  #write(mesh: Mesh, changes: Changes): ApplyReport {
    try {
      if (this.#publisher) return this.#publisher.apply(mesh, changes);
      this.#publisher = this.#readBack();
      return this.#publisher.apply(mesh, { everything: true });
    } catch (error) {
      // How far it came, only the tables know.
      this.#publisher?.abandon();
      this.#publisher = undefined;
      throw error;
    }
  }

  /** Takes over what a publisher before wrote, this agent's or another's. */
  #readBack(): Publisher {
    // What it unpublished last may still be read.
    waitForGracePeriod();
    this.#generation.tables.reread();
    return this.#publish();
  }

  #publish(): Publisher {
    const report = (error: unknown) =>
      this.#complain(
        `records that nothing leads to any more stay in use until the next start: ${reasonOf(error)}`,
      );
    return new Publisher(this.#generation.tables, () => this.#generation.others, report);
  }

  /** Attaches what somebody detached or unpinned. */
  #relink(): Hook[] {
    const lost = this.#generation.relink(cgroup2Root());
    if (lost.length > 0)
      this.#options.log(`attached again: ${lost.join(", ")}. Somebody had detached or unpinned them`);
    return lost;
  }

  #lookAfter(): void {
    this.#compareOnce();
    if (!this.#ownsPins) return;
    const troubles: string[] = [];
    const attempt = (step: () => void) => {
      try {
        step();
      } catch (error) {
        troubles.push(reasonOf(error));
      }
    };
    attempt(() => troubles.push(...this.#repin()));
    attempt(() => {
      if (this.#attached && this.#relink().includes("sock_release")) void this.#reconcile(true);
    });
    if (troubles.length === 0) this.#trouble = "";
    else
      this.#complain(`what is pinned is damaged and can't be put right: ${troubles.join("; ")}. Trying on`);
  }

  /** In `wait` milliseconds, and on from there: many sockets take longer, and are looked at less often. */
  #lookForClosed(wait: number): void {
    this.#closedTimer = setTimeout(() => {
      const began = performance.now();
      try {
        if (this.#attached && this.#closedSockets !== null) this.uncountClosed();
      } catch (error) {
        this.#closedSockets = null;
        this.#options.log(
          `connections that have ended stay counted until their sockets are closed: ${reasonOf(error)}`,
        );
      }
      this.#lookForClosed(Math.max(CLOSED_EVERY, (performance.now() - began) / CLOSED_SHARE));
    }, wait);
    this.#closedTimer.unref?.();
  }

  get #ownsPins(): boolean {
    return this.#options.ownsPins?.() ?? true;
  }

  /** Gives what could not be pinned again, a line each. */
  #repin(): string[] {
    const { done, failed } = this.#generation.repin();
    for (const line of done) this.#options.log(line);
    return failed;
  }

  #repinLast(): void {
    try {
      for (const line of this.#repin()) this.#options.log(line);
    } catch (error) {
      this.#options.log(`what was unpinned is not pinned again: ${reasonOf(error)}`);
    }
  }

  #compareOnce(): void {
    const damaged = this.#uncompared;
    this.#uncompared = undefined;
    if (damaged !== undefined && !this.#closed) void this.#reconcile(damaged);
  }

  /** Puts live counts right. `damaged`: sock_release was gone, so that ends of connections were missed. */
  async #reconcile(damaged: boolean): Promise<void> {
    const { tables } = this.#generation;
    try {
      const { everyNetns } = tables.settings.flags;
      const told = formatReconciliation(
        await reconcileLive(tables, damaged && !everyNetns && isOwnNetns(tables)),
      );
      if (told !== undefined) this.#options.log(told);
    } catch (error) {
      if (!this.#closed) this.#complain(`live counts are not compared with the sockets: ${reasonOf(error)}`);
    }
  }

  #complain(text: string): void {
    if (text !== this.#trouble) this.#options.log(text);
    this.#trouble = text;
  }

  /** Why these programs must not take the hooks over, as far as they would. */
  #findFlaw(): SelfTestFailed | undefined {
    if (!this.#generation.replaces) return undefined;
    const now = performance.now();
    if (this.#flaw && now < this.#flaw.until) return this.#flaw.error;
    try {
      this.#selfTest();
      this.#flaw = undefined;
      return undefined;
    } catch (error) {
      if (!(error instanceof SelfTestFailed)) throw error;
      const { first, longest } = PROBE_RETRY;
      const wait = this.#flaw ? Math.min(this.#flaw.wait * 2, longest) : first;
      error.retryAfter = wait;
      this.#flaw = { error, until: now + wait, wait };
      return error;
    }
  }

  #selfTest(): void {
    const { bpffs } = this.#options;
    if (!this.#tested) {
      this.#announce("probe");
      try {
        this.#tested = selfTest(bpffs, this.#code, this.#governed.netns);
      } finally {
        this.#options.announce?.(undefined);
      }
      formatSelfTest(this.#tested, this.#options);
    }
    const { tags } = this.#generation;
    const wrong = [...this.#tested.tags]
      .filter(([hook, tag]) => tags.get(hook) !== tag)
      .map(([hook]) => hook);
    if (wrong.length > 0)
      throw new SelfTestFailed(
        `the programs pinned for ${wrong.join(", ")} are not those of this executable, which were proved. ` +
          "They are not attached: what governed before governs on",
      );
  }

  /** Gives how many hooks run another program than before. */
  #attach(mesh: Mesh): number {
    const generation = this.#generation;
    const [before, ...older] = generation.otherLayouts;
    const { takesOver } = this;
    if (takesOver) govern(generation.tables, this.#governed);
    this.#announce("flip");
    const hooks = generation.attach(cgroup2Root());
    this.#attached = true;
    this.#options.announce?.(undefined);
    if (hooks.length > 0) this.#options.log(`attached: ${hooks.join(", ")}`);
    if (takesOver) {
      this.#options.log(`took over from the tables of another version, layout ${before}; they are kept`);
      for (const layout of older) this.#removeOther(layout);
      // What the other one still needed until now.
      this.#write(mesh, { everything: true });
    }
    return hooks.length;
  }

  #removeOther(layout: string): void {
    this.#options.announce?.({ name: "remove", from: { abi: layout } });
    this.#generation.removeOther(layout);
    this.#options.announce?.(undefined);
  }

  /** A step towards governing. */
  #announce(name: Step["name"]): void {
    const { announce, bpffs } = this.#options;
    if (!announce) return;
    // In the middle of a flip that is taken up again, what governed before it.
    const { abi, code } = this.#generation.name;
    const from = generationStateAt(bpffs).live.find((each) => each.abi !== abi || each.code !== code);
    announce({ name, ...(from ? { from } : {}), to: this.#generation.name });
  }
}

function govern(tables: Tables, { cgroups, units, netns, excludes, shadow }: Governed): void {
  enrol(tables, { cgroups, units });
  governNetns(tables, netns);
  exclude(tables, excludes);
  tables.settings.setFlags({ shadow });
}

function formatSelfTest(
  { milliseconds, untried }: SelfTestResult,
  to: Pick<DatapathOptions, "log" | "warn">,
): void {
  if (untried === undefined)
    to.log(`the new programs led connections right on trial (${milliseconds.toFixed(0)} ms)`);
  else (to.warn ?? to.log)(`the new programs take over without a trial: ${untried}`);
}
