/** The demo's child processes, from their own side: `kmesh demo-part NAME OPTIONS`. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { execSelf, prctlDeathSignal } from "../kernel/process.ts";
import { selfCommand } from "../runtime/self.ts";
import { serveFile } from "./control-plane.ts";
import { Load, type LoadOptions } from "./load.ts";
import { eachLine, startUpstream } from "./upstream.ts";

export interface PartOptions {
  "control-plane": { file: string; port: number };
  upstream: { name: string; address: string; port: number };
  load: LoadOptions & { cgroup: string };
  /** The arguments of `kmesh`. */
  agent: string[];
}

/** The signal numbers that a part gets when its parent ends. */
const SIGKILL = 9;
const SIGTERM = 15;

/** Runs a part until standard input ends. Rejects when it can't start. */
export async function runPart(name: string, json: string): Promise<void> {
  prctlDeathSignal(name === "agent" ? SIGTERM : SIGKILL);
  const options: unknown = JSON.parse(json);
  switch (name) {
    case "agent": {
      // An ordinary `kmesh run`. The death signal survives the exec.
      const [executable, ...args] = selfCommand();
      return execSelf([executable, ...args, ...(options as PartOptions["agent"])], process.env);
    }
    case "control-plane": {
      const { file, port } = options as PartOptions["control-plane"];
      await serveFile(file, port);
      return untilParentGoes({});
    }
    case "upstream": {
      const { name: who, address, port } = options as PartOptions["upstream"];
      await startUpstream(who, address, port);
      return untilParentGoes({});
    }
    case "load": {
      const { cgroup, ...rest } = options as PartOptions["load"];
      // Before the first socket, because a socket belongs to the cgroup in which it was created.
      writeFileSync(join(cgroup, "cgroup.procs"), String(process.pid));
      const load = new Load(rest);
      load.start();
      return untilParentGoes({ ledger: () => load.ledger, stop: () => load.stop() });
    }
    default:
      throw new Error(`the demo has no part "${name}"`);
  }
}

/** Prints ready, answers the parent's words with JSON, and ends when the parent closes the pipe. */
function untilParentGoes(answers: Record<string, () => unknown>): Promise<void> {
  process.stdout.write("ready\n");
  eachLine(process.stdin, async (word) => {
    process.stdout.write(`${JSON.stringify((await answers[word]?.()) ?? null)}\n`);
  });
  return new Promise((resolve) => process.stdin.on("end", () => resolve()));
}
