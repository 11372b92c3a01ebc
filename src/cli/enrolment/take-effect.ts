/** Has what governs follow the list of units in the file: the agent that runs, or else the pinned tables. */
import { AdminError, askAgent, isLoss, orderAgent } from "../../admin/client.ts";
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

/** How long the agent may be about to start, and how long it may hand over (`--timeout` of an upgrade); milliseconds. */
const PATIENCE = { start: 65_000, handover: 3_665_000 };

const LOOK = 200;

/** What came of it. */
export type Effect = "none" | "dry run" | "agent" | "tables" | "next start";

/**
 * Throws when what governs does not follow the file. The agent may end, start or hand over to another one between any two
 * questions: then it begins again, with whoever is there.
 */
export async function takeEffect(
  kind: Change,
  names: readonly string[],
  edited: Edited,
  folders: Folders,
  only: boolean,
  path: string,
  patience = PATIENCE,
): Promise<{ effect: Effect; told: string }> {
  const socket = adminSocket(folders.runDir);
  const begin = performance.now();
  let waits = false;
  const wait = async (why: string) => {
    if (!waits) remark(`kmesh: waiting for ${why}`);
    waits = true;
    await new Promise((resolve) => setTimeout(resolve, LOOK));
  };
  for (;;) {
    const follows = await followsFile(socket, kind, names);
    if (follows === undefined) {
      try {
        return await changeTables(kind, names, edited, folders, only);
      } catch (error) {
        // One with another run folder never answers here.
        const starts = error instanceof LockHeld && error.path !== folders.bpffs;
        if (!starts || performance.now() > begin + patience.start) throw error;
      }
      // It may have read the file before or after it was written.
      await wait("the agent that is just starting");
      continue;
    }
    if (follows && edited.changed.length === 0) return { effect: "none", told: "" };
    const answer = await reloadAgent(socket);
    if (answer === "gone") continue;
    if (answer instanceof Error) {
      // Its own time ends it: the one that was given with the order to hand over.
      if (performance.now() > begin + patience.handover) throw refused(answer);
      await wait(
        "the end of a hand-over between agents, or of a start (Ctrl-C: the next start takes the file over)",
      );
      continue;
    }
    const now = await followsFile(socket, kind, names);
    if (now) return { effect: "agent", told: answer.told };
    if (now === undefined) continue;
    throw new Failure(
      EXIT.failed,
      `nothing was changed, the agent that runs does not take its units from ${path}`,
      "It was started with another --config, or with --unit or KMESH_UNIT, which win over the file: kmesh config diff.",
    );
  }
}

/** Whether the agent that answers has the units as they should be; undefined when none answers. */
async function followsFile(
  socket: string,
  kind: Change,
  names: readonly string[],
): Promise<boolean | undefined> {
  const values = (await askAgent(socket, "/config", SILENCE)) as SettingValues | undefined;
  if (!values) return undefined;
  const units = Array.isArray(values.unit) ? values.unit : [];
  return names.every((name) => units.includes(name) === (kind === "add"));
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

/**
 * Has the agent read its configuration. Gives what it says; "gone" when it went away before it had answered; an Error when
 * another one is about to take over from it. Throws Failure when it refuses.
 */
async function reloadAgent(socket: string): Promise<{ told: string } | "gone" | AdminError> {
  let told = "";
  try {
    const answered = await orderAgent(
      socket,
      "/reload",
      {},
      (line) => {
        told = (line as { reloaded?: string }).reloaded ?? told;
      },
      SILENCE,
    );
    return answered ? { told } : "gone";
  } catch (error) {
    if (isLoss(error)) return "gone";
    if (error instanceof AdminError && error.status === 409) return error;
    throw refused(error);
  }
}

function refused(error: unknown): Failure {
  const old = error instanceof AdminError && error.status === 404;
  return new Failure(
    EXIT.failed,
    `nothing was changed, the agent did not take it over: ${reasonOf(error)}`,
    old ? "It is of a version that can't: kmesh restart --graceful with this one first." : "",
  );
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
