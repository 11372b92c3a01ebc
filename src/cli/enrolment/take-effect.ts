/** Has what governs follow the list of units in the file: the agent that runs, or else the pinned tables. */
import { AdminError, askAgent, orderAgent } from "../../admin/client.ts";
import { adminSocket } from "../../admin/status.ts";
import type { Folders } from "../../config/config.ts";
import type { SettingValues } from "../../config/values.ts";
import { reasonOf } from "../../errors/reason.ts";
import { LockHeld } from "../../kernel/lock.ts";
import type { Change, Edited } from "../config-file/unit-setting.ts";
import { EXIT, Failure } from "../framework/exit.ts";
import { remark } from "../framework/output.ts";

/** An agent that reloads answers within this time, milliseconds. */
const SILENCE = 10_000;

/** A hand-over takes no longer, if nobody gave it more time; milliseconds. */
const HANDOVER = 65_000;

const LOOK = 200;

/** What came of it. */
export type Effect = "none" | "dry run" | "agent" | "tables" | "next start";

/** Throws when what governs does not follow the file. */
export async function takeEffect(
  kind: Change,
  names: readonly string[],
  edited: Edited,
  folders: Folders,
  only: boolean,
  path: string,
): Promise<{ effect: Effect; told: string }> {
  const socket = adminSocket(folders.runDir);
  const follows = async () => {
    const values = (await askAgent(socket, "/config", SILENCE)) as SettingValues | undefined;
    if (!values) return undefined;
    const units = Array.isArray(values.unit) ? values.unit : [];
    return names.every((name) => units.includes(name) === (kind === "add"));
  };
  const until = performance.now() + HANDOVER;
  let now = await follows();
  for (let waits = false; now === undefined; waits = true) {
    try {
      return await changeTables(kind, names, edited, folders, only);
    } catch (error) {
      // One with another run folder never answers here.
      const starts = error instanceof LockHeld && error.path !== folders.bpffs;
      if (!starts || performance.now() > until) throw error;
    }
    // It may have read the file before or after it was written.
    if (!waits) remark("kmesh: waiting for the agent that is just starting");
    await new Promise((resolve) => setTimeout(resolve, LOOK));
    now = await follows();
  }
  if (now && edited.changed.length === 0) return { effect: "none", told: "" };
  let told = "";
  try {
    told = await reloadAgent(socket);
  } catch (error) {
    const old = error instanceof AdminError && error.status === 404;
    throw new Failure(
      EXIT.failed,
      `nothing was changed, the agent did not take it over: ${reasonOf(error)}`,
      old ? "It is of a version that can't: kmesh restart --graceful with this one first." : "",
    );
  }
  if (await follows()) return { effect: "agent", told };
  throw new Failure(
    EXIT.failed,
    `nothing was changed, the agent that runs does not take its units from ${path}`,
    "It was started with another --config, or with --unit or KMESH_UNIT, which win over the file: kmesh config diff.",
  );
}

/** The file is as it was: an agent that has read it meanwhile, and could not say so, is to read it again. */
export async function undo(folders: Folders, path: string): Promise<void> {
  try {
    await orderAgent(adminSocket(folders.runDir), "/reload", {}, () => {}, SILENCE);
  } catch (error) {
    // It refused the file before, too, or can't read it anew: it has not taken anything from it.
    if (error instanceof AdminError && error.status !== 409) return;
    remark(
      `kmesh: ${path} is as it was, and whether the agent read it meanwhile is not known: systemctl reload kmesh, or SIGHUP, makes sure`,
    );
  }
}

/** Has the agent read its configuration; the one that takes over, when a hand-over is under way. Gives what it tells. */
async function reloadAgent(socket: string): Promise<string> {
  const until = performance.now() + HANDOVER;
  let told = "";
  for (let waits = false; ; waits = true) {
    try {
      await orderAgent(
        socket,
        "/reload",
        {},
        (line) => {
          told = (line as { reloaded?: string }).reloaded ?? told;
        },
        SILENCE,
      );
      return told;
    } catch (error) {
      const later = error instanceof AdminError && error.status === 409;
      if (!later || performance.now() > until) throw error;
      if (!waits) remark("kmesh: waiting for the end of a hand-over between agents, or of a start");
      await new Promise((resolve) => setTimeout(resolve, LOOK));
    }
  }
}

/** Without an agent: what is pinned. */
async function changeTables(
  kind: Change,
  names: readonly string[],
  edited: Edited,
  folders: Folders,
  only: boolean,
): Promise<{ effect: Effect; told: string }> {
  const [{ Locks }, { openPinned, NothingPinned }, { ForeignGeneration }, enrolment] = await Promise.all([
    import("../../agent/locks.ts"),
    import("../../datapath/inspect/inspect.ts"),
    import("../../datapath/generation/generations.ts"),
    import("../../datapath/tables/enrolment.ts"),
  ]);
  // An agent that starts just now holds them; it may have read the file as it was.
  const locks = Locks.acquireBriefly(folders);
  try {
    const tables = openPinned(folders.bpffs);
    try {
      // The list has begun: whatever else was enrolled is not any more.
      if (only && edited.changed.length > 0 && tables.settings.flags.everyCgroup)
        enrolment.enrol(tables, { cgroups: [], units: names });
      else enrolment.changeUnits(tables, kind, names);
    } finally {
      tables.close();
    }
    return { effect: "tables", told: "No agent runs; what the kernel holds was changed." };
  } catch (error) {
    if (error instanceof NothingPinned)
      return { effect: "next start", told: "Nothing is pinned: it holds from the next start of the agent." };
    if (error instanceof ForeignGeneration)
      return {
        effect: "next start",
        told: "The tables of another version govern, and no agent runs: it holds from the next start of the agent.",
      };
    throw error;
  } finally {
    locks.release();
  }
}
