import type { AgentStatus } from "../../admin/status.ts";
import type { Agent } from "../../agent/agent.ts";
import { formatReload } from "../../agent/reload.ts";
import { ServiceNotifier } from "../../agent/sd-notify.ts";
import { StartBackoff } from "../../agent/start-backoff.ts";
import type { Config } from "../../config/config.ts";
import { ConfigError, NotThereYet } from "../../config/config-error.ts";
import type { Log } from "../../config/log.ts";
import { LIVE, SETTINGS, unknownVariables } from "../../config/settings.ts";
import { type Flags, type Sources, sourcesOf } from "../../config/sources.ts";
import { reasonOf } from "../../errors/reason.ts";
import { readTextFile } from "../../files/read-file.ts";
import { INVITATION } from "../../handover/protocol.ts";
import type { Succession } from "../../handover/successor.ts";
import { execSelf } from "../../kernel/process.ts";
import { examineFiles, hiddenForAgent } from "../../machine/config-files.ts";
import { version } from "../../runtime/version.ts";
import { CONFIG_FLAG, command } from "../framework/command.ts";
import { EXIT, Failure } from "../framework/exit.ts";
import { remark } from "../framework/output.ts";

/**
 * Milliseconds until an agent that adopted nothing reports READY without a first push. It is short, because at boot
 * the network comes up after the agent.
 */
const READY_PATIENCE = 3_000;

export const run = command({
  name: "run",
  about: "Run the agent, which publishes istiod's configuration to the kernel",
  flags: { ...SETTINGS, ...CONFIG_FLAG },
  notes: [
    "Each flag is also a variable and a key of the configuration file: --service-account is KMESH_SERVICE_ACCOUNT",
    "and service-account. A flag wins over a variable, a variable over the file. Commas separate the items of a list.",
    "",
    "SIGTERM, SIGINT and SIGKILL end the agent and leave the kernel's state in place. SIGHUP reloads the configuration.",
    `These settings change at once: ${LIVE.join(", ")}. For others the log says what needs a restart.`,
  ].join("\n"),
  examples: [
    [
      "run --istiod istiod.example:15012 --ca root.pem --token token",
      "Run an agent with these flags and /etc/kmesh/config.yaml",
    ],
    ["run --shadow --unit nginx", "Decide and count for one unit without changing connections"],
  ],
  async run({ flags }) {
    const invitation = process.env[INVITATION];
    if (invitation === undefined) return await beginPatiently(flags);
    delete process.env[INVITATION];
    const { Succession } = await import("../../handover/successor.ts");
    const succession = await Succession.answer(invitation);
    try {
      return await begin(flags, succession);
    } catch (error) {
      succession?.failed(error);
      throw error;
    }
  },
});

/** Runs the agent under systemd. After failed starts it waits and logs what the next start needs. */
async function beginPatiently(flags: Flags): Promise<number> {
  const backoff = StartBackoff.of(process.env);
  if (!backoff) return begin(flags, undefined);
  const stop = new AbortController();
  const listener = () => stop.abort();
  for (const signal of ["SIGTERM", "SIGINT"] as const) process.on(signal, listener);
  await backoff.wait((text) => {
    remark(`kmesh: ${text}`);
    new ServiceNotifier(process.env, remark).status(text);
  }, stop.signal);
  if (stop.signal.aborted) return EXIT.done;
  for (const signal of ["SIGTERM", "SIGINT"] as const) process.off(signal, listener);
  try {
    return await begin(flags, undefined, () => backoff.succeeded());
  } catch (error) {
    const { path } = sourcesOf(flags, process.env).file;
    backoff.failed(error instanceof NotThereYet ? [path, error.path] : [path]);
    if (error instanceof NotThereYet) throw new Failure(EXIT.notThereYet, error.message, error.next);
    throw error;
  }
}

