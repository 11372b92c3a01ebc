/** Asks the agent to hand over to a successor and prints the progress, for `restart`, `upgrade` and `rollback`. */

import { AdminError, askAgent, orderAgent } from "../../admin/client.ts";
import { type AgentStatus, adminSocket } from "../../admin/status.ts";
import type { Folders } from "../../config/config.ts";
import type { Setting } from "../../config/settings.ts";
import { reasonOf } from "../../errors/reason.ts";
import type { Proof } from "../../handover/predecessor.ts";
import type { RestartRequest } from "../../handover/restart-request.ts";
import { type Arguments, UsageError } from "../framework/arguments.ts";
import { textFlag } from "../framework/command.ts";
import { EXIT, Failure } from "../framework/exit.ts";
import { type Format, print, printJson, remark, table } from "../framework/output.ts";
import { START_AN_AGENT } from "../framework/view.ts";

/** Milliseconds of silence after which the agent counts as hung. It writes a line each second. */
const SILENCE = 10_000;
const LONGEST = 3600;

export const TIMEOUT_FLAG: Record<string, Setting> = {
  timeout: {
    kind: "text",
    hint: "SECONDS",
    about: "time limit for the successor; after it the previous agent continues",
    fallback: "60",
  },
};

/** The agent's version has no hand-over. */
export class CannotHandOver extends Failure {
  constructor() {
    super(
      EXIT.failed,
      "the agent that runs is of a version that can't hand over",
      "Restart it once without --graceful: connections continue meanwhile.",
    );
  }
}

/** Parses --timeout to milliseconds. Throws UsageError. */
export function timeoutOf(flags: Arguments["flags"]): number {
  const text = textFlag(flags, "timeout") ?? "60";
  const seconds = Number(text.replace(/s$/, ""));
  if (text !== "" && seconds > 0 && seconds <= LONGEST) return seconds * 1000;
  throw new UsageError(
    `--timeout: "${text}" is not a number of seconds`,
    `Write --timeout 60 (at most ${LONGEST}).`,
  );
}

/** The status of the running agent. Throws Failure when no agent answers. */
export async function runningAgent(folders: Folders): Promise<AgentStatus> {
  let agent: AgentStatus | undefined;
  try {
    agent = (await askAgent(adminSocket(folders.runDir), "/agent", SILENCE)) as AgentStatus | undefined;
  } catch (error) {
    throw hangs(reasonOf(error));
  }
  if (agent) return agent;
  throw new Failure(
    EXIT.agentNotRunning,
    `no agent runs with ${folders.runDir}; the kernel's state is unchanged`,
    START_AN_AGENT,
  );
}

/**
 * Asks the agent to hand over and prints the progress to standard error. Returns the proof. Throws Failure; its exit
 * code says whether the previous agent continues.
 */
export async function handOverBy(
  folders: Folders,
  order: Omit<RestartRequest, "asked" | "graceful">,
): Promise<Proof> {
  let proof: Proof | undefined;
  let failure: string | undefined;
  const hear = (line: unknown) => {
    const {
      progress,
      proof: given,
      failure: reason,
    } = line as {
      progress?: string;
      proof?: Proof;
      failure?: string;
    };
    if (progress !== undefined) remark(progress);
    proof = given ?? proof;
    failure = reason ?? failure;
  };
  const restore = ignoreSignals(`The ${order.kind} continues; this command and kmesh history show its end`);
  try {
    const there = await orderAgent(
      adminSocket(folders.runDir),
      "/restart",
      { ...order, graceful: true, asked: Date.now() } satisfies RestartRequest,
      hear,
      SILENCE,
    );
    if (!there) await runningAgent(folders);
  } catch (error) {
    throw explain(error, order.kind);
  } finally {
    restore();
  }
  if (proof) return proof;
  if (failure !== undefined)
    throw new Failure(
      EXIT.notHandedOver,
      `no ${order.kind}: ${failure}`,
      "The previous agent continues, and so do all connections.",
    );
  throw new Failure(
    EXIT.failed,
    `the agent hung up before the end of the ${order.kind}`,
    "kmesh status shows who runs; what the kernel holds stays.",
  );
}

/** Prints the result for the operator. */
export function printProof(title: string, proof: Proof, format: Format, more: object = {}): void {
  if (format === "json") {
    printJson({ ...proof, ...more });
    return;
  }
  const { from_version: from, to_version: to } = proof;
  print(
    `${title} in ${proof.seconds} s; pid ${proof.pid} runs now.\n\n${table(
      ["", ""],
      [
        ["version", from === to ? from : `${from} -> ${to}`],
        ["no agent in control for", `${proof.gap_ms} ms`],
        ["connections governed meanwhile", `${proof.connections}`],
        ["failed", `${proof.failed}`],
        ["refused on purpose", `${proof.refused}`],
        ["map writes", `${proof.map_writes}`],
        ["hooks attached again", `${proof.relinked}`],
      ],
    ).trim()}`,
  );
  if (!proof.synced) print("istiod does not answer: it governs by what the kernel held before.");
}

function explain(error: unknown, kind: string): unknown {
  if (error instanceof Failure) return error;
  if (error instanceof AdminError) {
    // An agent without hand-over answers like this.
    if (error.status === 404) return new CannotHandOver();
    return new Failure(
      error.status === 409 ? EXIT.busy : EXIT.failed,
      `no ${kind}: ${error.message}`,
      error.status === 409 ? "The agent continues; try again afterwards." : "",
    );
  }
  return hangs(reasonOf(error));
}

function hangs(reason: string): Failure {
  return new Failure(
    EXIT.failed,
    `the agent hangs: ${reason}`,
    "Connections continue. To restart it without its help: systemctl restart kmesh, or kill -9 and kmesh run.",
  );
}

/** Ignores SIGHUP, because the agent continues the hand-over anyway. Returns a function that ends that. */
export function ignoreSignals(text: string): () => void {
  let told = false;
  const listener = () => {
    if (!told) remark(text);
    told = true;
  };
  const signals = ["SIGINT", "SIGHUP", "SIGTERM"] as const;
  for (const signal of signals) process.on(signal, listener);
  return () => {
    for (const signal of signals) process.off(signal, listener);
  };
}
