/** Connections that have ended while an app still holds their sockets leave the live counts: bpf/closed.bpf.c. */
import { fetchAtomics } from "../../kernel/features.ts";
import { BpfObject, type BpfProgram } from "../../kernel/object.ts";
import { asset } from "../../runtime/assets.ts";
import type { MapName, Tables } from "../tables/tables.ts";

const NAME = "closed";

/** A program over the tables, which it does not own. Its owner closes it. */
export class ClosedSockets {
  readonly #program: BpfProgram;
  readonly #tables: Tables;

  private constructor(program: BpfProgram, tables: Tables) {
    this.#program = program;
    this.#tables = tables;
  }

  /** Loads it; nothing is attached or pinned. Throws KernelError. */
  static open(tables: Tables): ClosedSockets {
    const image = asset(fetchAtomics() ? `${NAME}.bpf.o` : `${NAME}.compat.bpf.o`);
    using object = BpfObject.open(image, NAME);
    for (const map of object.mapNames as MapName[]) object.useMap(map, tables.maps[map]);
    object.load();
    return new ClosedSockets(object.program("end_closed"), tables);
  }

  /**
   * Walks over all sockets that carry state, in every network namespace, and returns when it is done (100,000 take about
   * 10 ms). Throws KernelError.
   */
  uncount(): void {
    this.#program.walk(this.#tables.maps.sockets);
  }

  close(): void {
    this.#program.close();
  }
}
