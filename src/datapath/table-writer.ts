/** Writes meshes into one generation's tables. Reads adopted tables first. */
import { waitForGracePeriod } from "../kernel/grace-period.ts";
import type { Changes, Mesh } from "../mesh/model.ts";
import type { Others } from "./mesh-tables/others.ts";
import { Publisher, type PublishReport } from "./mesh-tables/publisher.ts";
import type { Tables } from "./tables/tables.ts";

/** The generation whose tables are written. */
export interface Written {
  readonly tables: Tables;
  /** Whether the tables were adopted; false for new, empty ones. */
  readonly adopted: boolean;
  /** The present generations of other layouts. */
  readonly others: Others;
}

export class TableWriter {
  readonly #generation: Written;
  readonly #report: (error: unknown) => void;
  /** Absent until adopted tables are read, and after a failed write. */
  #publisher: Publisher | undefined;

  /** `report` gets errors of work after a grace period, outside of a push; it may throw. */
  constructor(generation: Written, report: (error: unknown) => void) {
    this.#generation = generation;
    this.#report = report;
    if (!generation.adopted) this.#publisher = this.#open();
  }

  /** Reads adopted tables, once. Without this call `publish` does it. Throws KernelError or RangeError for unreadable tables. */
  readBack(): void {
    this.#publisher ??= this.#readBack();
  }

  /**
   * Writes `mesh` into the tables; `changes` names the parts that may differ from the previous mesh. Throws KernelError:
   * unwritten parts keep their content, and the next call compares everything, whatever its `changes` are.
   */
  publish(mesh: Mesh, changes: Changes): PublishReport {
    try {
      if (this.#publisher) return this.#publisher.publish(mesh, changes);
      this.#publisher = this.#readBack();
      return this.#publisher.publish(mesh, { everything: true });
    } catch (error) {
      // Only the tables show how much was written.
      this.#publisher?.abandon();
      this.#publisher = undefined;
      throw error;
    }
  }

  /** Frees everything that waits for its grace period, so that the next start finds nothing to free. */
  close(): void {
    this.#publisher?.close();
  }

  /** Ends without writes: the next owner of the tables finds free records by itself. */
  abandon(): void {
    this.#publisher?.abandon();
  }

  /** Reads the tables that an earlier publisher wrote. */
  #readBack(): Publisher {
    // A program may still read records that the earlier publisher unpublished last.
    waitForGracePeriod();
    this.#generation.tables.reread();
    return this.#open();
  }

  #open(): Publisher {
    return new Publisher(this.#generation.tables, () => this.#generation.others, this.#report);
  }
}
