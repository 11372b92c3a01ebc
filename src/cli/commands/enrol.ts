/** `kmesh enrol` and `unenrol`: the list of units in the configuration file, and at once in what governs. */

import { existsSync, readFileSync, realpathSync, statSync } from "node:fs";
import { dirname } from "node:path";
import { AdminError, askAgent, orderAgent } from "../../admin/client.ts";
import { adminSocket } from "../../admin/status.ts";
import { type Folders, readFolders } from "../../config/config.ts";
import { CONFIG_FILE, sourcesOf } from "../../config/sources.ts";
import type { SettingValues } from "../../config/values.ts";
import { NoUnit, unitName } from "../../datapath/tables/unit.ts";
import { codeOrReason, reasonOf } from "../../errors/reason.ts";
import { replaceFile } from "../../files/replace-file.ts";
import { LockHeld } from "../../kernel/lock.ts";
import { requireRoot } from "../../machine/unsupported.ts";
import { asset } from "../../runtime/assets.ts";
import { lockedUnless } from "../config-file/config-lock.ts";
import { type Change, type Edited, editUnits } from "../config-file/unit-setting.ts";
import { type Arguments, UsageError } from "../framework/arguments.ts";
import { command, FOLDER_FLAGS, OUTPUT_FLAG, textFlag } from "../framework/command.ts";
import { EXIT, Failure } from "../framework/exit.ts";
import { formatOf, print, printJson, remark } from "../framework/output.ts";
import { fileStep, tell as formatSteps, type Step } from "../framework/plan.ts";
import { type AtBoot, bootOrderOf, bootRemoval, bootStep, canWait } from "../service/boot-order.ts";
import { installedPaths, type Paths } from "../service/install-plan.ts";
import { GATE, needsReload, SERVICE, systemctl, systemdRuns } from "../service/systemd.ts";
import { runStep } from "../service/systemd-plan.ts";

/** An agent that reloads answers within this time, milliseconds. */
const SILENCE = 10_000;
/** A hand-over takes no longer, if nobody gave it more time; milliseconds. */
const HANDOVER = 65_000;
const LOOK = 200;

const DRY_FLAG = { "dry-run": { kind: "switch", about: "show what would be done" } } as const;
const UNITS = { name: "UNIT", about: "a systemd unit; nginx is nginx.service", required: true, many: true };

const NOTES = [
  "The units are kept in the key unit of the configuration file, whose comments stay. An agent that runs takes the file",
  "over at once, as with systemctl reload kmesh; without one the pinned tables are changed, or it holds from the next start.",
  "Connections that exist are not touched.",
];

const BOOT_NOTES = [
  "",
  "At boot a service that is enrolled starts after kmesh. When kmesh can't come up, it starts outside the mesh (open, the",
  "default), or waits until connections are governed (closed). A drop-in of systemd's says so, 50-kmesh.conf, which `unenrol`",
  "removes. Once it runs, a service is never stopped because kmesh stops or restarts.",
];

export const enrol = command({
  name: "enrol",
  about: "Govern these systemd units from now on",
  flags: {
    only: {
      kind: "switch",
      about: "where the whole machine is governed: govern these alone from now on",
    },
    "at-boot": {
      kind: "text",
      hint: "open|closed",
      about: "when kmesh can't come up: start outside the mesh, or wait",
    },
    ...DRY_FLAG,
    ...OUTPUT_FLAG,
    ...FOLDER_FLAGS,
  },
  positionals: [UNITS],
  notes: [...NOTES, ...BOOT_NOTES].join("\n"),
  run: (input) => change("add", input),
});

export const unenrol = command({
  name: "unenrol",
  about: "No longer govern these systemd units",
  flags: { ...DRY_FLAG, ...OUTPUT_FLAG, ...FOLDER_FLAGS },
  positionals: [UNITS],
  notes: [...NOTES, "The last one leaves an empty list, by which nothing is governed."].join("\n"),
  run: (input) => change("remove", input),
});

/** What came of it. */
type Effect = "none" | "dry run" | "agent" | "tables" | "next start";

async function change(kind: Change, input: Arguments): Promise<number> {
  const { path } = sourcesOf(input.flags, process.env).file;
  requireRoot(kind === "add" ? "kmesh enrol" : "kmesh unenrol");
  return lockedUnless(input.flags["dry-run"] === true, path, () => changeAlone(kind, input, path));
}

async function changeAlone(kind: Change, { flags, positionals }: Arguments, path: string): Promise<number> {
  const format = formatOf(flags);
  const names = [...new Set(positionals.map((text) => wholeName(text ?? "")))];
  const folders = readFolders(sourcesOf(flags, process.env));
  const only = flags.only === true;
  const dry = flags["dry-run"] === true;
  const boot = bootSteps(kind, names, atBootOf(flags), path);
  const before = textOf(path);
  const edited = editUnits(path, before, kind, names, only);
  if (kind === "remove" && edited.everything && boot.length === 0)
    throw new Failure(
      EXIT.failed,
      `${path} has no list of units by which anything is governed: the whole machine is`,
      "Name those that are to be governed: kmesh enrol --only UNIT...",
    );
  if (kind === "add") for (const name of names) warnOfUnknown(name);
  // A unit that is governed with all of the machine gets only what was asked for.
  const steps = edited.everything && flags["at-boot"] === undefined && kind === "add" ? [] : boot;
  let effect: Effect = "none";
  let told = "";
  if (dry) effect = "dry run";
  else if (!edited.everything) {
    if (edited.text !== before) replace(path, edited.text);
    try {
      ({ effect, told } = await takeEffect(kind, names, edited, folders, only, path));
    } catch (error) {
      if (edited.text !== before) {
        replace(path, before);
        await undo(folders, path);
      }
      throw error;
    }
  }
  const { changed, already, units, everything } = edited;
  if (format === "text") {
    print(tell(kind, path, edited, effect, told));
    if (dry && steps.length > 0) print("Dry run, nothing is changed:");
  }
  for (const step of steps) {
    if (format === "text") print(formatSteps([step]));
    if (!dry) await step.act?.();
  }
  if (format === "json") {
    const atBoot = steps.map(({ act: _, ...step }) => step);
    printJson({ file: path, changed, already, units: units ?? null, everything, effect, told, atBoot });
  }
  return EXIT.done;
}

