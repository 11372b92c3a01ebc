/**
 * Checks all files of the configuration: whether the service can read them, and who else can write them. A writer gets
 * root's rights (an exec probe runs as root) or decides where this machine's connections go (istiod, ca).
 */
import { existsSync, statSync } from "node:fs";
import { delimiter, isAbsolute, join } from "node:path";
import { type Config, examineConfig } from "../config/config.ts";
import { ConfigError } from "../config/config-error.ts";
import { CONFIG_FILE, type Sources } from "../config/sources.ts";
import type { Damage } from "../datapath/inspect/damage.ts";
import { pathSteps } from "../files/path-steps.ts";
import { readTextFile } from "../files/read-file.ts";
import { type UnsafeMode, unsafeMode } from "./folder-permissions.ts";
import { isServiceInstalled, runsAsService, type ServiceSandbox, serviceSandbox } from "./service-sandbox.ts";

/** A warning: a main clause, and a command or sentence as the next step. */
export interface ConfigRemark {
  text: string;
  cure: string;
}

export interface ExaminedConfig {
  config: Config;
  problems: ConfigError[];
  remarks: ConfigRemark[];
}

/** How to report a file that the service can't see: an error if the service reads this configuration. */
export type Hidden = "problem" | "remark" | "ignored";

/** Like examineConfig, and checks the named files. Throws ConfigError when the file is not a configuration. */
export function examineFiles(
  sources: Sources,
  hidden: Hidden = hiddenFor(sources.file.path),
  sandbox = serviceSandbox(),
): ExaminedConfig {
  const { config, problems } = examineConfig(sources, hidden === "problem" ? sandbox : undefined);
  const remarks: ConfigRemark[] = hidden === "remark" ? hiddenFiles(config, sandbox) : [];
  const probe = commandOf(config).length > 0;
  for (const { what, cure } of unsafeFiles(config)) {
    if (probe)
      problems.push(
        new ConfigError(
          `${what}, and whoever writes there decides what the readiness-probe runs as root`,
          `${cure}`,
        ),
      );
    else remarks.push({ text: `${what}: ${WRITERS}`, cure });
  }
  if (config.ca !== undefined && holdsKey(config.ca))
    remarks.push({
      text: `${config.ca} holds a private key beside the root certificates; kmesh needs none`,
      cure: "Keep the certificates alone in it: the mesh's key belongs to its CA",
    });
  return { config, problems, remarks };
}

/** For commands that only check a configuration, which may become the service's later. */
function hiddenFor(file: string): Hidden {
  return file === CONFIG_FILE && isServiceInstalled() ? "problem" : "remark";
}

/** For the agent itself. */
export function hiddenForAgent(file: string): Hidden {
  if (runsAsService()) return "problem";
  return file === CONFIG_FILE && isServiceInstalled() ? "remark" : "ignored";
}

const WRITERS = "whoever writes there decides where this machine's connections go";

/** The same for `kmesh status`. */
export function unsafeConfig(config: Config): Damage[] {
  return unsafeFiles(config).map(({ what, cure }) => ({ what, consequence: WRITERS, cure }));
}

/** Paths on the way to the files that users other than root and the present user may write, each once. */
function unsafeFiles(config: Config): UnsafeMode[] {
  const found = new Map<string, UnsafeMode>();
  for (const file of [config.file, ...[config.ca, config.token].filter(isText), ...commandOf(config)])
    for (const unsafe of unsafeSteps(file)) found.set(unsafe.what, unsafe);
  return [...found.values()];
}

/** The path or the folders on the way to it that others may write. Empty for a missing file. */
export function unsafeSteps(path: string): UnsafeMode[] {
  if (!isAbsolute(path) || !existsSync(path)) return [];
  return pathSteps(path).flatMap(({ path: at, stat }) => {
    // /dev/null stands for an empty file. Writing to it changes nothing.
    if (!stat || stat.isCharacterDevice()) return [];
    // The mode of a link has no meaning. In a sticky folder such as /tmp, users can't replace files of others.
    const sticky = stat.isDirectory() && (stat.mode & 0o1000) !== 0;
    const mode = stat.isSymbolicLink() || sticky ? stat.mode & ~0o022 : stat.mode;
    const unsafe = unsafeMode(at, { uid: stat.uid, mode });
    if (!unsafe) return [];
    return stat.isSymbolicLink() ? { ...unsafe, cure: `chown -h root: ${at}` } : unsafe;
  });
}

/** Files that the service can't see. */
function hiddenFiles(config: Config, sandbox: ServiceSandbox): ConfigRemark[] {
  const files = [config.ca, config.token, ...commandOf(config)].filter(isText);
  return files.flatMap((path) => {
    const blocked = sandbox.blocked(path, "read");
    return blocked ? [{ text: blocked.reason, cure: blocked.next }] : [];
  });
}

/** The files in the command of an exec probe: its program, and arguments that are absolute paths. */
function commandOf({ readinessProbe }: Config): string[] {
  const exec = readinessProbe?.exec;
  const command = typeof exec === "object" && exec !== null && "command" in exec ? exec.command : undefined;
  if (!Array.isArray(command)) return [];
  const [program = "", ...rest] = command.map(String);
  const files = rest.filter(
    (word) => isAbsolute(word) && statSync(word, { throwIfNoEntry: false })?.isFile(),
  );
  return [inPath(program), ...files];
}

function inPath(program: string): string {
  if (program.includes("/")) return program;
  const folders = (process.env.PATH ?? "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin").split(delimiter);
  return folders.map((folder) => join(folder, program)).find((path) => existsSync(path)) ?? program;
}

function holdsKey(file: string): boolean {
  try {
    return /-----BEGIN [A-Z ]*PRIVATE KEY-----/.test(readTextFile(file));
  } catch {
    return false;
  }
}

function isText(value: string | undefined): value is string {
  return value !== undefined;
}
