/** Help as text, wrapped to the terminal. */
import { type Command, describeFlag, formatFlag, formatPositional, ownFlags } from "./command.ts";
import { EXIT_CODES } from "./exit.ts";
import { definitions, wrap } from "./wrap.ts";

/** `kmesh --help`: the commands that are not hidden, and the exit codes. */
export function formatOverview(
  about: { version: string; description: string },
  commands: readonly Command[],
  width: number,
): string {
  const listed = commands.filter(({ hidden }) => !hidden);
  return [
    wrap(`kmesh ${about.version}: ${about.description}`, width),
    "USAGE kmesh COMMAND [FLAGS] [ARGUMENTS]",
    section(
      "COMMANDS",
      definitions(
        listed.map((each) => [each.name, each.about] as const),
        width,
      ),
    ),
    wrap("kmesh COMMAND --help shows the details and examples of a command; see also man 8 kmesh.", width),
    section(
      "EXIT CODES",
      definitions(
        EXIT_CODES.map(([code, meaning]) => [`${code}`, meaning] as const),
        width,
      ),
    ),
  ].join("\n\n");
}

/** `kmesh COMMAND --help`. */
export function formatHelp(spec: Command, width: number): string {
  const parts = [wrap(`${spec.about}.`, width), wrap(`USAGE ${usageOf(spec)}`, width, "      ")];
  const { positionals, flags } = spec;
  if (positionals.length > 0)
    parts.push(
      section(
        "ARGUMENTS",
        definitions(
          positionals.map((each) => [each.name, each.about] as const),
          width,
        ),
      ),
    );
  // The help of run lists the settings for all commands that take them.
  const listed = spec.name === "run" ? Object.entries(flags) : ownFlags(spec);
  const rows = listed.map(([name, flag]) => [formatFlag(name, flag), describeFlag(flag)] as const);
  parts.push(section("FLAGS", definitions(rows, width)));
  if (spec.notes !== "") parts.push(wrap(spec.notes, width));
  if (spec.examples.length > 0) {
    const lines = spec.examples.map(
      ([line, about]) => `  kmesh ${line}\n${wrap(`${about}.`, width - 6).replace(/^/gm, "      ")}`,
    );
    parts.push(section("EXAMPLES", lines.join("\n")));
  }
  return parts.join("\n\n");
}

/** `kmesh explain [FLAGS] DESTINATION`. */
export function usageOf({ name, positionals }: Command): string {
  return [`kmesh ${name}`, "[FLAGS]", ...positionals.map(formatPositional)].join(" ");
}

function section(title: string, text: string): string {
  return `${title}\n${text}`;
}
