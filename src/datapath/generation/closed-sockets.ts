/** Removes ended connections from the live counts while apps still hold their sockets (bpf/closed.bpf.c). */
import { fetchAtomics } from "../../kernel/features.ts";
import { BpfObject, type BpfProgram } from "../../kernel/object.ts";
import { asset } from "../../runtime/assets.ts";
import type { MapName, Tables } from "../tables/tables.ts";

const NAME = "closed";

/** The loaded program. It does not own the tables. Its owner closes it. */
export class ClosedSockets {
  readonly #program: BpfProgram;
  readonly #tables: Tables;

  private constructor(program: BpfProgram, tables: Tables) {
    this.#program = program;
    this.#tables = tables;
  }

  /** Loads the program; attaches and pins nothing. Throws KernelError. */
  static open(tables: Tables): ClosedSockets {
    const image = asset(fetchAtomics() ? `${NAME}.bpf.o` : `${NAME}.compat.bpf.o`);
    using object = BpfObject.open(image, NAME);
    for (const map of object.mapNames as MapName[]) object.useMap(map, tables.maps[map]);
    object.load();
    return new ClosedSockets(object.program("end_closed"), tables);
  }

  /** Visits all sockets with state in every network namespace; 100,000 take about 10 ms. Throws KernelError. */
  uncount(): void {
    this.#program.walk(this.#tables.maps.sockets);
  }

  close(): void {
    this.#program.close();
  }
}
