/**
 * The data path as the agent sees it: opened once, given meshes, closed without a trace in the traffic.
 *
 * The words for what is not yet as it shall be, the same in all layers above:
 *
 *     adopted       the tables are those that an earlier start pinned
 *     attached      every hook runs this generation's programs
 *     takesOver     connections read the tables of another version, until the first `publish` has filled these
 *     selfTestFailed  the programs must not get the hooks, which stay as they are; the tables are written
 *     behind        a `publish` threw: the tables hold a part of the mesh, the rest is as it was (LiveTables)
 */

import { reasonOf } from "../errors/reason.ts";
import { monotonic } from "../kernel/clock.ts";
import type { Changes, Mesh } from "../mesh/model.ts";
import { Generation } from "./generation/generation.ts";
import type { LinkIds } from "./generation/hidden-links.ts";
import type { PreloadedPrograms } from "./generation/preload.ts";
import { type Code, ownCode } from "./generation/programs.ts";
import { removeDeadSelfTests, type SelfTestFailed } from "./generation/self-test.ts";
import type { GenerationName } from "./generation/step.ts";
import { type Governed, govern } from "./governed.ts";
import { type Damage, formatFaults } from "./inspect/damage.ts";
import {
  type Inspection,
  inspectTables,
  type Summary,
  summarizeTables,
  type Vitals,
  vitalsOf,
} from "./inspect/inspect.ts";
import type { PublishReport } from "./mesh-tables/publisher.ts";
import { TableWriter } from "./table-writer.ts";
import { broadcastAddresses, exemptBroadcasts } from "./tables/broadcast.ts";
import { exemptSelf } from "./tables/enrolment.ts";
import type { Tables } from "./tables/tables.ts";
import { type Totals, totalsOf } from "./tables/totals.ts";
import { Takeover, type TakeoverOptions } from "./takeover.ts";
import { Upkeep } from "./upkeep.ts";

export interface DatapathOptions extends Governed, TakeoverOptions {
  /** What source hashing takes for sockets that have no address yet. */
  nodeAddresses: string[];
  /**
   * Looks after what is attached, so often in milliseconds: hooks that somebody detached are attached again, and live
   * counts are put right at the start. Absent: neither.
   */
  upkeep?: number;
  /** Asked before pins are repaired and before the last writes: whether this process still owns them. Absent: it does. */
  ownsPins?(): boolean;
  /** What `preloadAhead` gave before. */
  preloaded?: PreloadedPrograms;
}

export class Datapath {
  readonly #options: DatapathOptions;
  /** What holds from the moment on at which connections read this generation. */
  #governed: Governed;
  readonly #generation: Generation;
  readonly #takeover: Takeover;
  readonly #writer: TableWriter;
  readonly #upkeep: Upkeep;
  #attached: boolean;
  /** There is more to be removed than a push will say. */
  #untidy = false;

