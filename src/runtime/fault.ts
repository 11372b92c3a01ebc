/** Points at which a test kills the agent. The next start must repair the state that is left. */

export const FAULT_POINTS = [
  // Pins, by datapath/generation/generation.ts.
  "pin.kept",
  "pin.table",
  "pin.programs",
  "pin.filled",
  "pin.generation",
  // The self-test of new programs.
  "probe.cgroup",
  "probe.connected",
  "probe.removed",
  // Hooks.
  "link.attached",
  "flip.hook",
  "flip.hooks",
  "remove.other",
  "remove.other.done",
  "remove.programs",
  // The writes of a push, in their order.
  "publish.descriptor",
  "publish.cluster",
  "publish.splits",
  "publish.service",
  "publish.target",
  "publish.exact",
  "publish.growth",
  "publish.frontends",
  "publish.fallback",
  "publish.removal",
  // Files.
  "snapshot.part",
  "snapshot.head",
  "snapshot.rename",
  "history.rename",
  "manifest.part",
  "manifest.rename",
  "manifest.renamed",
  // A hand-over.
  "predecessor.ready",
  "predecessor.flushed",
  "predecessor.paused",
  "predecessor.live",
  "predecessor.done",
  "predecessor.over",
  "successor.ready",
  "successor.yours",
  "successor.locks",
  "successor.written",
  "successor.live",
  "successor.served",
] as const;

export type FaultPoint = (typeof FAULT_POINTS)[number];

/** `name`, or `name:n` for the n-th time that the point is reached. */
export const FAULT_VARIABLE = "KMESH_FAULT";

const [armed, times = "1"] = (process.env[FAULT_VARIABLE] ?? "").split(":");
let left = Number(times);

/** Kills this process at once when KMESH_FAULT names this point. */
export function faultPoint(name: FaultPoint): void {
  if (name !== armed) return;
  left--;
  if (left === 0) process.kill(process.pid, "SIGKILL");
}
