/** Applies the list of units in the file: by the running agent, or directly in the pinned tables. */
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

/** Time limits for an agent that starts and for one that hands over (`--timeout` of an upgrade), milliseconds. */
const PATIENCE = { start: 65_000, handover: 3_665_000 };

const LOOK = 200;

/** The result. */
export type Effect = "none" | "dry run" | "agent" | "tables" | "next start";

/**
 * Throws when the change can't take effect. The agent may end, start or hand over between any two requests; then the
 * function starts again with the present agent.
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
        // An agent with another run folder never answers here.
        const starts = error instanceof LockHeld && error.path !== folders.bpffs;
        if (!starts || performance.now() > begin + patience.start) throw error;
      }
      // The agent may have read the file before or after the change.
      await wait("the agent that is just starting");
      continue;
    }
    if (follows && edited.changed.length === 0) return { effect: "none", told: "" };
    const answer = await reloadAgent(socket);
    if (answer === "gone") continue;
    if (answer instanceof Error) {
      // The hand-over ends by its own time limit.
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

/** Whether the agent governs the requested units; undefined when no agent answers. */
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

/** After the file was restored: an agent that may have read the changed file must reload it. */
export async function undo(folders: Folders, path: string): Promise<void> {
  try {
    await orderAgent(adminSocket(folders.runDir), "/reload", {}, () => {}, SILENCE);
  } catch (error) {
    // The agent refuses the restored file, too, so it never applied the change.
    if (error instanceof AdminError && error.status !== 409) return;
    remark(
      `kmesh: ${path} is as it was, and whether the agent read it meanwhile is not known: systemctl reload kmesh, or SIGHUP, makes sure`,
    );
  }
}

/**
 * Asks the agent to reload. Returns its answer, "gone" when it ended before it answered, or an Error when it is handing
 * over. Throws Failure when it refuses.
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

/** Without an agent: changes the pinned tables. */
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
  // A starting agent holds the tables and may have read the old file.
  const locks = Locks.acquireBriefly(folders);
  try {
    const tables = openPinned(folders.bpffs);
    try {
      // The new list replaces all other enrolment.
      if (only && edited.changed.length > 0 && tables.settings.flags.everyCgroup)
        enrolment.enrol(tables, { cgroups: [], units: names });
      else enrolment.changeUnits(tables, kind, names);
    } finally {
      tables.close();
    }
    return { effect: "tables", told: "No agent runs; the pinned tables were changed." };
  } catch (error) {
    if (error instanceof NothingPinned)
      return {
        effect: "next start",
        told: "Nothing is pinned: the change takes effect at the next start of the agent.",
      };
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
