/** Binds state files to the machine that wrote them. */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";

/** The content of /etc/machine-id; undefined when it is missing or empty. */
export function machineId(): string | undefined {
  try {
    return /^[0-9a-f]{32}$/.exec(readFileSync("/etc/machine-id", "utf8").trim())?.[0];
  } catch {
    return undefined;
  }
}

/** A hash of the id, 32 bytes: the id itself is confidential (machine-id(5)). */
export function machineFingerprint(what: "snapshot" | "manifest" | "identity", machine: string): Buffer {
  return createHash("sha256").update(`kmesh ${what} ${machine}`).digest();
}
