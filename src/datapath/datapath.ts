/**
 * The data path for the agent: opened once, given meshes, and closed without effect on the traffic.
 *
 * Its states, under the same names in all modules above:
 *
 *     adopted         the tables were pinned by an earlier start
 *     attached        every hook runs this generation's programs
 *     takesOver       another version's tables are live until the first `publish` has filled these
 *     selfTestFailed  the programs failed their test, so the hooks keep their programs; the tables are still written
 *     behind          a `publish` threw, so the tables hold only a part of the mesh (LiveTables)
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
import { inspectTables, summarizeTables, vitalsOf } from "./inspect/inspect.ts";
import type { Inspection, Summary, Vitals } from "./inspect/state.ts";
import type { PublishReport } from "./mesh-tables/publisher.ts";
import { TableWriter } from "./table-writer.ts";
import { broadcastAddresses, exemptBroadcasts } from "./tables/broadcast.ts";
import { exemptSelf } from "./tables/enrolment.ts";
import type { Tables } from "./tables/tables.ts";
import { type Totals, totalsOf } from "./tables/totals.ts";
import { Takeover, type TakeoverOptions } from "./takeover.ts";
import { Upkeep } from "./upkeep.ts";

export interface DatapathOptions extends Governed, TakeoverOptions {
  /** The source addresses for source hashing when a socket has no address yet. */
  nodeAddresses: string[];
  /**
   * Interval of the upkeep, milliseconds: it attaches detached hooks again, and corrects live counts after the start.
   * Absent: no upkeep.
   */
  upkeep?: number;
  /** Whether this process still owns the pins; called before repairs and before the last writes. Absent: it does. */
  ownsPins?(): boolean;
  /** The result of `preloadAhead`. */
  preloaded?: PreloadedPrograms;
}

