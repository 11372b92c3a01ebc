import type { Inspection } from "../datapath/inspect.ts";

/** What the kernel holds, without the long lists. */
export type KernelState = Omit<Inspection, "frontends" | "clusters">;

export function brief(inspection: Inspection): KernelState {
  const { frontends: _frontends, clusters: _clusters, ...rest } = inspection;
  return rest;
}
