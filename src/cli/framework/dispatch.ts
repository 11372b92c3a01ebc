/** From the words of the command line to the command, and from what it throws to one clear line and an exit code. */

import { stripVTControlCharacters } from "node:util";
import { type CommandDef, defineCommand, renderUsage, runCommand } from "citty";
import { ConfigError } from "../../config/config-error.ts";
import { closest } from "../../config/did-you-mean.ts";
import { withNextStep } from "../../errors/actionable-error.ts";
import { reasonOf } from "../../errors/reason.ts";
import { Unsupported } from "../../machine/unsupported.ts";
import { parseArguments, UsageError } from "./arguments.ts";
import { asCitty, type Command } from "./command.ts";
import { EXIT, EXIT_CODES, Failure } from "./exit.ts";
import { print, remark } from "./output.ts";

/** What loads each command, by its name. */
export type Commands = Readonly<Record<string, () => Promise<Command>>>;

interface About {
  version: string;
  description: string;
}

/** Runs the command that `args` (without the program's name) ask for. Gives the exit code; never throws. */
export async function dispatch(args: readonly string[], commands: Commands, about: About): Promise<number> {
  const [first, ...rest] = args;
  try {
    if (first === undefined) {
      remark(await help(await rootOf(commands, about)));
      return EXIT.usage;
    }
    if (first === "--version") return await dispatch(["version", ...rest], commands, about);
    if (isHelp(first) || first === "help") return await showHelp(rest[0], commands, about);
    const spec = await find(first, commands);
    if (untilDashes(rest).some(isHelp)) return await showHelp(spec.name, commands, about);
    let code: number = EXIT.failed;
    const input = parseArguments(rest, spec);
    await runCommand(
      asCitty(spec, input, (given) => {
        code = given;
      }),
      { rawArgs: rest },
    );
    return code;
  } catch (error) {
    return complain(error);
  }
}

/** Prints an error as one line and the next step. Gives the exit code that belongs to it. */
export function complain(error: unknown): number {
  if (error instanceof UsageError || error instanceof ConfigError) {
    remark(`kmesh: ${withNextStep(error)}`);
    return EXIT.usage;
  }
  if (error instanceof Failure) {
    remark(`kmesh: ${withNextStep(error)}`);
    return error.code;
  }
  if (error instanceof Unsupported) {
    remark(`kmesh: ${withNextStep(error)}`);
    return EXIT.unsupported;
  }
  remark(`kmesh: ${reasonOf(error)}`);
  if (process.env.KMESH_LOG_LEVEL === "debug" && error instanceof Error) remark(error.stack ?? "");
  return EXIT.failed;
}

async function find(name: string, commands: Commands): Promise<Command> {
  const load = Object.hasOwn(commands, name) ? commands[name] : undefined;
  if (load) return load();
  const names = (await all(commands)).filter((each) => !each.hidden).map((each) => each.name);
  if (name.startsWith("-"))
    throw new UsageError(
      `there is no flag ${name} before the command`,
      `Write kmesh COMMAND ${name} ...; the commands are ${names.join(", ")}.`,
    );
  const near = closest(name, names);
  throw new UsageError(
    `there is no command "${name}"`,
    near ? `Did you mean "kmesh ${near}"?` : `The commands are ${names.join(", ")}.`,
  );
}

function all(commands: Commands): Promise<Command[]> {
  return Promise.all(Object.values(commands).map((load) => load()));
}

async function rootOf(commands: Commands, about: About): Promise<CommandDef> {
  const specs = await all(commands);
  return defineCommand({
    meta: { name: "kmesh", version: about.version, description: about.description },
    subCommands: Object.fromEntries(specs.map((each) => [each.name, asCitty(each)])),
  });
}

async function showHelp(name: string | undefined, commands: Commands, about: About): Promise<number> {
  const root = await rootOf(commands, about);
  if (name === undefined || isHelp(name)) {
    const codes = EXIT_CODES.map(([code, meaning]) => `  ${code}  ${meaning}`).join("\n");
    print(`${await help(root)}\n\nExit codes\n\n${codes}`);
    return EXIT.done;
  }
  const spec = await find(name, commands);
  print([await help(asCitty(spec), root), spec.notes].filter((part) => part !== "").join("\n\n"));
  return EXIT.done;
}

/** citty's help; it colours even into a pipe, so the colours are taken out there. */
async function help(spec: CommandDef, parent?: CommandDef): Promise<string> {
  const text = await renderUsage(spec, parent);
  const coloured = process.stdout.isTTY && !process.env.NO_COLOR;
  return (coloured ? text : stripVTControlCharacters(text)).replace(/ +$/gm, "").trimEnd();
}

function isHelp(arg: string): boolean {
  return arg === "--help" || arg === "-h";
}

function untilDashes(args: readonly string[]): readonly string[] {
  const end = args.indexOf("--");
  return end < 0 ? args : args.slice(0, end);
}
