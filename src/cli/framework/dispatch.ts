/** Runs the command that the command line names, and turns its error into one line and an exit code. */
import { ConfigError } from "../../config/config-error.ts";
import { closest } from "../../config/did-you-mean.ts";
import { ActionableError } from "../../errors/actionable-error.ts";
import { reasonOf } from "../../errors/reason.ts";
import { requireRoot, Unsupported } from "../../machine/unsupported.ts";
import { parseArguments, UsageError } from "./arguments.ts";
import { type Command, type Commands, loadAll, type Program } from "./command.ts";
import { EXIT, Failure } from "./exit.ts";
import { formatHelp, formatOverview } from "./help.ts";
import { nextStepOf } from "./next-step.ts";
import { beVerbose, hasPrintedJson, print, printJson, remark } from "./output.ts";
import { terminalWidth } from "./wrap.ts";

/** Runs the command of `args` (without the program's name). Returns the exit code; never throws. */
export async function dispatch(
  args: readonly string[],
  commands: Commands,
  about: Program["about"],
): Promise<number> {
  const [first, ...rest] = args;
  // Writing to a pipe without a reader emits an error event, which ends the process unless it is handled.
  for (const stream of [process.stdout, process.stderr]) stream.on("error", () => {});
  try {
    if (first === undefined) {
      remark(formatOverview(about, await loadAll(commands), terminalWidth()));
      return EXIT.usage;
    }
    if (first === "--version" || first === "-V") return await dispatch(["version", ...rest], commands, about);
    if (isHelp(first) || first === "help") return await showHelp(rest[0], commands, about);
    const spec = await find(first, commands);
    if (!spec.hidden && untilDashes(rest).some(isHelp)) return await showHelp(spec.name, commands, about);
    const input = parseArguments(rest, spec);
    if (input.flags.verbose === true) beVerbose();
    if (spec.access === "root") requireRoot(`kmesh ${spec.name}`);
    // The handler keeps SIGHUP from ending the process: the work is finished even if nobody sees it.
    if (spec.changes) process.on("SIGHUP", () => {});
    return await spec.run(input, { commands, about });
  } catch (error) {
    return complain(error, wantsJson(rest), untilDashes(rest).some(isVerbose));
  }
}

/** Prints an error as one line with the next step, or as JSON with --output json. Returns its exit code. */
export function complain(error: unknown, json = false, verbose = false): number {
  const exit = codeFor(error);
  const message = reasonOf(error);
  const next = (error instanceof ActionableError ? error.next : "") || nextStepOf(error);
  if (json && !hasPrintedJson()) printJson({ error: { message, next, exit } });
  remark(`kmesh: ${message}${next === "" ? "" : `\n  ${next}`}`);
  if ((verbose || process.env.KMESH_LOG_LEVEL === "debug") && error instanceof Error)
    remark(error.stack ?? "");
  return exit;
}

function codeFor(error: unknown): number {
  if (error instanceof UsageError || error instanceof ConfigError) return EXIT.usage;
  if (error instanceof Failure) return error.code;
  if (error instanceof Unsupported) return EXIT.unsupported;
  return EXIT.failed;
}

async function find(name: string, commands: Commands): Promise<Command> {
  const load = Object.hasOwn(commands, name) ? commands[name] : undefined;
  if (load) return load();
  const names = (await loadAll(commands)).filter((each) => !each.hidden).map((each) => each.name);
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

async function showHelp(
  name: string | undefined,
  commands: Commands,
  about: Program["about"],
): Promise<number> {
  if (name === undefined || isHelp(name))
    print(formatOverview(about, await loadAll(commands), terminalWidth()));
  else print(formatHelp(await find(name, commands), terminalWidth()));
  return EXIT.done;
}

function isHelp(arg: string): boolean {
  return arg === "--help" || arg === "-h";
}

function isVerbose(arg: string): boolean {
  return arg === "--verbose" || arg === "-v";
}

/** Whether `--output json` is among the arguments, also when they are invalid: their error is then JSON, too. */
function wantsJson(args: readonly string[]): boolean {
  return untilDashes(args).some(
    (arg, i) =>
      ["--output=json", "-ojson", "-o=json"].includes(arg) ||
      (arg === "json" && ["--output", "-o"].includes(args[i - 1] ?? "")),
  );
}

function untilDashes(args: readonly string[]): readonly string[] {
  const end = args.indexOf("--");
  return end < 0 ? args : args.slice(0, end);
}
