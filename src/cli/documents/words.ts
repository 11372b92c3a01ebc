/** Completion candidates, from the tables of commands and flags. */
import type { Setting } from "../../config/settings.ts";
import type { Positional } from "../framework/arguments.ts";
import type { Command } from "../framework/command.ts";
import { FILES, FOLDERS } from "./completion.ts";

/** A candidate and its description. */
export type Candidate = readonly [word: string, about: string];

/** Names that depend on the machine. */
export interface Names {
  services(): Promise<readonly string[]>;
  units(): readonly string[];
}

/** Candidates for the last of `words` (without the program's name). FILES and FOLDERS stand for paths. */
export async function candidates(
  words: readonly string[],
  commands: readonly Command[],
  names: Names,
): Promise<Candidate[]> {
  const current = words.at(-1) ?? "";
  const visible = commands.filter(({ hidden }) => !hidden);
  const commandNames = visible.map(({ name, about }): Candidate => [name, about]);
  if (words.length <= 1)
    return starting(current, [...commandNames, ["help", "Show help"], ["--version", "Print the version"]]);
  if (words[0] === "help") return words.length === 2 ? starting(current, commandNames) : [];
  const spec = visible.find(({ name }) => name === words[0]);
  if (!spec) return [];
  const inline = /^(--[a-z0-9-]+=)(.*)$/s.exec(current);
  if (inline) {
    const [, flag = "", value = ""] = inline;
    const setting = settingOf(spec, flag.slice(0, -1));
    const found = setting ? await valuesOf(setting, flag, value, names) : [];
    return found.map(([word, about]) => [isMarker(word) ? word : flag + word, about]);
  }
  const before = words.slice(1, -1);
  const waiting = settingOf(spec, before.at(-1) ?? "");
  if (waiting && waiting.kind !== "switch" && !before.includes("--"))
    return valuesOf(waiting, before.at(-1) ?? "", current, names);
  if (current.startsWith("-") && !before.includes("--"))
    return starting(
      current,
      Object.entries(spec.flags).map(([name, { about }]): Candidate => [`--${name}`, about]),
    );
  const at = positionalsIn(spec, before);
  const positional =
    spec.positionals[at] ?? (spec.positionals.at(-1)?.many ? spec.positionals.at(-1) : undefined);
  return positional ? positionalValues(positional, current, commandNames, names) : [];
}

function starting(prefix: string, all: readonly Candidate[]): Candidate[] {
  return all.filter(([word]) => word.startsWith(prefix));
}

function isMarker(word: string): boolean {
  return word === FILES || word === FOLDERS;
}

function settingOf(spec: Command, flag: string): Setting | undefined {
  if (/^-[a-zA-Z]$/.test(flag)) return Object.values(spec.flags).find(({ short }) => `-${short}` === flag);
  const name = flag.replace(/^--/, "");
  return flag.startsWith("--") && Object.hasOwn(spec.flags, name) ? spec.flags[name] : undefined;
}

/** The number of positionals in `words`. */
function positionalsIn(spec: Command, words: readonly string[]): number {
  let count = 0;
  for (let i = 0; i < words.length; i++) {
    const word = words[i] ?? "";
    const setting = settingOf(spec, word);
    if (setting && setting.kind !== "switch") i += 1;
    else if (!word.startsWith("-")) count += 1;
  }
  return count;
}

async function valuesOf(setting: Setting, flag: string, prefix: string, names: Names): Promise<Candidate[]> {
  const { hint = "", choices } = setting;
  if (choices) return starting(prefix, described(choices, ""));
  if (flag.startsWith("--unit")) return starting(prefix, described(names.units(), "unit"));
  if (/^[a-z]+(\|[a-z]+)+$/.test(hint)) return starting(prefix, described(hint.split("|"), ""));
  if (hint.startsWith("DIR")) return [[FOLDERS, ""]];
  return hint === "FILE" || hint === "PATH" ? [[FILES, ""]] : [];
}

async function positionalValues(
  { choices, completes, name }: Positional,
  prefix: string,
  commandNames: readonly Candidate[],
  names: Names,
): Promise<Candidate[]> {
  if (choices) return starting(prefix, described(choices, ""));
  switch (completes) {
    case "service":
      return starting(prefix, described(await names.services(), "service"));
    case "unit":
      return starting(prefix, described(names.units(), "unit"));
    case "command":
      return starting(prefix, commandNames);
    default:
      return completes === "file" || name.toLowerCase() === "file" ? [[FILES, ""]] : [];
  }
}

function described(words: readonly string[], about: string): Candidate[] {
  return words.map((word): Candidate => [word, about]);
}
