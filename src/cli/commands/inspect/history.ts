import { type Entry, readHistory } from "../../../state/history.ts";
import { command, FOLDER_FLAGS, OUTPUT_FLAG } from "../../framework/command.ts";
import { EXIT } from "../../framework/exit.ts";
import { formatOf, print, printJson, table } from "../../framework/output.ts";
import { foldersOf } from "../../framework/view.ts";

export const history = command({
  name: "history",
  about: "Print this machine's starts, restarts, upgrades and rollbacks, the latest last",
  flags: { ...OUTPUT_FLAG, ...FOLDER_FLAGS },
  notes: "The last 200 entries are in history.json in the state folder. Needs no agent.",
  examples: [["history", "Show starts, upgrades and rollbacks, and their results"]],
  async run({ flags }) {
    const format = formatOf(flags);
    const folders = foldersOf(flags);
    const entries = readHistory(folders.stateDir);
    if (format === "json") printJson({ entries });
    else if (entries.length === 0) print(`Nothing is noted in ${folders.stateDir}.`);
    else print(formatHistory(entries));
    return EXIT.done;
  },
});

/** One line for each entry. */
export function formatHistory(entries: readonly Entry[]): string {
  return table(
    ["WHEN", "WHAT", "VERSION", "RESULT", "PID", ""],
    entries.map((entry) => [
      entry.at.replace(/\.\d+Z$/, "Z"),
      entry.kind,
      versionsOf(entry),
      entry.result,
      `${entry.pid}`,
      detailsOf(entry),
    ]),
  );
}

function versionsOf({ kind, from, to }: Entry): string {
  if (kind === "start" || from === to || from === undefined) return to ?? from ?? "";
  return to === undefined ? from : `${from} -> ${to}`;
}

function detailsOf(entry: Entry): string {
  if (entry.reason !== undefined) return entry.reason;
  if (entry.cause !== undefined) {
    const other = entry.from !== undefined && entry.from !== entry.to ? `, before it ${entry.from}` : "";
    const times = entry.times === undefined ? "" : ` (${entry.times} times)`;
    const step = entry.unfinished === undefined ? "" : `, in the middle of a step (${entry.unfinished})`;
    return `${CAUSES[entry.cause]}${step}${other}${times}`;
  }
  if (entry.gap_ms === undefined) return "";
  return [
    `gap ${entry.gap_ms} ms`,
    `${entry.connections} connections`,
    `${entry.failed} failed`,
    `${entry.refused} refused`,
    `${entry.map_writes} map writes`,
    `${entry.relinked} hooks attached again`,
  ].join(", ");
}

const CAUSES: Record<NonNullable<Entry["cause"]>, string> = {
  "first start": "the first one",
  stopped: "after a stop",
  crash: "the one before was killed or crashed",
  reboot: "after a reboot",
};
