/** Replaces the executable of the running agent, for `upgrade` and `rollback`. */

import { chmodSync, copyFileSync, existsSync, linkSync, renameSync, rmSync } from "node:fs";
import type { Folders } from "../../config/config.ts";
import { ABI_ID } from "../../datapath/tables/layout.gen.ts";
import { reasonOf } from "../../errors/reason.ts";
import { syncPath } from "../../files/replace-file.ts";
import type { Proof } from "../../handover/predecessor.ts";
import { removeNames } from "../../names/names.ts";
import { EXIT, Failure } from "../framework/exit.ts";
import { remark } from "../framework/output.ts";
import { checksum, type Executable } from "./executable.ts";
import { handOverBy, ignoreSignals, runningAgent } from "./handover-client.ts";
import { installedPaths } from "./install-plan.ts";

/** Three paths: the installed executable, the previous one, and the next one. */
export interface Names {
  installed: string;
  previous: string;
  next: string;
}

export function namesOf(installed: string): Names {
  return { installed, previous: `${installed}.previous`, next: `${installed}.next` };
}

/** The paths of the agent's executables. First finishes an upgrade that was interrupted. */
export async function runningNames(folders: Folders): Promise<Names> {
  const { executable } = await runningAgent(folders);
  if (executable === undefined || !existsSync(executable) || executable.startsWith("/proc/"))
    throw new Failure(
      EXIT.failed,
      "the agent that runs is not the single file, or that file is gone",
      "kmesh restart --graceful starts it again from its own file.",
    );
  if (!executable.endsWith(".next")) return namesOf(executable);
  const names = namesOf(executable.slice(0, -".next".length));
  remark(`Finishing what was left: the agent runs from ${names.next}, which takes its place now`);
  settle(names);
  return names;
}

/** Throws Failure when the running executable belongs to a package: only the package manager changes its files. */
export function requireOwnExecutable({ installed }: Names): void {
  const paths = installedPaths();
  if (paths.origin === "package" && installed === paths.executable)
    throw new Failure(
      EXIT.failed,
      `${installed} belongs to the package kmesh`,
      "Install the other version's package: the agent that runs hands over to it in the same way.",
    );
}

/**
 * Asks the agent to hand over to `source`, which was examined, and then installs it. If `source` does not know names,
 * their programs are detached, because nothing would keep them up to date. Throws Failure when the hand-over failed, and
 * KernelError when names can't be detached after it.
 */
export async function replace(
  kind: "upgrade" | "rollback",
  folders: Folders,
  names: Names,
  source: string,
  examined: Pick<Executable, "version" | "names">,
  timeout: number,
): Promise<Proof> {
  const restore = ignoreSignals(`The ${kind} continues; wait for its end`);
  try {
    stage(names, source);
    let proof: Proof;
    try {
      proof = await handOverBy(folders, { kind, executable: names.next, timeout });
    } catch (error) {
      // An agent whose hand-over was interrupted may still run from it.
      if (error instanceof Failure && error.code !== EXIT.failed) rmSync(names.next, { force: true });
      throw error;
    }
    settle(names);
    if (!examined.names && removeNames(folders.bpffs))
      remark(
        `kmesh ${examined.version} knows no mesh names: their programs are detached, and queries go to the name servers`,
      );
    return proof;
  } finally {
    restore();
  }
}

/** Says what the hand-over does to the tables. */
export function formatLayout(abi: string): void {
  remark(
    abi === ABI_ID
      ? "Its tables have the layout of this version: they are adopted"
      : `Its tables have another layout (${abi}): they are filled beside the live ones, then become live`,
  );
}

/** Whether both are the same file or have the same content. */
export function same(one: string, other: string): boolean {
  return existsSync(one) && existsSync(other) && checksum(one) === checksum(other);
}

function stage({ next }: Names, source: string): void {
  rmSync(next, { force: true });
  try {
    copyFileSync(source, next);
    chmodSync(next, 0o755);
    syncPath(next);
  } catch (error) {
    rmSync(next, { force: true });
    throw new Failure(
      EXIT.failed,
      `${source} can't be copied to ${next}: ${reasonOf(error)}`,
      "Nothing was changed.",
    );
  }
}

/** Renames next to installed and installed to previous. The installed path exists at every moment. */
function settle({ installed, previous, next }: Names): void {
  if (existsSync(installed)) {
    rmSync(`${previous}.new`, { force: true });
    linkSync(installed, `${previous}.new`);
    renameSync(`${previous}.new`, previous);
  }
  renameSync(next, installed);
}
