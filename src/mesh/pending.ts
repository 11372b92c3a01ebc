import type { Mesh } from "./model.ts";

/** Whether a part of the mesh is not known yet, which an earlier agent may have known. */
export function hasPending(mesh: Mesh): boolean {
  if (mesh.pending) return true;
  for (const { pending } of mesh.clusters.values()) if (pending) return true;
  for (const { pending } of mesh.frontends.values()) if (pending) return true;
  return false;
}