  private constructor(options: DatapathOptions, generation: Generation, code: Code) {
    this.#options = options;
    this.#governed = options;
    this.#generation = generation;
    this.#takeover = new Takeover(options, generation, code);
    this.#upkeep = new Upkeep(generation, {
      interval: options.upkeep,
      ownsPins: () => this.#ownsPins,
      attached: () => this.#attached,
      log: options.log,
    });
    // Programs that were not tested yet wait for the first push, for all hooks.
    const mends = generation.others !== "live" && generation.live && !generation.replaces;
    const lost = mends ? this.#upkeep.relink() : [];
    this.#attached = generation.attached;
    this.#writer = new TableWriter(generation, (error) =>
      this.#upkeep.complain(
        `records that nothing leads to any more stay in use until the next start: ${reasonOf(error)}`,
      ),
    );
    this.#upkeep.start(lost);
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

  /** Whether the tables of another version govern, until the first `publish` has filled these. */
  get takesOver(): boolean {
    return this.#generation.others === "live";
  }

  /** Layouts of other versions' tables that lie beside and don't govern. */
  get kept(): string[] {
    return this.#generation.keptLayouts;
  }

  /** Removes what is kept of another version: no way back to it is left but by filling it anew. */
  removeKept(layout: string): void {
    this.#takeover.removeOther(layout);
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
   * Reads the tables that were found, unless that is done. The first `publish` does it otherwise: call this when nothing
   * waits. Throws KernelError or RangeError for tables that can't be read.
   */
  readBack(): void {
    this.#writer.readBack();
  }

  /** Keeps this process's own connections out of the mesh. Call it before the first one. */
  exemptSelf(): void {
    exemptSelf(this.#generation.tables.maps.agents);
  }

  /**
   * Makes `mesh` what connections see, then, the first time, attaches the hooks or takes them over from another version,
   * whose tables govern unchanged until then. `changes` names what may differ from the mesh before.
   *
   * Programs that take hooks over are tested first. When they don't work the hooks stay as they are: throws SelfTestFailed
   * if another version's tables govern, and gives it if it is these tables, which are written then. Throws KernelError (out
   * of memory, say): what was not written yet stays as it was, and the next call, which compares everything whatever its
   * `changes` say, mends the rest.
   */
  publish(
    mesh: Mesh,
    changes: Changes,
  ): PublishReport & { relinked: number; selfTestFailed?: SelfTestFailed } {
    const selfTestFailed = this.#attached ? undefined : this.#takeover.test(this.#governed.netns);
    if (selfTestFailed && this.takesOver) throw selfTestFailed;
    if (!this.#attached && !selfTestFailed) this.#takeover.announce("fill");
    const report = this.#writer.publish(mesh, this.#untidy ? { everything: true } : changes);
    this.#untidy = false;
    if (selfTestFailed) return { ...report, relinked: 0, selfTestFailed };
    const relinked = this.#attached ? 0 : this.#attach(mesh);
    this.#upkeep.compareSoon();
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

  /** Exempts these broadcast addresses, and no others; by default this machine's. Throws KernelError. */
  exemptBroadcasts(addresses: readonly string[] = broadcastAddresses()): void {
    exemptBroadcasts(this.#generation.tables, addresses);
  }

  /** Takes connections that have ended out of the live counts, though apps still hold their sockets. Throws KernelError. */
  uncountClosed(): void {
    this.#upkeep.uncountClosed();
  }

  inspect(): Inspection {
    return inspectTables(this.#options.bpffs, this.#generation.tables);
  }

  /** The same without the long lists: cheap enough to ask for at any time. */
  summarize(): Summary {
    return summarizeTables(this.#options.bpffs, this.#generation.tables);
  }

  /** What a scrape of metrics asks for: a summary would walk the machine's cgroups and all services each time. */
  vitals(): Vitals {
    return vitalsOf(this.#options.bpffs, this.#generation.tables);
  }

  /** What somebody did to the pins, as far as it is not repaired yet. */
  damage(): Damage[] {
    const { bpffs } = this.#options;
    const faults = formatFaults(bpffs, this.#generation.pinFaults(this.#attached));
    const { trouble } = this.#upkeep;
    if (trouble === "") return faults;
    const cure = "what it says; the agent tries again every 5 s";
    return [...faults, { what: trouble, consequence: "it stays as it is", cure }];
  }

  /**
   * Closes descriptors. Programs, tables and links stay pinned: connections go on as they are. Programs that failed their
   * self-test are unpinned. When the pins are another process's, nothing is written.
   */
  close(): void {
    const owns = this.#ownsPins;
    if (owns) this.#writer.close();
    else this.#writer.abandon();
    // What was unpinned since the last look would end with this process's descriptors.
    this.#upkeep.close({ repin: owns });
    if (owns && this.#takeover.failed) this.#generation.discard();
    this.#generation.close();
  }

  get #ownsPins(): boolean {
    return this.#options.ownsPins?.() ?? true;
  }

  /** Gives how many hooks run another program than before. */
  #attach(mesh: Mesh): number {
    const { takesOver } = this;
    if (takesOver) govern(this.#generation.tables, this.#governed);
    const hooks = this.#takeover.attach();
    this.#attached = true;
    // What the other one still needed until now.
    if (takesOver) this.#writer.publish(mesh, { everything: true });
    return hooks.length;
  }
}
