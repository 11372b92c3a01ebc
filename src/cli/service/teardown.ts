/** Stops an agent and removes a mesh from the kernel, for `down` and `uninstall`. */
import { rmSync } from "node:fs";
import { createInterface } from "node:readline/promises";
import { statusFile } from "../../admin/status.ts";
import type { Folders } from "../../config/config.ts";
import { UsageError } from "../framework/arguments.ts";
import { EXIT, Failure } from "../framework/exit.ts";
import { serviceOf, systemctl } from "./systemd.ts";

/** Longest time for an agent to stop, milliseconds. */
const STOP_PATIENCE = 10_000;

/** The things to remove. */
export interface Found {
  /** The agent's pid; 0 for an agent with another run folder. */
  agent: number | undefined;
  pins: number;
  /** Whether the state folder has a snapshot. */
  snapshot: boolean;
  /** Whether the state folder has a manifest. */
  manifest: boolean;
}

export async function findAll(folders: Folders): Promise<Found> {
  const [{ livingAgent }, { ownPins }, { hasSnapshot }, { hasManifest }] = await Promise.all([
    import("../../agent/locks.ts"),
    import("../../datapath/removal.ts"),
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
 * Stops the agent, then detaches and unpins everything. Also removes the snapshot, which the next start would load, and
 * the manifest, also one of an unknown version. Returns the pins, whether there was a snapshot, and the service that was
 * stopped, if any. Throws Failure when the agent does not stop.
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
    import("../../datapath/removal.ts"),
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
  // Held until the end, so that no agent starts meanwhile.
  const locks = Locks.acquire(folders);
  try {
    // Also pins that another mount hides.
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

/** Asks on the terminal. Throws UsageError without a terminal. */
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

/** Stops the agent. Returns its service, if it has one. */
async function stop(pid: number, living: () => number | undefined): Promise<string | undefined> {
  if (pid === 0) {
    throw new Failure(
      EXIT.failed,
      "an agent with another run folder uses these tables",
      "Stop it first, or name its folder with --run-dir.",
    );
  }
  // systemd would start the agent of a service again.
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
