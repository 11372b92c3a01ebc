import { askAgent, orderAgent } from "../../../admin/client.ts";
import { type AgentStatus, adminSocket } from "../../../admin/status.ts";
import { type Folders, readFolders } from "../../../config/config.ts";
import { sourcesOf } from "../../../config/sources.ts";
import { reasonOf } from "../../../errors/reason.ts";
import type { RestartRequest } from "../../../handover/restart-request.ts";
import { command, FOLDER_FLAGS, OUTPUT_FLAG } from "../../framework/command.ts";
import { EXIT, Failure } from "../../framework/exit.ts";
import { formatOf, print, printJson } from "../../framework/output.ts";
import {
  handOverBy,
  printProof,
  runningAgent,
  TIMEOUT_FLAG,
  timeoutOf,
} from "../../service/handover-client.ts";
import { serviceOf, systemctl } from "../../service/systemd.ts";

const LOOK = 50;
const SILENCE = 10_000;

export const restart = command({
  name: "restart",
  about: "Restart the agent; connections continue",
  changes: true,
  flags: {
    graceful: {
      kind: "switch",
      about: "start a successor, wait until it is in sync, then hand over; prints the proof",
    },
    ...TIMEOUT_FLAG,
    ...OUTPUT_FLAG,
    ...FOLDER_FLAGS,
  },
  notes: [
    "With --graceful the running agent starts its successor, with the same arguments and environment, and ends after",
    "the hand-over. Under systemd the unit stays active and its main process changes. Without a service manager",
    "the successor is not a child of the caller: a supervisor or a shell that waits for the agent sees it end.",
    "A successor that is not ready in time is stopped, and the previous agent continues (exit code 6).",
    "",
    "Without --graceful systemd restarts the unit, or the agent executes itself again under its pid.",
  ].join("\n"),
  examples: [["restart --graceful", "Hand over to a successor without a gap, and print the proof"]],
  async run({ flags }) {
    const format = formatOf(flags);
    const timeout = timeoutOf(flags);
    const folders = readFolders(sourcesOf(flags, process.env));
    if (flags.graceful === true) {
      const proof = await handOverBy(folders, { kind: "restart", timeout });
      printProof("Restarted", proof, format);
      return EXIT.done;
    }
    const { from, to, pid, service } = await restartAnew(folders, timeout);
    if (format === "json") printJson({ pid, service: service ?? null, from_version: from, to_version: to });
    else
      print(
        `Restarted${service === undefined ? "" : ` ${service}`}: pid ${pid} runs, version ${to}. Connections went on.`,
      );
    return EXIT.done;
  },
});

interface Anew {
  from: string;
  to: string;
  pid: number;
  service: string | undefined;
}

/** The service manager starts the successor if there is one; otherwise the agent executes itself. */
async function restartAnew(folders: Folders, timeout: number): Promise<Anew> {
  const before = await runningAgent(folders);
  const service = serviceOf(before.pid);
  const deadline = performance.now() + timeout;
  if (service !== undefined) systemctl("restart", service);
  else {
    const order: RestartRequest = { kind: "restart", graceful: false, timeout, asked: Date.now() };
    try {
      await orderAgent(adminSocket(folders.runDir), "/restart", order, () => {}, SILENCE);
    } catch (error) {
      throw new Failure(EXIT.failed, `no restart: ${reasonOf(error)}`);
    }
  }
  while (performance.now() < deadline) {
    const now = await askAgent(adminSocket(folders.runDir), "/agent", SILENCE).catch(() => undefined);
    const agent = now as AgentStatus | undefined;
    if (agent && agent.startedAt !== before.startedAt)
      return { from: before.version, to: agent.version, pid: agent.pid, service };
    await new Promise((resolve) => setTimeout(resolve, LOOK));
  }
  throw new Failure(
    EXIT.failed,
    `the agent did not come back within ${timeout / 1000} s; what the kernel holds stays`,
    service === undefined
      ? "Its own words stand in its log."
      : `Its own words: journalctl -u ${service} -n 20`,
  );
}
