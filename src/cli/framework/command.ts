/** One command: its words for help, manual and completion, its arguments, its run. */
import { FOLDERS, SETTINGS, type Setting } from "../../config/settings.ts";
import type { Flags } from "../../config/sources.ts";
import type { Arguments, Positional, Shape } from "./arguments.ts";

export interface Command extends Shape {
  name: string;
  about: string;
  /** Not listed by help: called by kmesh itself, a package or a shell. */
  hidden: boolean;
  /**
   * Who may run it. root: checked before anything is read. reader: also members of the group `admin-group`; the agent's
   * socket decides. anyone: the command itself finds out what the user may do.
   */
  access: "root" | "reader" | "anyone";
  /** It changes the machine, so the loss of the terminal does not end it. */
  changes: boolean;
  /** Help text below the flags: paragraphs separated by empty lines. Lines that begin with a blank are not wrapped. */
  notes: string;
  /** Command lines without the program's name, each with its meaning. */
  examples: readonly (readonly [string, string])[];
  /** Returns the exit code. Throws UsageError, ConfigError or Failure; any other error is a bug. */
  run(input: Arguments, program: Program): Promise<number>;
}

/** The loader of each command, by name. */
export type Commands = Readonly<Record<string, () => Promise<Command>>>;

/** The program of a command, for help, manual and completion. */
export interface Program {
  commands: Commands;
  about: { version: string; description: string };
}

/** All commands, loaded. */
export function loadAll(commands: Commands): Promise<Command[]> {
  return Promise.all(Object.values(commands).map((load) => load()));
}

type Definition = Pick<Command, "name" | "about" | "run"> & Partial<Command>;

export function command(definition: Definition): Command {
  const { flags = {}, ...rest } = definition;
  return {
    positionals: [],
    hidden: false,
    access: "root",
    changes: false,
    notes: "",
    examples: [],
    ...rest,
    flags: { ...flags, ...VERBOSE_FLAG },
  };
}

/** `--verbose`, which every command takes. */
const VERBOSE_FLAG: Record<string, Setting> = {
  verbose: { kind: "switch", short: "v", about: "print how the answer was found, and the stack of an error" },
};

/** `--config FILE`. */
export const CONFIG_FLAG: Record<string, Setting> = {
  config: { kind: "text", hint: "FILE", about: "the configuration file (default: /etc/kmesh/config.yaml)" },
};

/** `--output text|json`, for commands that print state. */
export const OUTPUT_FLAG: Record<string, Setting> = {
  output: {
    kind: "text",
    short: "o",
    hint: "text|json",
    choices: ["text", "json"],
    about: "the output format",
    fallback: "text",
  },
};

/** The flags of a command but the settings, if it takes all of them. */
export function ownFlags({ flags }: Command): [string, Setting][] {
  const takesAll = "istiod" in flags;
  return Object.entries(flags).filter(([name]) => !takesAll || !Object.hasOwn(SETTINGS, name));
}

/** The folders that identify a mesh. */
export const FOLDER_FLAGS: Record<string, Setting> = {
  ...Object.fromEntries(FOLDERS.map((name) => [name, SETTINGS[name]])),
  ...CONFIG_FLAG,
};

/** The text of a flag; undefined if absent. */
export function textFlag(flags: Flags, name: string): string | undefined {
  const value = flags[name];
  return typeof value === "string" ? value : undefined;
}

/** A flag in the form of help: `-o, --output text|json`. */
export function formatFlag(name: string, { kind, short, hint }: Setting): string {
  const letter = short === undefined ? "" : `-${short}, `;
  return `${letter}--${name}${kind === "switch" ? "" : ` ${hint ?? "VALUE"}`}`;
}

/** The description of a flag, with its default and whether it repeats. */
export function describeFlag({ kind, about, fallback }: Setting): string {
  const repeatable = kind === "list" || kind === "map" ? ", repeatable" : "";
  return `${about}${repeatable}${fallback ? ` (default: ${fallback})` : ""}`;
}

/** The positionals in a usage line: `DESTINATION`, `[FILE]`, `UNIT...`. */
export function formatPositional({ name, required, many, choices }: Positional): string {
  const word = `${choices ? choices.join("|") : name.toUpperCase()}${many ? "..." : ""}`;
  return required ? word : `[${word}]`;
}
