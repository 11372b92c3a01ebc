import { readFileSync } from "node:fs";

/** The machine's id, as /etc/machine-id has it; undefined when there is none (yet). */
export function machineId(): string | undefined {
  try {
    return /^[0-9a-f]{32}$/.exec(readFileSync("/etc/machine-id", "utf8").trim())?.[0];
  } catch {
    return undefined;
  }
}