/** Runs the agent. With a `succession` it succeeds a running agent. `ready` is called when it has become the agent. */
async function begin(flags: Flags, succession: Succession | undefined, ready = () => {}): Promise<number> {
  const sources = sourcesOf(flags, process.env);
  const text = textAt(sources.file.path);
  const config = acceptConfig(sources, (text) => remark(`kmesh: ${text}`));
  for (const name of unknownVariables(process.env))
    remark(`kmesh: ${name} means nothing to kmesh and is ignored`);
  // Loaded here: other commands need no gRPC.
  const [{ Agent }, { Conflict }, { openLog }, { LockHeld }, { formatOneLine }, { UnknownManifest }] =
    await Promise.all([
      import("../../agent/agent.ts"),
      import("../../admin/server.ts"),
      import("../../config/log.ts"),
      import("../../kernel/lock.ts"),
      import("../../agent/reporter.ts"),
      import("../../state/manifest.ts"),
    ]);
  const log = openLog(config.logLevel);
  const service = new ServiceNotifier(process.env, (line) => log.warn(line));
  const { stopped, reloads } = signals(service.active || !process.stderr.isTTY);
  // systemd accepts messages only from the main process, and warns about others.
  let known = succession === undefined;
  const readAgain = (agent: Agent) =>
    reload(agent, () => acceptConfig(sourcesOf(flags, process.env), (text) => log.warn(text)), log);
  let reloadNow = (): string => {
    throw new Conflict("the agent is only about to start");
  };
  const audience = {
    status: (status: AgentStatus) => {
      if (known) service.status(formatOneLine(status));
    },
    reload: () => reloadNow(),
    succeeded: (pid: number) => service.succeeded(pid),
  };
  try {
    let agent: Agent;
    if (succession) {
      const taken = Agent.succeed(config, log, audience, succession);
      const early = await Promise.race([taken, stopped]);
      if (typeof early === "string") return EXIT.done;
      agent = early;
      log.info(`kmesh ${version} runs (pid ${process.pid}): succeeded the previous agent`);
      await Promise.race([succession.acknowledged(), stopped]);
      known = true;
    } else {
      agent = await Agent.start(config, log, audience);
      // From here on, a command that writes the file asks this agent to reload it.
      if (textAt(sources.file.path) !== text) {
        try {
          readAgain(agent);
        } catch {
          // Told in the log.
        }
      }
      await Promise.race([agent.live, stopped, patience(READY_PATIENCE)]);
    }
    service.ready(formatOneLine(agent.status()));
    ready();
    reloadNow = () => {
      service.reloading();
      try {
        return readAgain(agent);
      } finally {
        service.ready(formatOneLine(agent.status()));
      }
    };
    reloads(() => {
      if (agent.postponeReload()) {
        log.info("The configuration is read again when the hand-over that is under way has ended");
        return;
      }
      try {
        reloadNow();
      } catch {
        // Told in the log.
      }
    });
    const end = await Promise.race([stopped, agent.ended]);
    if (typeof end === "string") {
      service.stopping();
      agent.stop();
      log.info(`${end}: the agent ends, what the kernel holds stays. kmesh down would remove it`);
    } else if (end.kind === "succeeded") {
      await agent.leave();
    } else if (end.kind === "lost") {
      service.stopping();
      await agent.leave();
      throw end.holder;
    } else {
      await agent.leave();
      agent.stop();
      log.info("Executing the agent again; the kernel's state stays");
      execSelf(end.command, process.env, end.command[0]);
    }
    return EXIT.done;
  } catch (error) {
    if (error instanceof UnknownManifest) throw new Failure(EXIT.unknownState, error.message, error.next);
    if (!(error instanceof LockHeld)) throw error;
    throw new Failure(
      EXIT.alreadyRunning,
      `an agent runs already${error.pid === undefined ? "" : `: pid ${error.pid}`} (it holds ${error.path})`,
      "Stop it first, or choose other folders with --bpffs, --state-dir and --run-dir.",
    );
  }
}

/** Reads the configuration as `config check` does. Throws the first ConfigError and passes the others to `warn`. */
function acceptConfig(sources: Sources, warn: (text: string) => void): Config {
  const { config, problems, remarks } = examineFiles(sources, hiddenForAgent(sources.file.path));
  const [first] = problems;
  if (first) throw first;
  for (const { text, cure } of remarks) warn(`${text}. ${cure}`);
  return config;
}

/** Reloads the configuration. If it is wrong or the kernel refuses it, the current one stays and the error is logged and thrown. Returns the log line. */
function reload(agent: Agent, read: () => Config, log: Log): string {
  try {
    const told = formatReload(agent.reload(read()));
    log.info(told);
    return told;
  } catch (error) {
    const next = error instanceof ConfigError ? ` ${error.next}` : "";
    log.error(`Not reloaded, all stays as it was: ${reasonOf(error)}.${next}`);
    throw error;
  }
}

/** The text of a file; undefined when it can't be read. */
function textAt(path: string): string | undefined {
  try {
    return readTextFile(path);
  } catch {
    return undefined;
  }
}

interface Signals {
  /** Resolves with the signal that ends the agent. */
  stopped: Promise<NodeJS.Signals>;
  /** Calls `reload` at every SIGHUP, also for one that was received earlier. */
  reloads(reload: () => void): void;
}

/** Starts to listen. With `serving` false the agent runs on a terminal, and SIGHUP means that the terminal is gone. */
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
