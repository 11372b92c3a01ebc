/**
 * What a test run left on the machine: only what is its own, since others may work on the machine at the same time. Its own
 * are the folders in its TMPDIR, the processes that have its mark, and what is named after a process of it.
 */
import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

/** The variable that every process of a run inherits. Not KMESH_*: kmesh warns of those that it does not know. */
export const MARK = "TEST_RUN_OF_KMESH";

export interface Run {
  /** The value of MARK. */
  mark: string;
  /** TMPDIR of the run's processes, and nothing else's. */
  folder: string;
  /** The processes whose ids are in names: see ownName() of test/lab/namespace.ts. */
  pids: ReadonlySet<number>;
}

/** One line for each thing that is the run's and still there. */
export function belongings(run: Run): string[] {
  const named = (kind: string, names: readonly string[]): string[] =>
    names.filter((name) => isNamedAfter(name, run.pids)).map((name) => `${kind} ${name}`);
  const cgroups = "/sys/fs/cgroup";
  return [
    ...named("pins below /sys/fs/bpf:", namesIn("/sys/fs/bpf")),
    ...named("network namespace", linesOf("ip", "netns", "list").map(firstWord)),
    ...named("network interface", namesIn("/sys/class/net")),
    ...named("cgroup", [
      ...namesIn(cgroups),
      ...namesIn(cgroups).flatMap((name) => namesIn(join(cgroups, name))),
    ]),
    ...named("folder in /run:", namesIn("/run")),
    ...namesIn(run.folder).map((name) => `folder ${join(run.folder, name)}`),
    ...processesOf(run.mark).map(({ pid, command }) => `process ${pid} (${command})`),
  ];
}

/** Whether `name` is "km" with the id of a process of the run in base 36, as tests name things. A demo's are the demo test's to look for. */
export function isNamedAfter(name: string, pids: ReadonlySet<number>): boolean {
  return [...pids].some((pid) => name.startsWith(`km${pid.toString(36)}`));
}

/** The processes whose environment has the mark, but for this one. */
function processesOf(mark: string): { pid: number; command: string }[] {
  const entry = `${MARK}=${mark}`;
  return namesIn("/proc")
    .filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
    .flatMap((name) => {
      try {
        if (!readFileSync(`/proc/${name}/environ`, "latin1").split("\0").includes(entry)) return [];
        const command = readFileSync(`/proc/${name}/cmdline`, "latin1").replaceAll("\0", " ").trim();
        // One that has ended, and whose parent does not ask, has neither.
        return command === "" ? [] : [{ pid: Number(name), command }];
      } catch {
        return [];
      }
    });
}

function linesOf(program: string, ...parameters: string[]): string[] {
  const { stdout } = spawnSync(program, parameters, { encoding: "utf8" });
  return (stdout ?? "").split("\n").filter((line) => line !== "");
}

function firstWord(line: string): string {
  return line.split(" ")[0] ?? "";
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}
