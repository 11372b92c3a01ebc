/**
 * Frontends that only the kernel has, from a start until the mesh says all it has to say: where the mesh does not know yet
 * (`Mesh.pending`), they stay, with what they lead to.
 */
import type { Match, Mesh, Pending } from "../../mesh/model.ts";
import type { PlacedFrontend } from "../tables/frontends.ts";
import { decodeTarget } from "./target.ts";

export interface Kept {
  /** Keys of frontends. */
  frontends: Set<string>;
  /** Ids of services and of clusters (and splits) that they lead to. */
  services: Set<number>;
  clusters: Set<number>;
}

const NOTHING: Kept = { frontends: new Set(), services: new Set(), clusters: new Set() };

export class AdoptedFrontends {
  /** What no mesh of this process has had. */
  readonly #unclaimed = new Map<string, PlacedFrontend>();
  #kept = NOTHING;

  /** `found`: all that the kernel held at the start, by key. */
  constructor(found: ReadonlyMap<string, PlacedFrontend>) {
    for (const [key, placed] of found) this.#unclaimed.set(key, placed);
  }

  /** What stays though the mesh lacks it, by the mesh that was looked at last. */
  get kept(): Kept {
    return this.#kept;
  }

  /** Looks at a whole mesh; `wordOf` gives the target word of a frontend's id. */
  look(mesh: Mesh, wordOf: (id: number) => bigint): void {
    const { pending } = mesh;
    if (this.#unclaimed.size === 0) return;
    for (const [key, frontend] of mesh.frontends) if (!frontend.pending) this.#unclaimed.delete(key);
    if (pending === undefined) {
      // Whatever is left is no more.
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