export class Datapath {
  readonly #options: DatapathOptions;
  /** Settings that take effect when connections read this generation. */
  #governed: Governed;
  readonly #generation: Generation;
  readonly #takeover: Takeover;
  readonly #writer: TableWriter;
  readonly #upkeep: Upkeep;
  #attached: boolean;
  /** The tables have more to remove than a push names. */
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
    // Untested programs are attached with the first push, at all hooks.
    const mends = generation.others !== "live" && generation.live && !generation.replaces;
    const lost = mends ? this.#upkeep.relink() : [];
    this.#attached = generation.attached;
    this.#writer = new TableWriter(generation, (error) =>
      this.#upkeep.complain(`unused records stay allocated until the next start: ${reasonOf(error)}`),
    );
    this.#upkeep.start(lost);
  }

  /**
   * Adopts the pins below `options.bpffs`, or builds empty tables; attaches nothing yet. Settings (enrolment, exclusions,
   * shadow) take effect at once, or with the flip while another version's tables are live. Throws KernelError, and Error for
   * a foreign pin and for a cgroup or namespace that can't be governed; existing pins keep working. `code` are the programs,
   * by default this build's.
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

  /** The name of this generation among other versions'. */
  get name(): GenerationName {
    return this.#generation.name;
  }

  /** Whether the tables of an earlier start were adopted. */
  get adopted(): boolean {
    return this.#generation.adopted;
  }

  /** The ids of the attached links, whichever generation's programs they run. */
  get linkIds(): LinkIds {
    return this.#generation.linkIds;
  }

  /** Whether this generation governs connections. */
  get attached(): boolean {
    return this.#attached;
  }

  /**
   * Whether an earlier start's generation governs, of this version or another. False after a reboot, and when that start
   * ended before all hooks were attached.
   */
  get governs(): boolean {
    return this.takesOver || (this.#generation.adopted && this.#generation.linked);
  }

  /** Whether another version's tables are live until the first `publish` has filled these. */
  get takesOver(): boolean {
    return this.#generation.others === "live";
  }

  /** Layouts of other versions' tables that are pinned and not live. */
  get kept(): string[] {
    return this.#generation.keptLayouts;
  }

  /** Removes another version's kept generation. A rollback to it must then fill its tables again. */
  removeKept(layout: string): void {
    this.#takeover.removeOther(layout);
    this.#untidy = true;
  }

  /** Completes an interrupted flip to these programs after its last hook: removes the rest. Otherwise does nothing. */
  finishFlip(): void {
    this.#generation.finishFlip();
  }

  /**
   * Applies settings for new connections. Throws as `open`; a part may then be applied, so call it again with the previous
   * settings.
   */
  govern(governed: Governed): void {
    if (!this.takesOver) govern(this.#generation.tables, governed);
    this.#governed = governed;
  }

  /**
   * Reads adopted tables, once. Without this call the first `publish` does it, so call it when nothing waits. Throws
   * KernelError or RangeError for unreadable tables.
   */
  readBack(): void {
    this.#writer.readBack();
  }

  /** Exempts this process's connections from the mesh. Call it before the first one. */
  exemptSelf(): void {
    exemptSelf(this.#generation.tables.maps.agents);
  }

  /**
   * Publishes `mesh`. The first call then attaches the hooks, or flips them from another version, whose tables are live and
   * unchanged until then. `changes` names the parts that may differ from the previous mesh.
   *
   * Programs are tested before they replace others. If the test fails, the hooks keep their programs: throws SelfTestFailed
   * when another version's tables are live, and returns it when these are live, which are then written. Throws KernelError
   * (out of memory, for example): unwritten parts keep their content, and the next call compares everything, whatever its
   * `changes` are.
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

  /** The kernel's counts of connections, over all services. */
  totals(): Totals {
    return totalsOf(this.#generation.tables.serviceCounts);
  }

  /**
   * Marks the tables as in sync with istiod. Ten seconds after the last call they count as stale, and every cluster ejects
   * endpoints whose connects fail.
   */
  keepCurrent(): void {
    this.#generation.tables.settings.set("current_ns", monotonic());
  }

  /** The tables, for readers of counters. The data path closes them. */
  get tables(): Tables {
    return this.#generation.tables;
  }

  /** Sets the exempt broadcast addresses, by default this machine's. Throws KernelError. */
  exemptBroadcasts(addresses: readonly string[] = broadcastAddresses()): void {
    exemptBroadcasts(this.#generation.tables, addresses);
  }

  /** Removes ended connections from the live counts, even if apps still hold their sockets. Throws KernelError. */
  uncountClosed(): void {
    this.#upkeep.uncountClosed();
  }

  inspect(): Inspection {
    return inspectTables(this.#options.bpffs, this.#generation.tables);
  }

  /** The same without the long lists; cheap. */
  summarize(): Summary {
    return summarizeTables(this.#options.bpffs, this.#generation.tables);
  }

  /** The values for a scrape of metrics. A summary would walk the machine's cgroups and all services. */
  vitals(): Vitals {
    return vitalsOf(this.#options.bpffs, this.#generation.tables);
  }

  /** Damage of the pins that is not repaired yet. */
  damage(): Damage[] {
    const { bpffs } = this.#options;
    const faults = formatFaults(bpffs, this.#generation.pinFaults(this.#attached));
    const { trouble } = this.#upkeep;
    if (trouble === "") return faults;
    const cure = "what it says; the agent tries again every 5 s";
    return [...faults, { what: trouble, consequence: "it stays as it is", cure }];
  }

  /**
   * Closes descriptors. Programs, tables and links stay pinned, so connections continue. Programs that failed their
   * self-test are unpinned. If another process owns the pins, nothing is written.
   */
  close(): void {
    const owns = this.#ownsPins;
    if (owns) this.#writer.close();
    else this.#writer.abandon();
    // Objects that were unpinned since the last check would end with this process's descriptors.
    this.#upkeep.close({ repin: owns });
    if (owns && this.#takeover.failed) this.#generation.discard();
    this.#generation.close();
  }

  get #ownsPins(): boolean {
    return this.#options.ownsPins?.() ?? true;
  }

  /** Returns the number of hooks that run another program than before. */
  #attach(mesh: Mesh): number {
    const { takesOver } = this;
    if (takesOver) govern(this.#generation.tables, this.#governed);
    const hooks = this.#takeover.attach();
    this.#attached = true;
    // Remove what only the other version needed.
    if (takesOver) this.#writer.publish(mesh, { everything: true });
    return hooks.length;
  }
}
