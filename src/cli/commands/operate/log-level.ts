import { AdminError, askAgent, orderAgent } from "../../../admin/client.ts";
import { adminSocket } from "../../../admin/status.ts";
import { LOG_LEVELS } from "../../../config/config.ts";
import { reasonOf } from "../../../errors/reason.ts";
import { command, FOLDER_FLAGS, OUTPUT_FLAG } from "../../framework/command.ts";
import { EXIT, Failure } from "../../framework/exit.ts";
import { formatOf, print, printJson } from "../../framework/output.ts";
import { foldersOf, START_AN_AGENT } from "../../framework/view.ts";

/** Time limit for the agent's answer, milliseconds. */
const SILENCE = 10_000;

interface Level {
  level: string;
  configured: string;
}

export const logLevel = command({
  name: "log-level",
  about: "Show the running agent's log level, or change it until its next start",
  changes: true,
  positionals: [{ name: "level", about: "error, warn, info or debug", required: false, choices: LOG_LEVELS }],
  flags: { ...OUTPUT_FLAG, ...FOLDER_FLAGS },
  notes: "The configuration is not changed: the next agent starts with its key log-level.",
  examples: [
    ["log-level debug", "Log everything; journalctl -fu kmesh shows it"],
    ["log-level", "Show the present level"],
  ],
  async run({ flags, positionals: [level] }) {
    const format = formatOf(flags);
    const socket = adminSocket(foldersOf(flags).runDir);
    if (level !== undefined) await change(socket, level);
    const now = (await ask(socket)) as Level | undefined;
    if (!now) throw absent();
    if (format === "json") printJson(now);
    else
      print(
        now.level === now.configured ? now.level : `${now.level} (the next start takes ${now.configured})`,
      );
    return EXIT.done;
  },
});

async function ask(socket: string): Promise<unknown> {
  try {
    return await askAgent(socket, "/log-level", SILENCE);
  } catch (error) {
    throw refused(error);
  }
}

async function change(socket: string, level: string): Promise<void> {
  try {
    if (!(await orderAgent(socket, "/log-level", { level }, () => {}, SILENCE))) throw absent();
  } catch (error) {
    throw error instanceof Failure ? error : refused(error);
  }
}

function absent(): Failure {
  return new Failure(
    EXIT.agentNotRunning,
    "no agent runs",
    `${START_AN_AGENT} It takes its level from the key log-level of the configuration.`,
  );
}

function refused(error: unknown): Failure {
  const old = error instanceof AdminError && error.status === 404;
  return new Failure(
    EXIT.failed,
    `the agent did not answer: ${reasonOf(error)}`,
    old ? "It is of a version that can't: kmesh restart --graceful with this one first." : "",
  );
}