/** What was asked for. Throws UsageError. */
function atBootOf(flags: Arguments["flags"]): AtBoot | undefined {
  const text = textFlag(flags, "at-boot");
  if (text === undefined || text === "open" || text === "closed") return text;
  throw new UsageError(`--at-boot: "${text}" is neither open nor closed`, "Write --at-boot closed.");
}

/**
 * The drop-ins, as far as they are not as they should be. Where nothing was asked for, services get `open`, unless somebody
 * said something before, or kmesh is no service here. Throws UsageError or Failure for what can't be.
 */
function bootSteps(
  kind: Change,
  names: readonly string[],
  asked: AtBoot | undefined,
  config: string,
): Step[] {
  const paths = installedPaths();
  const folder = dirname(paths.unit);
  const steps: Step[] = [];
  if (kind === "remove") {
    // Another configuration is another kmesh's, not the service's.
    if (config === CONFIG_FILE) steps.push(...names.flatMap((name) => bootRemoval(folder, name)));
  } else if (asked !== undefined) {
    requireService(paths, config);
    requireServices(names);
    if (asked === "closed") steps.push(gateStep(paths));
    steps.push(...names.map((name) => bootStep(folder, name, asked)));
  } else if (config === CONFIG_FILE && existsSync(paths.unit)) {
    const fresh = names.filter((name) => canWait(name) && bootOrderOf(folder, name) === undefined);
    steps.push(...fresh.map((name) => bootStep(folder, name, "open")));
  }
  const ours = names.filter((name) => config === CONFIG_FILE && bootOrderOf(folder, name) !== undefined);
  if (systemdRuns() && (steps.some(({ act }) => act) || ours.some(needsReload)))
    steps.push(runStep("daemon-reload"));
  return steps;
}

/** Where kmesh was installed by an earlier version it is not there yet. */
function gateStep(paths: Paths): Step {
  return fileStep(paths.gate, new TextDecoder().decode(asset(GATE)), 0o644);
}

function requireService(paths: Paths, config: string): void {
  if (config !== CONFIG_FILE)
    throw new UsageError(
      `--at-boot is about ${SERVICE}, which reads ${CONFIG_FILE}, not ${config}`,
      "Leave one of the two out.",
    );
  if (!existsSync(paths.unit))
    throw new Failure(
      EXIT.failed,
      `${SERVICE} is not installed, so nothing starts kmesh at boot`,
      "kmesh install makes it.",
    );
}

function requireServices(names: readonly string[]): void {
  const other = names.find((name) => !canWait(name));
  if (other !== undefined)
    throw new UsageError(
      `--at-boot: ${other} is no service, and has no start that could wait`,
      "Name the services in it.",
    );
}

/** What a person reads. */
export function tell(kind: Change, path: string, edited: Edited, effect: Effect, told: string): string {
  if (edited.everything)
    return kind === "add"
      ? "governed already: the whole machine is. To govern these alone: kmesh enrol --only UNIT..."
      : "governed as before: the whole machine is";
  const lines: string[] = [];
  const { changed, already, units } = edited;
  const done = kind === "add" ? "governed from now on" : "no longer governed by its name";
  if (changed.length > 0)
    lines.push(
      effect === "dry run"
        ? `would be ${kind === "add" ? "added to" : "taken out of"} the list in ${path}: ${changed.join(", ")}`
        : `${effect === "next start" ? "in the list" : done}: ${changed.join(", ")}`.replace(
            /^in the list/,
            kind === "add" ? `added to the list in ${path}` : `taken out of the list in ${path}`,
          ),
    );
  if (already.length > 0)
    lines.push(`${kind === "add" ? "governed already" : "not in the list"}: ${already.join(", ")}`);
  if (told !== "") lines.push(told);
  if (kind === "remove" && changed.length > 0 && units?.length === 0)
    lines.push("The list is empty now, so that no unit is governed by its name.");
  return lines.join("\n");
}

/** Throws when what governs does not follow the file. */
async function takeEffect(
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
async function undo(folders: Folders, path: string): Promise<void> {
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

function wholeName(text: string): string {
  try {
    return unitName(text);
  } catch (error) {
    if (!(error instanceof NoUnit)) throw error;
    throw new UsageError(error.message, "Write a unit as systemctl shows it, for example nginx.service.");
  }
}

function textOf(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    const code = codeOrReason(error);
    throw new Failure(
      EXIT.usage,
      `${path} can't be read (${code})`,
      "kmesh install writes one; another is named by --config FILE.",
    );
  }
}

/** The file whole, or as it was; with its mode and owner, and where a link leads. */
function replace(path: string, text: string): void {
  const real = realpathSync(path);
  const { mode, uid, gid } = statSync(real);
  replaceFile(real, text, { mode: mode & 0o7777, owner: { uid, gid }, durable: true });
}

/** It may be installed later. */
function warnOfUnknown(unit: string): void {
  if (!systemdRuns()) return;
  try {
    if (systemctl("show", "--property=LoadState", "--value", "--", unit) === "not-found")
      remark(`kmesh: systemd knows no ${unit}; it is governed as soon as it runs`);
  } catch {
    // Nothing that matters here.
  }
}
