/** Writes meshes into one generation's tables, and finds out what they hold where it can't know. */
import { waitForGracePeriod } from "../kernel/grace-period.ts";
import type { Changes, Mesh } from "../mesh/model.ts";
import type { Others } from "./mesh-tables/others.ts";
import { Publisher, type PublishReport } from "./mesh-tables/publisher.ts";
import type { Tables } from "./tables/tables.ts";

/** The generation whose tables are written. */
export interface Written {
  readonly tables: Tables;
  /** False when its tables are empty and new. */
  readonly adopted: boolean;
  /** What generations of other layouts there are at the time. */
  readonly others: Others;
}

export class TableWriter {
  readonly #generation: Written;
  readonly #report: (error: unknown) => void;
  /** Absent until tables that were found are read, and after a write that failed halfway. */
  #publisher: Publisher | undefined;

  /** `report` gets what fails after a grace period, off the path of a push; it may throw. */
  constructor(generation: Written, report: (error: unknown) => void) {
    this.#generation = generation;
    this.#report = report;
    if (!generation.adopted) this.#publisher = this.#open();
  }

  /**
   * Reads the tables that were found, unless that is done. The first `publish` does it otherwise. Throws KernelError or
   * RangeError for tables that can't be read.
   */
  readBack(): void {
    this.#publisher ??= this.#readBack();
  }

  /**
   * Makes `mesh` what the tables hold; `changes` names what may differ from the mesh before. Throws KernelError: what was
   * not written yet stays as it was, and the next call compares everything, whatever its `changes` say.
   */
  publish(mesh: Mesh, changes: Changes): PublishReport {
    try {
      if (this.#publisher) return this.#publisher.publish(mesh, changes);
      this.#publisher = this.#readBack();
      return this.#publisher.publish(mesh, { everything: true });
    } catch (error) {
      // Only the tables know how far it came.
      this.#publisher?.abandon();
      this.#publisher = undefined;
      throw error;
    }
  }

  /** Frees what still waits for its grace period, so that the next start finds nothing to do. */
  close(): void {
    this.#publisher?.close();
  }

  /** Writes nothing more: whoever opens the tables next finds by itself what is free. */
  abandon(): void {
    this.#publisher?.abandon();
  }

  /** Reads what a publisher before wrote, this agent's or another's. */
  #readBack(): Publisher {
    // A program may still read what that one unpublished last.
    waitForGracePeriod();
    this.#generation.tables.reread();
    return this.#open();
  }

  #open(): Publisher {
    return new Publisher(this.#generation.tables, () => this.#generation.others, this.#report);
  }
}
