/** One command: its words for help, manual and completion, its arguments, its run. */
import { FOLDERS, SETTINGS, type Setting } from "../../config/settings.ts";
import type { Flags } from "../../config/sources.ts";
import type { Arguments, Positional, Shape } from "./arguments.ts";

export interface Command extends Shape {
  name: string;
  about: string;
  /** Not listed by help: what kmesh itself, a package or a shell calls. */
  hidden: boolean;
  /**
   * Who may run it. root: nobody else, which is checked before anything is read. reader: also members of the group that
   * `admin-group` names; the command finds out whether the agent lets it. anyone: it finds out itself what it may do.
   */
  access: "root" | "reader" | "anyone";
  /** It changes the machine: a terminal that goes away does not end it half way. */
  changes: boolean;
  /** What help says below the flags: paragraphs, parted by an empty line; lines that begin with a blank stay as they are. */
  notes: string;
  /** Command lines without the program's name, each with what it does. */
  examples: readonly (readonly [string, string])[];
  /** Gives the exit code. Throws UsageError, ConfigError, Failure, or anything else for a fault. */
  run(input: Arguments, program: Program): Promise<number>;
}

/** What loads each command, by its name. */
export type Commands = Readonly<Record<string, () => Promise<Command>>>;

/** The program whose command runs: for help, manual and completion. */
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
  verbose: { kind: "switch", short: "v", about: "say how the answer was found, and where an error arose" },
};

/** `--config FILE`. */
export const CONFIG_FLAG: Record<string, Setting> = {
  config: { kind: "text", hint: "FILE", about: "the configuration file (default: /etc/kmesh/config.yaml)" },
};

/** `--output text|json`, for all that print state. */
export const OUTPUT_FLAG: Record<string, Setting> = {
  output: {
    kind: "text",
    short: "o",
    hint: "text|json",
    choices: ["text", "json"],
    about: "how to print",
    fallback: "text",
  },
};

/** The folders by which commands find the mesh they are about. */
export const FOLDER_FLAGS: Record<string, Setting> = {
  ...Object.fromEntries(FOLDERS.map((name) => [name, SETTINGS[name]])),
  ...CONFIG_FLAG,
};

/** A flag's text where it was given. */
export function textFlag(flags: Flags, name: string): string | undefined {
  const value = flags[name];
  return typeof value === "string" ? value : undefined;
}

/** A flag as help shows it: `-o, --output text|json`. */
export function formatFlag(name: string, { kind, short, hint }: Setting): string {
  const letter = short === undefined ? "" : `-${short}, `;
  return `${letter}--${name}${kind === "switch" ? "" : ` ${hint ?? "VALUE"}`}`;
}

/** What a flag means, with its default and whether it may be repeated. */
export function describeFlag({ kind, about, fallback }: Setting): string {
  const repeatable = kind === "list" || kind === "map" ? ", repeatable" : "";
  return `${about}${repeatable}${fallback ? ` (default: ${fallback})` : ""}`;
}

/** The positionals in a usage line: `DESTINATION`, `[FILE]`, `UNIT...`. */
export function formatPositional({ name, required, many, choices }: Positional): string {
  const word = `${choices ? choices.join("|") : name.toUpperCase()}${many ? "..." : ""}`;
  return required ? word : `[${word}]`;
}
