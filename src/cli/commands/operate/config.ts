import { isDeepStrictEqual } from "node:util";
import { askAgent } from "../../../admin/client.ts";
import { adminSocket } from "../../../admin/status.ts";
import { differencesOf } from "../../../agent/reload.ts";
import { snapshotSettings } from "../../../agent/snapshot-key.ts";
import { type Config, examineConfig, readConfig } from "../../../config/config.ts";
import { ConfigError } from "../../../config/config-error.ts";
import { type DecidedSettings, settingsOf } from "../../../config/from-istioctl.ts";
import { SETTINGS, type SettingName } from "../../../config/settings.ts";
import { type Sources, sourcesOf } from "../../../config/sources.ts";
import { type SettingValues, settingValues } from "../../../config/values.ts";
import { faultOfFile } from "../../../errors/reason.ts";
import { readTextFile } from "../../../files/read-file.ts";
import { isExposed } from "../../../istiod/identity/token.ts";
import { faultOfRoots } from "../../../istiod/join/membership.ts";
import { examineFiles } from "../../../machine/config-files.ts";
import { requireRoot } from "../../../machine/unsupported.ts";
import { readSnapshotSettings } from "../../../state/snapshot.ts";
import { readMembers } from "../../config-file/membership-files.ts";
import { UsageError } from "../../framework/arguments.ts";
import { CONFIG_FLAG, command, OUTPUT_FLAG, textFlag } from "../../framework/command.ts";
import { EXIT } from "../../framework/exit.ts";
import { type Format, formatOf, print, printJson, remark, table } from "../../framework/output.ts";
import { certifiedId, keptFiles } from "../../service/join-plan.ts";

export const config = command({
  name: "config",
  about: "Check the configuration file, or compare it with the settings in use",
  access: "anyone",
  flags: {
    from: {
      kind: "text",
      hint: "DIR|istio",
      about: "diff: also compare istioctl's files, as kmesh join --from would use them",
    },
    ...CONFIG_FLAG,
    ...OUTPUT_FLAG,
  },
  positionals: [
    { name: "action", about: "check or diff", required: true, choices: ["check", "diff"] },
    { name: "file", about: "check this file instead of the configuration", required: false },
  ],
  notes: [
    "check prints all faults and ends with 2, or with 0 when an agent could start with the file. It ignores flags and",
    "variables of an agent.",
    "",
    "diff shows the settings that differ between the file, the running agent, and the mesh's snapshot (which depends on",
    "some of them). It ends with 3 when no agent runs.",
  ].join("\n"),
  examples: [
    ["config check ./config.yaml", "Print all faults of a file"],
    ["config diff", "Show settings that the agent does not have yet"],
  ],
  async run({ flags, positionals: [action, file] }) {
    const format = formatOf(flags);
    const from = textFlag(flags, "from");
    if (action === "check") {
      if (from !== undefined)
        throw new UsageError(
          "--from is for diff",
          "kmesh join --from DIR --dry-run checks istioctl's files.",
        );
      return check(fileOf(file === undefined ? flags : { config: file }), format);
    }
    if (file !== undefined)
      throw new UsageError(
        `"${file}" is one argument too many`,
        "Name another configuration with --config FILE.",
      );
    requireRoot("looking at a mesh");
    return diff(fileOf(flags), from, format);
  },
});

/** The sources without environment and flags. The file must exist, even if its path is the default. */
function fileOf(flags: Parameters<typeof sourcesOf>[0]): Sources {
  const { file } = sourcesOf(flags, process.env);
  return { flags: {}, env: {}, file: { ...file, required: true } };
}

async function check(sources: Sources, format: Format): Promise<number> {
  const { path } = sources.file;
  const { problems, remarks } = await examine(sources);
  if (format === "json") {
    const told = problems.map(({ message, next }) => ({ message, next }));
    printJson({ file: path, valid: problems.length === 0, problems: told, remarks });
  } else {
    for (const { message, next } of problems) print(`${message}\n  ${next}`);
    if (problems.length === 0) print(`${path} is valid.`);
    for (const text of remarks) remark(`kmesh: ${text}`);
  }
  return problems.length === 0 ? EXIT.done : EXIT.usage;
}

async function examine(sources: Sources): Promise<{ problems: ConfigError[]; remarks: string[] }> {
  try {
    const { config, problems, remarks } = examineFiles(sources);
    const { token } = config;
    const exposed = token !== undefined && isExposed(token);
    return {
      problems: [...problems, ...(await furtherProblems(config))],
      remarks: [
        ...remarks.map(({ text, cure }) => `${text}: ${cure}`),
        ...(exposed ? [`others can read the token in ${token}: chmod 0600 ${token}`] : []),
      ],
    };
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    return { problems: [error], remarks: [] };
  }
}

