/**
 * Processes that a test starts and ends itself, by their process id and never by name.
 *
 * Each one dies with the test even when the test is killed (a parent-death signal), its output goes to a file
 * that failures quote, and it can live in a network namespace and a cgroup of the test's own.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, openSync, readFileSync } from "node:fs";

/**
 * What waits are multiplied by where everything is slow, as in a machine under emulation: KMESH_TEST_PATIENCE. Looks are
 * as much rarer, since each takes from the time of what is waited for.
 */
export const PATIENCE = Number(process.env.KMESH_TEST_PATIENCE ?? 1);

/** Where a process runs. Omitted members are as for the test itself. */
export interface Place {
  /** Path of a network namespace, such as /run/netns/NAME. */
  netns?: string;
  /** Directory of the cgroup that it joins before its first instruction. */
  cgroup?: string;
  env?: Record<string, string>;
  cwd?: string;
}

export interface ProcessSpec extends Place {
  /** Short name for messages. */
  name: string;
  command: readonly string[];
  /** File for standard output and error; appended to. */
  log: string;
}

/** Gives the command that runs `command` at `place`: join the cgroup, then enter the namespace, then exec. */
export function placed(command: readonly string[], place: Place): string[] {
  let result = ["setpriv", "--pdeathsig", "KILL", "--", ...command];
  if (place.netns !== undefined) result = ["nsenter", `--net=${place.netns}`, "--", ...result];
  if (place.cgroup !== undefined) {
    result = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', `${place.cgroup}/cgroup.procs`, ...result];
  }
  return result;
}

/** The test's environment without proxy settings: nothing here may leave the machine by a proxy. */
export function plainEnvironment(more: Record<string, string> = {}): Record<string, string> {
  const result: Record<string, string> = {};
  for (const [key, value] of Object.entries(process.env)) {
    if (value !== undefined && !/^(https?|all|no)_proxy$/i.test(key)) result[key] = value;
  }
  return { ...result, ...more };
}

/** A running child process that its creator must `stop`. */
export class OwnedProcess {
  readonly name: string;
  readonly pid: number;
  readonly #child: ChildProcess;
  readonly #log: string;
  readonly #exited: Promise<number | string>;
  #status: number | string | undefined;

  /** Starts `spec.command`; throws when it can't be started at all. */
  constructor(spec: ProcessSpec) {
    const [file = "", ...args] = placed(spec.command, spec);
    const output = openSync(spec.log, "a");
    try {
      this.#child = spawn(file, args, {
        stdio: ["ignore", output, output],
        env: plainEnvironment(spec.env),
        ...(spec.cwd === undefined ? {} : { cwd: spec.cwd }),
      });
    } finally {
      closeSync(output);
    }
    if (this.#child.pid === undefined) throw new Error(`${spec.name}: can't start ${file}`);
    this.name = spec.name;
    this.pid = this.#child.pid;
    this.#log = spec.log;
    this.#exited = new Promise((resolve) => {
      this.#child.once("error", (error) => resolve(error.message));
      this.#child.once("exit", (code, signal) => resolve(code ?? signal ?? "gone"));
    });
    this.#exited.then((status) => {
      this.#status = status;
    });
  }

  /** Exit code or the name of the signal that ended it; undefined while it runs. */
  get status(): number | string | undefined {
    return this.#status;
  }

  /** Resolves with `status` once it has ended. */
  get exited(): Promise<number | string> {
    return this.#exited;
  }

  /** Everything it has printed so far. */
  output(): string {
    return readFileSync(this.#log, "utf8");
  }

  /** The last `lines` lines of its output, for a message. */
  tail(lines = 25): string {
    return this.output().trimEnd().split("\n").slice(-lines).join("\n");
  }

  /** Resident memory in KiB: [now, highest so far]; [0, 0] once it has ended. */
  memory(): [number, number] {
    try {
      const text = readFileSync(`/proc/${this.pid}/status`, "utf8");
      const field = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(text)?.[1] ?? 0);
      return [field("VmRSS"), field("VmHWM")];
    } catch {
      return [0, 0];
    }
  }

  /** Sends `signal`; does nothing once it has ended. */
  signal(signal: NodeJS.Signals): void {
    if (this.#status === undefined) this.#child.kill(signal);
  }

  /** Ends it with `signal`, with SIGKILL after `graceMs`, and resolves once it is gone. Idempotent. */
  async stop(signal: NodeJS.Signals = "SIGTERM", graceMs = 5_000): Promise<number | string> {
    if (this.#status !== undefined) return this.#status;
    this.signal(signal);
    const timer = setTimeout(() => this.signal("SIGKILL"), graceMs);
    try {
      return await this.#exited;
    } finally {
      clearTimeout(timer);
    }
  }
}

export interface RunResult {
  /** Exit code; -1 when a signal or the time limit ended it. */
  code: number;
  stdout: string;
  stderr: string;
}

/** Runs `command` at `place` to its end, at most `timeoutMs` times PATIENCE, with `input` as its input. Never throws. */
export function run(
  command: readonly string[],
  place: Place & { input?: string; timeoutMs?: number } = {},
): Promise<RunResult> {
  const [file = "", ...args] = placed(command, place);
  return new Promise((resolve) => {
    const child = spawn(file, args, {
      stdio: ["pipe", "pipe", "pipe"],
      env: plainEnvironment(place.env),
      ...(place.cwd === undefined ? {} : { cwd: place.cwd }),
    });
    let stdout = "";
    let stderr = "";
    const timer = setTimeout(() => child.kill("SIGKILL"), PATIENCE * (place.timeoutMs ?? 30_000));
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
    });
    child.stdin.on("error", () => undefined);
    child.stdin.end(place.input ?? "");
    const done = (code: number | null) => {
      clearTimeout(timer);
      resolve({ code: code ?? -1, stdout, stderr });
    };
    child.once("error", (error) => {
      stderr += error.message;
      done(-1);
    });
    child.once("close", done);
  });
}

/** Like `run`, gives standard output; throws with standard error when the exit code is not 0. */
export async function output(
  command: readonly string[],
  place: Place & { input?: string; timeoutMs?: number } = {},
): Promise<string> {
  const result = await run(command, place);
  if (result.code !== 0)
    throw new Error(`${command.join(" ")}: exit code ${result.code}\n${result.stderr}${result.stdout}`);
  return result.stdout;
}

/** Resolves after `ms` milliseconds. */
export function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/**
 * Calls `check` every `everyMs` until it gives something other than undefined or false, and gives that.
 * Throws after `timeoutMs` times PATIENCE, quoting `what` and the last error that `check` threw.
 */
export async function eventually<T>(
  what: string,
  check: () => Promise<T | undefined | false> | T | undefined | false,
  timeoutMs = 30_000,
  everyMs = 50,
): Promise<T> {
  const limit = PATIENCE * timeoutMs;
  const deadline = performance.now() + limit;
  let last: unknown;
  for (;;) {
    try {
      const value = await check();
      if (value !== undefined && value !== false) return value;
    } catch (error) {
      last = error;
    }
    if (performance.now() > deadline) {
      throw new Error(`not within ${limit / 1000} s: ${what}`, last === undefined ? {} : { cause: last });
    }
    await sleep(PATIENCE * everyMs);
  }
}
