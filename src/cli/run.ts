import { writeFileSync } from "node:fs";
import type { Agent } from "../agent/agent.ts";
import {
  type Config,
  ConfigError,
  readConfig,
  SETTINGS,
  sourcesOf,
  unknownVariables,
} from "../agent/config.ts";
import type { Log } from "../agent/log.ts";
import { tellReload } from "../agent/reload.ts";
import { execSelf } from "../kernel/process.ts";
import { smallHeapEnvironment } from "../runtime/heap.ts";
import { selfCommand } from "../runtime/self.ts";
import { CONFIG_FLAG, command } from "./command.ts";
import { EXIT, Failure } from "./exit.ts";
import { remark } from "./output.ts";

/**
 * How long a service manager waits for a first push when nothing was taken over, milliseconds. Not longer: at boot the
 * network comes after the agent.
 */
const READY_PATIENCE = 3_000;

export const run = command({
  name: "run",
  about: "Run the agent: keep the kernel's tables as istiod wants them",
  flags: { ...SETTINGS, ...CONFIG_FLAG },
  notes: [
    "Each flag is also a variable and a key of the configuration file: --service-account is KMESH_SERVICE_ACCOUNT",
    "and service-account. A flag wins over a variable, a variable over the file. Lists are written with commas.",
    "",
    "SIGTERM and SIGINT end the agent and leave the kernel as it is; so does SIGKILL. SIGHUP reads the configuration",
    "again: cgroup, unit, exclude, netns and shadow change at once, for the rest the log says what needs a restart.",
  ].join("\n"),
  async run({ flags }) {
    const config = readConfig(sourcesOf(flags, process.env));
    keepHeapSmall();
    for (const name of unknownVariables(process.env))
      remark(`kmesh: ${name} means nothing to kmesh and is ignored`);
    // Loaded here: other commands need no gRPC.
    const [{ Agent }, { openLog }, { LockHeld }, { ServiceNotifier }, { tellInOneLine }] = await Promise.all([
      import("../agent/agent.ts"),
      import("../agent/log.ts"),
      import("../kernel/lock.ts"),
      import("../agent/notify.ts"),
      import("../agent/reporter.ts"),
    ]);
    const log = openLog(config.logLevel);
    const service = new ServiceNotifier(process.env, (line) => log.warn(line));
    const { stopped, reloads } = signals(service.active || !process.stderr.isTTY);
    try {
      const agent = await Agent.start(config, log, (status) => service.status(tellInOneLine(status)));
      await Promise.race([agent.live, stopped, patience(READY_PATIENCE)]);
      service.ready(tellInOneLine(agent.status()));
      reloads(() => {
        service.reloading();
        reload(agent, () => readConfig(sourcesOf(flags, process.env)), log);
        service.ready(tellInOneLine(agent.status()));
      });
      const signal = await stopped;
      service.stopping();
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
  try {
    // Started by way of /proc/self/exe it is called "exe".
    writeFileSync("/proc/self/comm", "kmesh");
  } catch {
    // Only a name.
  }
}

/** A configuration that is wrong, or that the kernel refuses, is told; the one before stays. */
function reload(agent: Agent, read: () => Config, log: Log): void {
  try {
    log.info(tellReload(agent.reload(read())));
  } catch (error) {
    const next = error instanceof ConfigError ? ` ${error.next}` : "";
    log.error(`Not reloaded, all stays as it was: ${error instanceof Error ? error.message : error}.${next}`);
  }
}

interface Signals {
  /** The signal that ends the agent. */
  stopped: Promise<NodeJS.Signals>;
  /** Has `reload` called at every SIGHUP, also for one that came before. */
  reloads(reload: () => void): void;
}

/** Listens from now on. `serving` false: this is somebody's terminal, and SIGHUP says that it is gone. */
function signals(serving: boolean): Signals {
  const { promise: stopped, resolve } = Promise.withResolvers<NodeJS.Signals>();
  for (const signal of ["SIGTERM", "SIGINT"] as const) process.on(signal, () => resolve(signal));
  let early = false;
  let reload = () => {
    early = true;
  };
  process.on("SIGHUP", () => (serving ? reload() : resolve("SIGHUP")));
  return {
    stopped,
    reloads(given) {
      reload = given;
      if (early) given();
    },
  };
}

function patience(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds).unref());
}
