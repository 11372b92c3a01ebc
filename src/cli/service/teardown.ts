/** Ending an agent, and taking everything of a mesh out of the kernel: what `down` and `uninstall` share. */
import { rmSync } from "node:fs";
import { createInterface } from "node:readline/promises";
import { statusFile } from "../../admin/status.ts";
import type { Folders } from "../../config/config.ts";
import { UsageError } from "../framework/arguments.ts";
import { EXIT, Failure } from "../framework/exit.ts";
import { serviceOf, systemctl } from "./systemd.ts";

/** How long an agent may take to stop, milliseconds. */
const STOP_PATIENCE = 10_000;

/** What there is to take down. */
export interface Found {
  /** The agent's pid; 0 is one with another run folder. */
  agent: number | undefined;
  pins: number;
  /** The last good mesh lies in the state folder. */
  snapshot: boolean;
  /** So does what tells of the tables. */
  manifest: boolean;
}

export async function findAll(folders: Folders): Promise<Found> {
  const [{ livingAgent }, { ownPins }, { hasSnapshot }, { hasManifest }] = await Promise.all([
    import("../../agent/locks.ts"),
    import("../../datapath/inspect/inspect.ts"),
    import("../../state/snapshot.ts"),
    import("../../state/manifest.ts"),
  ]);
  return {
    agent: livingAgent(folders),
    pins: ownPins(folders.bpffs).length,
    snapshot: hasSnapshot(folders.stateDir),
    manifest: hasManifest(folders.stateDir),
  };
}

/**
 * Stops the agent, then detaches and unpins everything; the snapshot goes too, or it would bring back after the next
 * start what was just taken away, and the manifest, which tells of nothing any more, also one of a version that this one
 * does not know. Gives the pins, whether there was a snapshot, and the service that was stopped if the agent was one. Throws Failure when the agent does not stop.
 */
export async function takeDown(
  folders: Folders,
  state: "remove snapshot" | "keep state" = "remove snapshot",
): Promise<{ removed: string[]; snapshot: boolean; service: string | undefined }> {
  const [
    { removePinned },
    { livingAgent, Locks },
    { removeSnapshot },
    { linksInManifest, removeManifest },
    { pinHiddenLinks },
    { machineId },
    { bootId },
    { isOnBpffs },
    { removeNames },
  ] = await Promise.all([
    import("../../datapath/inspect/inspect.ts"),
    import("../../agent/locks.ts"),
    import("../../state/snapshot.ts"),
    import("../../state/manifest.ts"),
    import("../../datapath/generation/hidden-links.ts"),
    import("../../machine/machine-id.ts"),
    import("../../state/history.ts"),
    import("../../kernel/bpffs.ts"),
    import("../../names/names.ts"),
  ]);
  const agent = livingAgent(folders);
  const service = agent === undefined ? undefined : await stop(agent, () => livingAgent(folders));
  // Held until the end, so that no agent starts into half of it.
  const locks = Locks.acquire(folders);
  try {
    // Also what a bpffs that was mounted over hides.
    if (isOnBpffs(folders.bpffs))
      pinHiddenLinks(folders.bpffs, linksInManifest(folders.stateDir, machineId(), bootId()));
    removeNames(folders.bpffs);
    const { removed } = removePinned(folders.bpffs);
    rmSync(statusFile(folders.runDir), { force: true });
    const snapshot = state === "remove snapshot" && removeSnapshot(folders.stateDir);
    if (state === "remove snapshot") removeManifest(folders.stateDir);
    return { removed, snapshot, service };
  } finally {
    locks.release();
  }
}

/** Asks on the terminal. Throws UsageError where there is none. */
export async function confirmed(text: string): Promise<boolean> {
  if (!process.stdin.isTTY)
    throw new UsageError("there is no terminal to ask on", "Add --yes when you mean it.");
  const prompt = createInterface({ input: process.stdin, output: process.stderr });
  try {
    return /^y(es)?$/i.test((await prompt.question(`${text} Go on? [y/N] `)).trim());
  } finally {
    prompt.close();
  }
}

/** Gives the service that it was. */
async function stop(pid: number, living: () => number | undefined): Promise<string | undefined> {
  if (pid === 0) {
    throw new Failure(
      EXIT.failed,
      "an agent with another run folder uses these tables",
      "Stop it first, or name its folder with --run-dir.",
    );
  }
  // A service's agent would be started again.
  const service = serviceOf(pid);
  if (service !== undefined) systemctl("stop", service);
  else process.kill(pid, "SIGTERM");
  const deadline = performance.now() + STOP_PATIENCE;
  while (performance.now() < deadline) {
    if (living() !== pid) return service;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Failure(
    EXIT.failed,
    `the agent (pid ${pid}) did not stop within ${STOP_PATIENCE / 1000} s`,
    `Stop it, then try again: kill -9 ${pid}`,
  );
}
