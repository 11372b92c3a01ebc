/**
 * Frontends that only the kernel has, from a start until the mesh is complete. They stay with their targets while the part
 * of the mesh that could contain them is pending (`Mesh.pending`).
 */
import type { Match, Mesh, Pending } from "../../mesh/model.ts";
import type { PlacedFrontend } from "../tables/frontends.ts";
import { decodeTarget } from "./target.ts";

export interface Kept {
  /** Keys of frontends. */
  frontends: Set<string>;
  /** Ids of their services, and of their clusters and splits. */
  services: Set<number>;
  clusters: Set<number>;
}

const NOTHING: Kept = { frontends: new Set(), services: new Set(), clusters: new Set() };

export class AdoptedFrontends {
  /** Frontends that no mesh of this process has had. */
  readonly #unclaimed = new Map<string, PlacedFrontend>();
  #kept = NOTHING;

  /** `found`: all frontends in the kernel at the start, by key. */
  constructor(found: ReadonlyMap<string, PlacedFrontend>) {
    for (const [key, placed] of found) this.#unclaimed.set(key, placed);
  }

  /** The frontends that stay although the last mesh lacks them. */
  get kept(): Kept {
    return this.#kept;
  }

  /** Processes a whole mesh; `wordOf` returns the target word of a frontend id. */
  look(mesh: Mesh, wordOf: (id: number) => bigint): void {
    const { pending } = mesh;
    if (this.#unclaimed.size === 0) return;
    for (const [key, frontend] of mesh.frontends) if (!frontend.pending) this.#unclaimed.delete(key);
    if (pending === undefined) {
      // The mesh is complete: the remaining frontends are gone.
      this.#unclaimed.clear();
      this.#kept = NOTHING;
      return;
    }
    const kept: Kept = { frontends: new Set(), services: new Set(), clusters: new Set() };
    for (const [key, { match, id }] of this.#unclaimed) {
      if (!mesh.frontends.has(key) && !isUnknown(match, pending)) continue;
      const { action, service, value } = decodeTarget(wordOf(id));
      kept.frontends.add(key);
      kept.services.add(service);
      if (action === "cluster") kept.clusters.add(value);
    }
    this.#kept = kept;
  }
}

function isUnknown(match: Match, { ports }: Pending): boolean {
  return ports === "all" || ports.has(match.port);
}
