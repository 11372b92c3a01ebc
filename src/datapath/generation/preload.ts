/**
 * Loads a new generation's programs while another agent still owns the tables, because loading takes longest. They use the
 * pinned maps, and new ones for missing maps. Nothing is pinned, so nothing remains if the result is not used.
 */
import type { Hook } from "../../kernel/link.ts";
import type { BpfMap } from "../../kernel/maps.ts";
import type { BpfProgram } from "../../kernel/object.ts";
import { installEmpty, type MapName } from "../tables/tables.ts";
import { pinnedMaps } from "./pinned.ts";
import { type Code, type Loaded, type LoadedAhead, loadPrograms } from "./programs.ts";

export class PreloadedPrograms implements LoadedAhead {
  readonly #maps: Map<MapName, BpfMap>;
  readonly #programs: Map<Hook, BpfProgram>;
  /** The maps that were pinned already. */
  readonly #pinned: ReadonlySet<MapName>;
  #taken = false;

  private constructor({ maps, programs }: Loaded, pinned: ReadonlySet<MapName>) {
    this.#maps = maps;
    this.#programs = programs;
    this.#pinned = pinned;
  }

  /** Needs no lock. Throws KernelError, and an Error that names a foreign pin. */
  static load(bpffs: string, code: Code): PreloadedPrograms {
    const maps = pinnedMaps(bpffs);
    const pinned = new Set(maps.keys());
    let programs = new Map<Hook, BpfProgram>();
    try {
      programs = loadPrograms(code, maps);
      const start = new PreloadedPrograms({ maps, programs }, pinned);
      installEmpty(maps, (name) => !pinned.has(name));
      return start;
    } catch (error) {
      for (const held of [...maps.values(), ...programs.values()]) held.close();
      throw error;
    }
  }

  /**
   * The programs and maps, which the caller then owns. undefined when the maps `pinned` now differ from those at loading, or
   * when they were taken before.
   */
  take(pinned: ReadonlyMap<MapName, BpfMap>): Loaded | undefined {
    const same = [...pinned].every(
      ([name, { info }]) => this.#pinned.has(name) && this.#maps.get(name)?.info.id === info.id,
    );
    if (this.#taken || !same || pinned.size !== this.#pinned.size) return undefined;
    this.#taken = true;
    return { maps: this.#maps, programs: this.#programs };
  }

  /** Closes programs and maps that were not taken. */
  close(): void {
    if (this.#taken) return;
    this.#taken = true;
    for (const held of [...this.#maps.values(), ...this.#programs.values()]) held.close();
  }
}
