/** One command: its words for citty's help, its strict arguments, its run. */
import { type ArgsDef, type CommandDef, defineCommand } from "citty";
import { FOLDERS, SETTINGS, type Setting } from "../../config/settings.ts";
import type { Flags } from "../../config/sources.ts";
import type { Arguments, Positional, Shape } from "./arguments.ts";

export interface Command extends Shape {
  name: string;
  about: string;
  /** Not listed by help: the demo's own processes. */
  hidden: boolean;
  /** What its help says below the flags. */
  notes: string;
  /** Gives the exit code. Throws UsageError, ConfigError, Failure, or anything else for a fault. */
  run(input: Arguments): Promise<number>;
}

interface Definition {
  name: string;
  about: string;
  flags?: Record<string, Setting>;
  positionals?: readonly Positional[];
  hidden?: boolean;
  notes?: string;
  run: Command["run"];
}

export function command(definition: Definition): Command {
  return { flags: {}, positionals: [], hidden: false, notes: "", ...definition };
}

/** `--config FILE`. */
export const CONFIG_FLAG: Record<string, Setting> = {
  config: { kind: "text", hint: "FILE", about: "the configuration file (default: /etc/kmesh/config.yaml)" },
};

/** `--output text|json`, for all that print state. */
export const OUTPUT_FLAG: Record<string, Setting> = {
  output: { kind: "text", hint: "text|json", about: "how to print", fallback: "text" },
};

/** The folders by which commands find the mesh they are about. */
export const FOLDER_FLAGS: Record<string, Setting> = {
  ...Object.fromEntries(FOLDERS.map((name) => [name, SETTINGS[name]])),
  ...CONFIG_FLAG,
};

/** The same command in citty's words, which renders its help and runs it. */
export function asCitty(spec: Command, input?: Arguments, done?: (code: number) => void): CommandDef {
  const args: ArgsDef = {};
  for (const { name, about, required } of spec.positionals)
    args[name] = { type: "positional", description: about, required };
  for (const [name, setting] of Object.entries(spec.flags)) args[name] = argumentOf(setting);
  return defineCommand({
    meta: { name: spec.name, description: spec.about, hidden: spec.hidden },
    args,
    async run() {
      if (input) done?.(await spec.run(input));
    },
  });
}

function argumentOf(setting: Setting): ArgsDef[string] {
  if (setting.kind === "switch") return { type: "boolean", description: setting.about };
  const fallback = setting.fallback ? ` (default: ${setting.fallback})` : "";
  const repeatable = setting.kind === "list" || setting.kind === "map" ? ", repeatable" : "";
  return {
    type: "string",
    valueHint: setting.hint ?? "VALUE",
    description: `${setting.about}${repeatable}${fallback}`,
  };
}

/** A flag's text where it was given. */
export function textFlag(flags: Flags, name: string): string | undefined {
  const value = flags[name];
  return typeof value === "string" ? value : undefined;
}
