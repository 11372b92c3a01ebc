/** Parses the arguments of a command. Errors say what to type instead. */

import { closest, eitherOf } from "../../config/did-you-mean.ts";
import type { Setting } from "../../config/settings.ts";
import type { Flags } from "../../config/sources.ts";
import { ActionableError } from "../../errors/actionable-error.ts";

/** The positional arguments of a command. */
export interface Positional {
  name: string;
  about: string;
  required: boolean;
  choices?: readonly string[];
  /** What the shell completes if there are no choices. */
  completes?: "service" | "unit" | "file" | "command";
  /** The last positional takes one or more values. */
  many?: boolean;
}

export interface Shape {
  flags: Record<string, Setting>;
  positionals: readonly Positional[];
}

/** An invalid command line. `next` is what to type instead. */
export class UsageError extends ActionableError {}

export interface Arguments {
  flags: Flags;
  /** One value for each declared positional (undefined if absent), then the further values of one that is `many`. */
  positionals: (string | undefined)[];
}

/**
 * Reads `--flag VALUE`, `--flag=VALUE`, `--switch`, `--no-switch`, the short `-f VALUE` and `-s`, and positionals; `--`
 * ends the flags.
 * Throws UsageError at the first unknown argument.
 */
export function parseArguments(args: readonly string[], shape: Shape): Arguments {
  const flags: Flags = {};
  const rest: string[] = [];
  for (let i = 0; i < args.length; i++) {
    const arg = longForm(args[i] ?? "", shape);
    if (arg === "--") {
      rest.push(...args.slice(i + 1));
      break;
    }
    if (!arg.startsWith("-") || arg === "-") {
      rest.push(arg);
      continue;
    }
    const equals = arg.indexOf("=");
    const name = equals < 0 ? arg : arg.slice(0, equals);
    const inline = equals < 0 ? undefined : arg.slice(equals + 1);
    const key = name.replace(/^--/, "");
    const negated = shape.flags[key] === undefined && key.startsWith("no-") ? key.slice(3) : undefined;
    const setting = flagOf(shape, negated ?? key);
    if (!name.startsWith("--") || !setting || (negated !== undefined && setting.kind !== "switch"))
      throw unknownFlag(name, shape);
    if (setting.kind === "switch") {
      if (inline !== undefined && !["true", "false"].includes(inline)) {
        throw new UsageError(`${name} takes no value`, `Write ${name}, or --no-${key}.`);
      }
      flags[negated ?? key] = negated === undefined && inline !== "false";
      continue;
    }
    const value = inline ?? args[++i];
    if (value === undefined || (inline === undefined && value.startsWith("--"))) {
      throw new UsageError(`${name} needs a value`, `Write ${name} ${setting.hint ?? "VALUE"}.`);
    }
    const before = flags[key];
    if (setting.kind === "list" || setting.kind === "map")
      flags[key] = [...(Array.isArray(before) ? before : []), value];
    else if (before !== undefined) throw new UsageError(`${name} is given twice`, "Give it once.");
    else flags[key] = value;
  }
  return { flags, positionals: positionalsOf(rest, shape.positionals) };
}

/** `--output` for `-o`, `--output=json` for `-ojson` and `-o=json`; anything else as it is. */
function longForm(arg: string, shape: Shape): string {
  const found = /^-([a-zA-Z])(=?)(.*)$/s.exec(arg);
  if (!found) return arg;
  const [, letter, equals, value] = found;
  const name = Object.keys(shape.flags).find((key) => shape.flags[key]?.short === letter);
  if (name === undefined) return arg;
  if (value === "" && equals === "") return `--${name}`;
  // A switch takes no value, so a word after it is a mistyped flag.
  return shape.flags[name]?.kind === "switch" ? arg : `--${name}=${value}`;
}

function flagOf(shape: Shape, key: string): Setting | undefined {
  return Object.hasOwn(shape.flags, key) ? shape.flags[key] : undefined;
}

function unknownFlag(name: string, shape: Shape): UsageError {
  const near = closest(name.replace(/^-+/, "").replace(/^no-/, ""), Object.keys(shape.flags));
  return new UsageError(
    `there is no flag ${name}`,
    near ? `Did you mean --${near}?` : "--help lists the flags.",
  );
}

function positionalsOf(given: string[], declared: readonly Positional[]): (string | undefined)[] {
  const many = declared.at(-1)?.many === true;
  const surplus = many ? undefined : given[declared.length];
  if (surplus !== undefined)
    throw new UsageError(`"${surplus}" is one argument too many`, "--help shows what is taken.");
  const found = declared.map((positional, i) => {
    const value = given[i];
    if (value === undefined) {
      if (!positional.required) return undefined;
      throw new UsageError(`${positional.name} is missing`, `Write ${wordsOf(positional)}.`);
    }
    if (positional.choices && !positional.choices.includes(value)) {
      const near = closest(value, positional.choices);
      throw new UsageError(
        `"${value}" is not a valid ${positional.name}`,
        near ? `Did you mean "${near}"?` : `Write ${wordsOf(positional)}.`,
      );
    }
    return value;
  });
  return [...found, ...given.slice(declared.length)];
}

function wordsOf(positional: Positional): string {
  return positional.choices ? eitherOf(positional.choices) : positional.about;
}
