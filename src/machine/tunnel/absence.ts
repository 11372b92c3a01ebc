/** How long an agent stays away from istiod to get a new WorkloadEntry, and when it last did. */
import { mkdirSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";

/**
 * Milliseconds. istiod removes the entry of a machine that is not connected for 10 s
 * (PILOT_WORKLOAD_ENTRY_GRACE_PERIOD); it notices a closed connection at once.
 */
export const STAY_AWAY = 12_000;
/** Milliseconds until it may help to try again. */
const OF_LATE = 3_600_000;

/** Records that the agent stays away now. A folder that can't be written to stops nothing. */
export function noteAbsence(runDir: string): void {
  try {
    mkdirSync(dirname(fileOf(runDir)), { recursive: true, mode: 0o700 });
    writeFileSync(fileOf(runDir), "", { mode: 0o600 });
  } catch {
    // Then it may be away once more within the hour.
  }
}

/** Whether the agent was away within the last hour, and it is not tried again: another agent may have made the entry. */
export function wasAwayOfLate(runDir: string, now = Date.now()): boolean {
  const stat = statSync(fileOf(runDir), { throwIfNoEntry: false });
  return stat !== undefined && now - stat.mtimeMs < OF_LATE;
}

function fileOf(runDir: string): string {
  return join(runDir, "tunnel", "registered-anew");
}