/** Faults that the agent would find at start: files that are not certificates, missing cgroups. */
async function furtherProblems(config: Config): Promise<ConfigError[]> {
  const { enrolledCgroups } = await import("../../../machine/machine.ts");
  const problems: ConfigError[] = [];
  if (config.ca !== undefined) {
    const fault = faultOfRoots(readTextFile(config.ca));
    if (fault !== undefined)
      problems.push(new ConfigError(`${config.ca} ${fault}`, "Write the mesh's root-cert.pem to it again."));
  }
  if (config.token !== undefined && !config.plaintext && certifiedId(config.stateDir) === undefined) {
    try {
      readTextFile(config.token);
    } catch (error) {
      problems.push(
        new ConfigError(
          `the token ${config.token} ${faultOfFile(error)}, and there is no certificate yet`,
          "Have istioctl or kubectl create token write one there.",
        ),
      );
    }
  }
  for (const cgroup of config.cgroups) {
    try {
      enrolledCgroups([cgroup]);
    } catch (error) {
      if (error instanceof ConfigError) problems.push(error);
    }
  }
  return problems;
}

/** A setting whose values differ between places. Places without a value are left out. */
interface Difference {
  setting: SettingName;
  /** The value that istioctl's files give. */
  files?: unknown;
  file: unknown;
  agent?: unknown;
  snapshot?: unknown;
}

async function diff(sources: Sources, from: string | undefined, format: Format): Promise<number> {
  const config = readConfig(sources);
  const values = settingValues(config);
  const running = (await askAgent(adminSocket(config.runDir), "/config")) as SettingValues | undefined;
  const snapshot = readSnapshotSettings(config.stateDir);
  const files = from === undefined ? {} : valuesOfFiles(from, config);
  const shape = snapshotSettings(config);
  const found: Difference[] = [];
  for (const setting of Object.keys(SETTINGS) as SettingName[]) {
    const row: Difference = { setting, file: values[setting] };
    let same = true;
    const add = (place: "files" | "agent" | "snapshot", value: unknown, equal: boolean) => {
      row[place] = value;
      same &&= equal;
    };
    if (setting in files)
      add("files", files[setting] ?? null, isDeepStrictEqual(files[setting] ?? null, values[setting]));
    if (running?.[setting] !== undefined)
      add("agent", running[setting], isDeepStrictEqual(running[setting], values[setting]));
    // A snapshot has only some settings, as text.
    const [then, now] = [snapshot?.[setting], shape[setting]];
    if (snapshot && (then !== undefined || now !== undefined)) add("snapshot", then ?? null, then === now);
    if (!same) found.push(row);
  }
  const needs = running ? differencesOf(running, values) : { live: [], later: [] };
  if (format === "json") {
    printJson({
      file: sources.file.path,
      alive: running !== undefined,
      snapshot: snapshot !== undefined,
      differences: found,
      reload: needs.live,
      restart: needs.later,
    });
  } else print(formatDifferences(found, needs, { path: sources.file.path, running, snapshot }));
  return running === undefined ? EXIT.agentNotRunning : EXIT.done;
}

/** The settings of istioctl's files, with the defaults that a configuration file would get. */
function valuesOfFiles(from: string, config: Config): Partial<SettingValues> {
  const { membership, paths } = readMembers(from, certifiedId(config.stateDir)?.id);
  const decided: DecidedSettings = settingsOf(membership, keptFiles(config.stateDir));
  const given = Object.fromEntries(Object.entries(decided).filter(([, value]) => value !== undefined));
  const text = JSON.stringify({ ...given, ca: paths["root-cert.pem"] });
  const file = { path: from, required: true, text };
  const values = settingValues(examineConfig({ flags: {}, env: {}, file }).config);
  const names = Object.keys(decided) as SettingName[];
  return { ...Object.fromEntries(names.map((name) => [name, values[name]])), ca: decided.ca ?? null };
}

/** The table, followed by the next step. */
export function formatDifferences(
  found: readonly Difference[],
  needs: { live: readonly string[]; later: readonly string[] },
  about: { path: string; running: object | undefined; snapshot: object | undefined },
): string {
  const places = (["files", "file", "agent", "snapshot"] as const).filter((place) =>
    found.some((row) => row[place] !== undefined),
  );
  const lines: string[] = [];
  if (about.running === undefined) lines.push("No agent runs.");
  if (about.snapshot === undefined) lines.push("There is no snapshot.");
  if (found.length === 0) {
    const compared = [
      about.path,
      ...(about.running ? ["the agent"] : []),
      ...(about.snapshot ? ["the snapshot"] : []),
    ];
    lines.push(
      compared.length > 1 ? `${compared.join(", ")}: no difference.` : "There is nothing to compare.",
    );
  } else {
    const cell = (value: unknown) => (value === undefined ? "-" : formatValue(value));
    lines.push(
      table(
        ["setting", ...places],
        found.map((row) => [row.setting, ...places.map((place) => cell(row[place]))]),
      ),
    );
  }
  if (needs.later.length > 0)
    lines.push(`systemctl restart kmesh applies the file (connections continue): ${needs.later.join(", ")}`);
  if (needs.live.length > 0 && needs.later.length === 0)
    lines.push(`systemctl reload kmesh takes the file over: ${needs.live.join(", ")}`);
  return lines.join("\n");
}

function formatValue(value: unknown): string {
  if (value === null || value === "") return "(not set)";
  if (Array.isArray(value) && value.every((each) => typeof each === "string"))
    return value.join(",") || "(none)";
  if (typeof value === "object" && Object.keys(value).length === 0) return "(none)";
  return typeof value === "string" ? value : JSON.stringify(value);
}
