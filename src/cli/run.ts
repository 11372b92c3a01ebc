import { readConfig, SETTINGS, sourcesOf, unknownVariables } from "../agent/config.ts";
import { execSelf } from "../kernel/process.ts";
import { smallHeapEnvironment } from "../runtime/heap.ts";
import { selfCommand } from "../runtime/self.ts";
import { CONFIG_FLAG, command } from "./command.ts";
import { EXIT, Failure } from "./exit.ts";
import { remark } from "./output.ts";

export const run = command({
  name: "run",
  about: "Run the agent: keep the kernel's tables as istiod wants them",
  flags: { ...SETTINGS, ...CONFIG_FLAG },
  notes: [
    "Each flag is also a variable and a key of the configuration file: --service-account is KMESH_SERVICE_ACCOUNT",
    "and service-account. A flag wins over a variable, a variable over the file. Lists are written with commas.",
  ].join("\n"),
  async run({ flags }) {
    const config = readConfig(sourcesOf(flags, process.env));
    keepHeapSmall();
    for (const name of unknownVariables(process.env))
      remark(`kmesh: ${name} means nothing to kmesh and is ignored`);
    // Loaded here: other commands need no gRPC.
    const [{ Agent }, { openLog }, { LockHeld }] = await Promise.all([
      import("../agent/agent.ts"),
      import("../agent/log.ts"),
      import("../kernel/lock.ts"),
    ]);
    const log = openLog(config.logLevel);
    const stopped = stopSignal();
    try {
      const agent = await Agent.start(config, log);
      const signal = await stopped;
      agent.stop();
      log.info(`${signal}: the agent ends, what the kernel holds stays. kmesh down would remove it`);
      return EXIT.done;
    } catch (error) {
      if (!(error instanceof LockHeld)) throw error;
      throw new Failure(
        EXIT.alreadyRunning,
        `an agent runs already${error.pid === undefined ? "" : `: pid ${error.pid}`} (it holds ${error.path})`,
        "Stop it first, or choose other folders with --bpffs, --state-dir and --run-dir.",
      );
    }
  },
});

/** Begins anew, in this very process, unless it was started right. */
function keepHeapSmall(): void {
  const env = smallHeapEnvironment(process.env);
  if (env) execSelf([...selfCommand(), ...process.argv.slice(2)], env);
}

function stopSignal(): Promise<NodeJS.Signals> {
  return new Promise((resolve) => {
    for (const signal of ["SIGTERM", "SIGINT"] as const) process.on(signal, () => resolve(signal));
  });
}
