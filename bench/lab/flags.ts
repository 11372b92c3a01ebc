/** A benchmark's flags. Its usage is the comment that its file begins with. */
import { readFileSync } from "node:fs";
import { basename, dirname, relative } from "node:path";
import { type ParseArgsConfig, parseArgs } from "node:util";

type Options = NonNullable<ParseArgsConfig["options"]>;

/** The values of the flags. Ends the process: after the usage for `--help`, and with a line for a flag that is none. */
export function flagsOf<const T extends Options>(
  options: T,
): ReturnType<typeof parseArgs<{ options: T }>>["values"] {
  printUsageOnHelp();
  try {
    return parseArgs({ options }).values;
  } catch (error) {
    // Only the first sentence: the others speak of positional arguments, which no benchmark takes.
    const [sentence = ""] = (error instanceof Error ? error.message : String(error)).split(/\. /, 1);
    const file = process.argv[1] ?? "";
    const name = basename(file) === "index.ts" ? dirname(file) : file;
    console.error(`bench: ${sentence}. Next: bun ${relative(process.cwd(), name)} --help`);
    process.exit(2);
  }
}

/** For a benchmark with other arguments than flags: prints its usage and ends the process when it is asked for. */
export function printUsageOnHelp(): void {
  if (!process.argv.slice(2).some((argument) => argument === "--help" || argument === "-h")) return;
  const source = readFileSync(process.argv[1] ?? "", "utf8");
  const [, comment = ""] = /\/\*\*(.*?)\*\//s.exec(source) ?? [];
  console.log(comment.replace(/^ *\*? ?/gm, "").trim());
  process.exit(0);
}
