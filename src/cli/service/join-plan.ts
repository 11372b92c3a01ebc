/** Joins a mesh by istioctl's files, for `join` and `install --from`. Afterwards the files are no longer needed. */
import { chmodSync, existsSync, mkdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { askAgent } from "../../admin/client.ts";
import { type AgentStatus, adminSocket } from "../../admin/status.ts";
import { differencesOf } from "../../agent/reload.ts";
import { type Config, examineConfig, type Folders } from "../../config/config.ts";
import type { ConfigError } from "../../config/config-error.ts";
import { settingsOf } from "../../config/from-istioctl.ts";
import { type SettingValues, settingValues } from "../../config/values.ts";
import { readTextFile } from "../../files/read-file.ts";
import { isValidAt, MalformedCertificate } from "../../istiod/identity/certificate.ts";
import { time } from "../../istiod/identity/token.ts";
import { formatSpiffe, type SpiffeId } from "../../istiod/spiffe.ts";
import { identityStore } from "../../machine/identity-store.ts";
import { decidedConfig } from "../config-file/config-file.ts";
import { readMembers } from "../config-file/membership-files.ts";
import { EXIT, Failure } from "../framework/exit.ts";
import { fileStep, type Step } from "../framework/plan.ts";
import type { Need } from "./systemd-plan.ts";

/** The names of the copies in the state folder. */
const ROOTS = "root-cert.pem";
const TOKEN = "istio-token";

/** Longest wait for the agent to join, milliseconds. */
const PATIENCE = 10_000;

export interface Joining {
  steps: Step[];
  remarks: string[];
  /** The resulting configuration. */
  config: Config;
}

/**
 * Steps after which the agent needs only its configuration and its state folder. `configFile` and `stateDir` are paths
 * as the agent sees them; files are written below `root`. Throws Failure or ConfigError with all faults before anything
 * is written.
 */
export function joinSteps(options: {
  from: string;
  configFile: string;
  stateDir: string;
  root?: string | undefined;
}): Joining {
  const { from, configFile, stateDir, root = "/" } = options;
  const state = join(root, stateDir);
  const certified = certifiedId(state);
  const { membership, paths, remarks } = readMembers(from, certified?.id);
  const kept = keptFiles(stateDir);
  const file = join(root, configFile);
  const before = existsSync(file) ? readTextFile(file) : undefined;
  const { text, changed } = decidedConfig(file, before, settingsOf(membership, kept));

  // Check the original, because the copy is not written yet.
  const flags = { ca: paths[ROOTS] };
  const { config, problems } = examineConfig({ flags, env: {}, file: { path: file, required: true, text } });
  if (problems.length > 0) throw allOf(problems);

  const roots = fileStep(join(state, ROOTS), membership.roots, 0o600, 0o700);
  const token = join(state, TOKEN);
  const steps: Step[] = [
    ...folderStep(state),
    roots,
    membership.token === ""
      ? {
          action: "keep",
          target: token,
          note: `${paths[TOKEN]} is missing or has expired, and a certificate until ${time(certified?.notAfter ?? 0)} makes up for it`,
        }
      : fileStep(token, `${membership.token}\n`, 0o600, 0o700),
    configStep(file, before, text, changed),
  ];
  return { steps, remarks, config: { ...config, ca: kept.ca } };
}

/** The paths of the copies of roots and token. */
export function keptFiles(stateDir: string): { ca: string; token: string } {
  return { ca: join(stateDir, ROOTS), token: join(stateDir, TOKEN) };
}

/** The step that applies `config` to a running agent. */
export async function needOf(folders: Folders, config: Config): Promise<Need> {
  const socket = adminSocket(folders.runDir);
  const [running, status] = (await Promise.all([
    askAgent(socket, "/config").catch(() => ({})),
    askAgent(socket, "/agent").catch(() => undefined),
  ])) as [Partial<SettingValues> | undefined, AgentStatus | undefined];
  if (running === undefined) return "nothing";
  // An older agent does not report its settings, so they may differ.
  if (running.istiod === undefined) return "restart";
  const { live, later } = differencesOf(running, settingValues(config));
  // A refused agent tries again by itself, but only after some time.
  if (later.length > 0 || status?.identity?.lastError !== undefined) return "restart";
  return live.length > 0 ? "reload" : "nothing";
}

/** Waits for the agent to join, and describes its state. */
export async function arrival(folders: Folders): Promise<string> {
  const deadline = performance.now() + PATIENCE;
  let reason = "the agent does not answer";
  while (performance.now() < deadline) {
    const status = (await askAgent(adminSocket(folders.runDir), "/agent").catch(() => undefined)) as
      | AgentStatus
      | undefined;
    const { identity, stream } = status ?? {};
    if (identity?.certificate?.valid && stream?.connected)
      return `Joined: this machine is ${identity.id}, connected to istiod at ${stream.target}. kmesh status shows what it governs.`;
    reason = identity?.lastError?.text ?? stream?.lastError?.text ?? (status ? "no answer yet" : reason);
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  return `Not in the mesh yet; the agent keeps trying: ${reason}`;
}

/** The machine's certificate, if it is valid. */
export function certifiedId(state: string): { id: SpiffeId; notAfter: number } | undefined {
  try {
    const found = identityStore(state).load();
    return found && isValidAt(found, Date.now()) ? found : undefined;
  } catch (error) {
    if (error instanceof MalformedCertificate) return undefined;
    throw error;
  }
}

/** Makes the folder of the secrets accessible to its owner only. */
function folderStep(state: string): Step[] {
  const found = statSync(state, { throwIfNoEntry: false });
  if (found && (found.mode & 0o077) === 0) return [];
  return [
    {
      action: found ? "replace" : "write",
      target: state,
      note: "a folder for root alone",
      act() {
        mkdirSync(state, { recursive: true, mode: 0o700 });
        chmodSync(state, 0o700);
      },
    },
  ];
}

function configStep(
  path: string,
  before: string | undefined,
  text: string,
  changed: readonly string[],
): Step {
  if (before === text) return { action: "keep", target: path, note: "says the same" };
  // Keep the mode that the operator chose: the file has no secret.
  const mode = before === undefined ? 0o600 : statSync(path).mode & 0o777;
  return { ...fileStep(path, text, mode), note: changed.join(", ") };
}

function allOf(problems: readonly ConfigError[]): Error {
  const [first, ...more] = problems;
  if (first && more.length === 0) return first;
  return new Failure(
    EXIT.usage,
    `the configuration would be wrong, nothing was changed:\n${problems.map(({ message, next }) => `  ${message}. ${next}`).join("\n")}`,
  );
}

/** The machine's identity, for messages. */
export function spiffeOf({ trustDomain, namespace, serviceAccount }: Config): string {
  return formatSpiffe({ trustDomain, namespace, serviceAccount });
}
