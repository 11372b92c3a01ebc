/**
 * More processes on the same listening sockets, since one process uses one core. They are started by the tunnel that they
 * belong to, and drain when it drains or ends, however it ends. Each is a whole tunnel with its own connections.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { availableParallelism } from "node:os";
import { type Listener, MAIN } from "./listeners.ts";

/** `auto`: another one when a core is full, at most one for each core. */
export type WorkerCount = number | "auto";

/** Tells a worker to drain. It comes by itself when the main process ends. */
export const DRAIN_SIGNAL = "SIGHUP";
/** Milliseconds between two looks, and looks in a row that find a core full until another worker starts. */
const LOOK_EVERY = 2_000;
const FULL_LOOKS = 3;
/** Share of a core. */
const FULL = 0.9;
/** Milliseconds until one that has ended is started again. */
const AGAIN_AFTER = 300;

export interface WorkersOptions {
  /** This process among them. */
  count: WorkerCount;
  command: readonly string[];
  env: Readonly<Record<string, string | undefined>>;
  log: { info(text: string): void; warn(text: string): void };
  /** For tests: microseconds of CPU time that this process has used, the machine's cores, milliseconds between two looks. */
  used?(): number;
  cores?: number;
  lookEvery?: number;
}

/** Owns the processes that it starts. */
export class Workers {
  readonly #options: WorkersOptions;
  readonly #listeners: readonly Listener[];
  readonly #running = new Set<ChildProcess>();
  #look: ReturnType<typeof setInterval> | undefined;
  #wanted = 0;
  #draining = false;

  constructor(listeners: readonly Listener[], options: WorkersOptions) {
    this.#listeners = listeners;
    this.#options = options;
    const { count } = options;
    if (count === "auto") this.#watch();
    else this.#want(count - 1);
  }

  /** Those that run, the oldest first. */
  get pids(): number[] {
    return [...this.#running].flatMap(({ pid }) => pid ?? []);
  }

  /** Starts no more, and has each one drain. */
  drain(): void {
    this.#draining = true;
    clearInterval(this.#look);
    for (const worker of this.#running) worker.kill(DRAIN_SIGNAL);
  }

  /** Has each one reset what is left, once they drain. */
  abort(): void {
    for (const worker of this.#running) worker.kill("SIGTERM");
  }

  #want(count: number): void {
    this.#wanted = count;
    while (this.#running.size < count) this.#start();
  }

  #watch(): void {
    const { cores = availableParallelism(), lookEvery = LOOK_EVERY } = this.#options;
    const most = cores - 1;
    const used = this.#options.used ?? (() => usedTime(process.cpuUsage()));
    let at = performance.now();
    let before = used();
    let full = 0;
    const look = () => {
      const now = performance.now();
      const spent = used();
      full = (spent - before) / 1000 > FULL * (now - at) ? full + 1 : 0;
      at = now;
      before = spent;
      if (full < FULL_LOOKS || this.#wanted >= most) return;
      full = 0;
      this.#options.log.info(
        `A core is full: the tunnel starts another process (${this.#wanted + 2} in all)`,
      );
      this.#want(this.#wanted + 1);
    };
    this.#look = setInterval(look, lookEvery);
    this.#look.unref();
  }

  #start(): void {
    const { command, env, log } = this.#options;
    const [file = "", ...args] = command;
    const worker = spawn(file, args, {
      stdio: ["ignore", 2, 2, ...this.#listeners.map(({ fd }) => fd)],
      env: {
        ...env,
        // Only the main process speaks to the service manager.
        NOTIFY_SOCKET: undefined,
        LISTEN_FDS: String(this.#listeners.length),
        LISTEN_FDNAMES: this.#listeners.map(({ name }) => name).join(":"),
        [MAIN]: String(process.pid),
      },
    });
    this.#running.add(worker);
    const over = (how: string) => {
      if (!this.#running.delete(worker) || this.#draining) return;
      log.warn(`A process of the tunnel has ended (${how}): its connections are lost, another one follows`);
      setTimeout(() => {
        if (!this.#draining) this.#want(this.#wanted);
      }, AGAIN_AFTER).unref();
    };
    worker.once("error", (error) => over(error.message));
    worker.once("exit", (code, signal) => over(String(signal ?? code)));
    worker.unref();
  }
}

function usedTime({ user, system }: NodeJS.CpuUsage): number {
  return user + system;
}
