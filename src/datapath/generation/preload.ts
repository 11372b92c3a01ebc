/**
 * What takes longest of a new generation, done while another agent still has the tables: its programs are loaded over what
 * is pinned, with maps of their own for what is not. Nothing of it is pinned, so nothing is left when it comes to nothing.
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
  /** The maps that were there already. */
  readonly #pinned: ReadonlySet<MapName>;
  #taken = false;

  private constructor({ maps, programs }: Loaded, pinned: ReadonlySet<MapName>) {
    this.#maps = maps;
    this.#programs = programs;
    this.#pinned = pinned;
  }

  /** Needs no lock. Throws KernelError, and an Error that names a pin which is none of ours. */
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
   * Programs and maps, which are the caller's from now on; undefined when `pinned`, what is there by now, are not the maps
   * over which they were loaded, or when they were given before.
   */
  take(pinned: ReadonlyMap<MapName, BpfMap>): Loaded | undefined {
    const same = [...pinned].every(
      ([name, { info }]) => this.#pinned.has(name) && this.#maps.get(name)?.info.id === info.id,
    );
    if (this.#taken || !same || pinned.size !== this.#pinned.size) return undefined;
    this.#taken = true;
    return { maps: this.#maps, programs: this.#programs };
  }

  /** Lets go of what was not taken. */
  close(): void {
    if (this.#taken) return;
    this.#taken = true;
    for (const held of [...this.#maps.values(), ...this.#programs.values()]) held.close();
  }
}
