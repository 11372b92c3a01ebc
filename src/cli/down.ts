import { rmSync } from "node:fs";
import { createInterface } from "node:readline/promises";
import { statusFile } from "../admin/status.ts";
import { type Folders, readFolders, sourcesOf } from "../agent/config.ts";
import { requireRoot } from "../agent/unsupported.ts";
import { UsageError } from "./arguments.ts";
import { command, FOLDER_FLAGS, OUTPUT_FLAG } from "./command.ts";
import { EXIT, Failure } from "./exit.ts";
import { formatOf, print, printJson } from "./output.ts";

/** How long an agent may take to stop, milliseconds. */
const STOP_PATIENCE = 10_000;

export const down = command({
  name: "down",
  about: "Stop the agent, then detach and remove all that kmesh put into the kernel, and its snapshot",
  flags: { yes: { kind: "switch", about: "do not ask" }, ...FOLDER_FLAGS, ...OUTPUT_FLAG },
  async run({ flags }) {
    const format = formatOf(flags);
    const folders = readFolders(sourcesOf(flags, process.env));
    requireRoot("kmesh down");
    const [{ removePinned }, { livingAgent, Locks }, { listPins }, { hasSnapshot, removeSnapshot }] =
      await Promise.all([
        import("../datapath/inspect.ts"),
        import("../agent/locks.ts"),
        import("../kernel/bpffs.ts"),
        import("../agent/snapshot.ts"),
      ]);
    const pins = listPins(folders.bpffs).length;
    const agent = livingAgent(folders);
    if (pins === 0 && agent === undefined && !hasSnapshot(folders.stateDir)) {
      if (format === "json") printJson({ stopped: null, removed: [], snapshot: false });
      else print(`Nothing to do: nothing is pinned in ${folders.bpffs}, and no agent runs.`);
      return EXIT.done;
    }
    if (flags.yes !== true && !(await confirmed(question(folders, pins, agent)))) {
      throw new Failure(EXIT.failed, "nothing was changed");
    }
    if (agent !== undefined) await stop(agent, () => livingAgent(folders));
    // Held until the end, so that no agent starts into half of it.
    const locks = Locks.acquire(folders);
    try {
      const { removed } = removePinned(folders.bpffs);
      rmSync(statusFile(folders.runDir), { force: true });
      // It would bring back, after the next reboot, what was just taken away.
      const snapshot = removeSnapshot(folders.stateDir);
      if (format === "json") printJson({ stopped: agent ?? null, removed, snapshot });
      else
        print(
          `Removed ${removed.length} pins in ${folders.bpffs}${snapshot ? `, and the snapshot in ${folders.stateDir}` : ""}. New connections go where apps send them.`,
        );
    } finally {
      locks.release();
    }
    return EXIT.done;
  },
});

function question(folders: Folders, pins: number, agent: number | undefined): string {
  const stop = agent === undefined ? "" : `The agent (pid ${agent}) will be stopped. `;
  const snapshot = `The snapshot in ${folders.stateDir} goes too. Go on? [y/N] `;
  if (pins === 0) return stop + snapshot;
  return `${stop}${pins} programs, maps and links in ${folders.bpffs} will be detached and removed; new connections then go where apps send them. ${snapshot}`;
}

async function confirmed(text: string): Promise<boolean> {
  if (!process.stdin.isTTY)
    throw new UsageError("there is no terminal to ask on", "Add --yes when you mean it.");
  const prompt = createInterface({ input: process.stdin, output: process.stderr });
  try {
    return /^y(es)?$/i.test((await prompt.question(text)).trim());
  } finally {
    prompt.close();
  }
}

async function stop(pid: number, living: () => number | undefined): Promise<void> {
  if (pid === 0) {
    throw new Failure(
      EXIT.failed,
      "an agent with another run folder uses these tables",
      "Stop it first, or name its folder with --run-dir.",
    );
  }
  process.kill(pid, "SIGTERM");
  const deadline = performance.now() + STOP_PATIENCE;
  while (performance.now() < deadline) {
    if (living() !== pid) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Failure(
    EXIT.failed,
    `the agent (pid ${pid}) did not stop within ${STOP_PATIENCE / 1000} s`,
    `Stop it, then try again: kill -9 ${pid}`,
  );
}
