/** The life of a tunnel process: signals, hand-over to the next one, drain. */

import { constants } from "node:os";
import { prctlDeathSignal } from "../../kernel/process.ts";
import { HBONE_PORT, STEERED_PORT, TUNNEL_PORT } from "../../mesh/tunnel-address.ts";
import { LISTENERS, type ListenerName, takeInherited } from "./listeners.ts";
import { READY_SIGNAL, startSuccessor } from "./successor.ts";
import { Tunnel, type TunnelOptions } from "./tunnel.ts";
import { DRAIN_SIGNAL, type WorkerCount, Workers } from "./workers.ts";

/** Default addresses without handed-over sockets. Steered connections come from the kernel, so those sockets are local. */
const DEFAULTS: Record<ListenerName, { host: string; port: number }> = {
  outbound: { host: "0.0.0.0", port: TUNNEL_PORT },
  hbone: { host: "::", port: HBONE_PORT },
  inbound: { host: "127.0.0.1", port: STEERED_PORT },
  inbound6: { host: "::1", port: STEERED_PORT },
};

export interface ProcessOptions extends Omit<TunnelOptions, "listeners" | "main"> {
  /** Starts the next process: executable and arguments. */
  command: readonly string[];
  /** Processes that accept on the same sockets; default 1. */
  workers?: WorkerCount;
  /** Time limit of a drain, after which remaining connections are reset, milliseconds; undefined: no limit. */
  drainTimeout: number | undefined;
  env: Record<string, string | undefined>;
  /** Addresses instead of the defaults, without handed-over sockets. */
  listeners?: TunnelOptions["listeners"];
  on?: {
    /** The tunnel accepts. Called only after a predecessor's hand-over, because systemd accepts its messages until then. */
    ready?(tunnel: Tunnel): void;
    /** Another process accepts; this one drains. */
    succeeded?(pid: number): void;
    stopping?(): void;
  };
}

/**
 * Runs a tunnel until its last connection has ended after SIGTERM, SIGINT or a hand-over. SIGHUP starts the next process
 * with the same command and sockets, then drains this one. A second SIGTERM or SIGINT resets what is left. Rejects when it
 * can't listen.
 */
export async function runTunnel(options: ProcessOptions): Promise<void> {
  const { env, log, on } = options;
  const signals = new Signals();
  const { fds, predecessor, main } = takeInherited(env, process.pid);
  if (main !== undefined) diesWith(main);
  const inherited = [...fds].map(([name, fd]) => [name, { fd }] as const);
  const listeners: TunnelOptions["listeners"] =
    inherited.length > 0 ? Object.fromEntries(inherited) : (options.listeners ?? DEFAULTS);
  const tunnel = await Tunnel.start({ ...options, listeners, ...(main !== undefined && { main }) });
  const names = LISTENERS.filter((name) => name in listeners).join(", ");
  log.info(`kmesh tunnel ${options.version} accepts (pid ${process.pid}: ${names})`);
  on?.ready?.(tunnel);
  const workers =
    main === undefined
      ? new Workers(tunnel.listeners, { ...options, count: options.workers ?? 1 })
      : undefined;
  if (predecessor !== undefined) tellReady(predecessor, log.warn);
  let handingOver = false;
  let ending = false;
  signals.on("SIGHUP", () => {
    // A worker has no successor of its own.
    if (main !== undefined && !ending) {
      on?.stopping?.();
      end();
    }
    if (main !== undefined || handingOver) return;
    handingOver = true;
    startSuccessor(options.command, tunnel.listeners, env)
      .then((pid) => {
        log.info(`The tunnel ${pid} accepts now; this one goes with its last connection`);
        on?.succeeded?.(pid);
        end();
      })
      .catch((error: unknown) => {
        handingOver = false;
        log.warn(
          `No hand-over, this tunnel continues: ${error instanceof Error ? error.message : String(error)}`,
        );
      });
  });
  const end = () => {
    if (ending) {
      tunnel.abort();
      workers?.abort();
      return;
    }
    ending = true;
    const { drainTimeout } = options;
    if (drainTimeout !== undefined) setTimeout(() => tunnel.abort(), drainTimeout).unref();
    tunnel.drain();
    workers?.drain();
  };
  for (const signal of ["SIGTERM", "SIGINT"] as const)
    signals.on(signal, () => {
      if (!ending) on?.stopping?.();
      end();
    });
  await tunnel.ended;
  signals.close();
}

/** A worker drains when its main process ends, however that ends. */
function diesWith(main: number): void {
  prctlDeathSignal(constants.signals[DRAIN_SIGNAL]);
  // It may have ended before.
  if (process.ppid !== main) process.kill(process.pid, DRAIN_SIGNAL);
}

function tellReady(pid: number, warn: (text: string) => void): void {
  try {
    process.kill(pid, READY_SIGNAL);
  } catch {
    warn(`The tunnel before (${pid}) has ended meanwhile`);
  }
}

/** Signal handlers that are installed at once: a signal that comes before its receiver is there is kept. */
class Signals {
  readonly #kept = new Set<NodeJS.Signals>();
  readonly #receivers = new Map<NodeJS.Signals, () => void>();
  readonly #listeners = (["SIGTERM", "SIGINT", "SIGHUP"] as const).map((signal) => {
    const listener = () => {
      const receive = this.#receivers.get(signal);
      if (receive) receive();
      else this.#kept.add(signal);
    };
    process.on(signal, listener);
    return [signal, listener] as const;
  });

  on(signal: NodeJS.Signals, receive: () => void): void {
    this.#receivers.set(signal, receive);
    if (this.#kept.delete(signal)) receive();
  }

  close(): void {
    for (const [signal, listener] of this.#listeners) process.off(signal, listener);
  }
}
