/** `kmesh enrol` and `unenrol`: change the list of units in the configuration file and apply it at once. */
import { readFileSync, realpathSync, statSync } from "node:fs";
import { readFolders } from "../../../config/config.ts";
import { sourcesOf } from "../../../config/sources.ts";
import { NoUnit, unitName } from "../../../datapath/tables/unit.ts";
import { faultOfFile } from "../../../errors/reason.ts";
import { replaceFile } from "../../../files/replace-file.ts";
import { lockedUnless } from "../../config-file/config-lock.ts";
import { type Change, type Edited, editUnits } from "../../config-file/unit-setting.ts";
import { atBootOf, bootSteps } from "../../enrolment/boot-plan.ts";
import { type Effect, takeEffect, undo } from "../../enrolment/take-effect.ts";
import { type Arguments, UsageError } from "../../framework/arguments.ts";
import { command, FOLDER_FLAGS, OUTPUT_FLAG } from "../../framework/command.ts";
import { EXIT, Failure } from "../../framework/exit.ts";
import { formatOf, print, printJson, remark } from "../../framework/output.ts";
import { tell as formatSteps } from "../../framework/plan.ts";
import { systemctl, systemdRuns } from "../../service/systemd.ts";

const DRY_FLAG = { "dry-run": { kind: "switch", about: "print the steps without doing them" } } as const;

const UNITS = {
  name: "UNIT",
  about: "a systemd unit; nginx is nginx.service",
  required: true,
  many: true,
  completes: "unit",
} as const;

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
  about: "Govern these systemd units",
  changes: true,
  flags: {
    only: {
      kind: "switch",
      about: "when the whole machine is governed: govern only these units instead",
    },
    "at-boot": {
      kind: "text",
      hint: "open|closed",
      about: "if kmesh can't start at boot: start the unit outside the mesh (open), or wait (closed)",
    },
    ...DRY_FLAG,
    ...OUTPUT_FLAG,
    ...FOLDER_FLAGS,
  },
  positionals: [UNITS],
  notes: [...NOTES, ...BOOT_NOTES].join("\n"),
  examples: [
    ["enrol nginx", "Govern nginx.service"],
    ["enrol shop --at-boot closed", "Also let it wait at boot until connections are governed"],
  ],
  run: (input) => change("add", input),
});

export const unenrol = command({
  name: "unenrol",
  about: "No longer govern these systemd units",
  changes: true,
  flags: { ...DRY_FLAG, ...OUTPUT_FLAG, ...FOLDER_FLAGS },
  positionals: [UNITS],
  notes: [...NOTES, "The last one leaves an empty list, by which nothing is governed."].join("\n"),
  examples: [["unenrol nginx", "Stop governing nginx.service by its name"]],
  run: (input) => change("remove", input),
});

async function change(kind: Change, input: Arguments): Promise<number> {
  const { path } = sourcesOf(input.flags, process.env).file;
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
  // The whole machine is governed already, so only the requested boot order is written.
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

/** The result as text. */
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
    throw new Failure(
      EXIT.usage,
      `${path} ${faultOfFile(error)}`,
      "kmesh install writes one; --config FILE names another.",
    );
  }
}

/** Replaces the file atomically. Keeps its mode and owner, and follows a link. */
function replace(path: string, text: string): void {
  const real = realpathSync(path);
  const { mode, uid, gid } = statSync(real);
  replaceFile(real, text, { mode: mode & 0o7777, owner: { uid, gid }, durable: true });
}

/** Warns about a unit that does not exist: it may be installed later. */
function warnOfUnknown(unit: string): void {
  if (!systemdRuns()) return;
  try {
    if (systemctl("show", "--property=LoadState", "--value", "--", unit) === "not-found")
      remark(`kmesh: systemd knows no ${unit}; it is governed as soon as it runs`);
  } catch {
    // The answer does not matter here.
  }
}
