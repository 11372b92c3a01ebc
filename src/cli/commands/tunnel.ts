import { hostname } from "node:os";
import { ServiceNotifier } from "../../agent/sd-notify.ts";
import { examineConfig } from "../../config/config.ts";
import { openLog } from "../../config/log.ts";
import { type Flags, readAsFarAsUsable, sourcesOf } from "../../config/sources.ts";
import { reasonOf } from "../../errors/reason.ts";
import { identityStore } from "../../machine/identity-store.ts";
import { localityOf } from "../../machine/node.ts";
import { baggageOf, ownWorkload } from "../../machine/workload.ts";
import { selfCommand } from "../../runtime/self.ts";
import { version } from "../../runtime/version.ts";
import { PREDECESSOR } from "../../tunnel/process/listeners.ts";
import { PinnedMesh } from "../../tunnel/process/pinned.ts";
import { runTunnel } from "../../tunnel/process/run.ts";
import type { WorkerCount } from "../../tunnel/process/workers.ts";
import { UsageError } from "../framework/arguments.ts";
import { command, FOLDER_FLAGS, textFlag } from "../framework/command.ts";
import { EXIT, Failure } from "../framework/exit.ts";
import { remark } from "../framework/output.ts";
import { foldersOf } from "../framework/view.ts";

/** Milliseconds until a successor notifies systemd, which accepts only its predecessor's messages until then. */
const AFTER_SUCCESSION = 1_000;
const MOST_WORKERS = 64;

export const tunnel = command({
  name: "tunnel",
  about: "Run the tunnel, which carries this machine's connections by mutual TLS and HBONE",
  flags: {
    "drain-timeout": {
      kind: "text",
      hint: "DURATION",
      about:
        "how long open connections may last after SIGTERM or a hand-over, such as 30s, 10m, 2h (default: no limit)",
    },
    workers: {
      kind: "text",
      hint: "N|auto",
      about:
        "processes that accept on the same sockets: a number, or auto, which starts one more when a core is full (default: 1)",
    },
    ...FOLDER_FLAGS,
  },
  notes: [
    "It needs the pinned tables and the identity's files, and neither the agent nor istiod. systemd's socket unit holds",
    "the listening sockets (outbound 15001, hbone 15008, inbound and inbound6 15006), or it opens them itself.",
    "",
    "SIGHUP starts the next tunnel on the same sockets; this one accepts nothing more and ends with its last connection.",
    "SIGTERM and SIGINT end it with its last connection, or after --drain-timeout; a second one resets what is left.",
  ].join("\n"),
  examples: [["tunnel --drain-timeout 10m", "Run it; when it ends, open connections have ten minutes"]],
  async run({ flags }) {
    const folders = foldersOf(flags);
    const drainTimeout = durationOf(textFlag(flags, "drain-timeout"));
    const workers = workersOf(textFlag(flags, "workers"));
    const log = openLog("info");
    const service = new ServiceNotifier(process.env, remark);
    const successor = process.env[PREDECESSOR] !== undefined;
    const mesh = new PinnedMesh(folders.bpffs, (text) => log.warn(text));
    try {
      await runTunnel({
        command: [...selfCommand(), ...process.argv.slice(2)],
        drainTimeout,
        workers,
        env: process.env,
        store: identityStore(folders.stateDir),
        readTarget: (number) => mesh.readTarget(number),
        endpoints: mesh,
        admission: mesh,
        callers: mesh,
        runDir: folders.runDir,
        version,
        baggage: baggageFor(flags),
        log,
        on: {
          ready: ({ listeners }) => {
            mesh.serve(listeners);
            const ready = () => service.ready("Accepts connections");
            if (successor) setTimeout(ready, AFTER_SUCCESSION).unref();
            else ready();
          },
          succeeded: (pid) => {
            mesh.leave();
            service.succeeded(pid);
          },
          stopping: () => {
            mesh.leave();
            service.stopping();
          },
        },
      });
    } catch (error) {
      const taken = error instanceof Error && "code" in error && error.code === "EADDRINUSE";
      if (!taken) throw error;
      throw new Failure(
        EXIT.alreadyRunning,
        `a port of the tunnel is in use: ${reasonOf(error)}`,
        "See who listens with ss -ltnp 'sport = :15001 or sport = :15006 or sport = :15008', and stop it.",
      );
    } finally {
      mesh.close();
    }
    return EXIT.done;
  },
});

/** What peers' telemetry shows of this machine. A configuration that can't be used costs labels, and no connection. */
function baggageFor(flags: Flags): string {
  const sources = sourcesOf(flags, process.env);
  const { config } = readAsFarAsUsable(sources, examineConfig, () => {});
  return baggageOf(ownWorkload(config, hostname()), localityOf(config));
}

function workersOf(text: string | undefined): WorkerCount {
  if (text === undefined) return 1;
  if (text === "auto") return "auto";
  const count = Number(text);
  if (!/^\d{1,2}$/.test(text) || count < 1 || count > MOST_WORKERS)
    throw new UsageError(
      `--workers: "${text}" is not a number of processes`,
      `Write auto, or 1 to ${MOST_WORKERS}.`,
    );
  return count;
}

function durationOf(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const [, digits, unit = ""] = /^(\d{1,6})([smh])$/.exec(text) ?? [];
  if (digits === undefined)
    throw new UsageError(`--drain-timeout: "${text}" is not a duration`, "Write 30s, 10m or 2h.");
  return Number(digits) * ({ s: 1, m: 60, h: 3600 }[unit] ?? 0) * 1000;
}
