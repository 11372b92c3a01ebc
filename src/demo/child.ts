/** The demo's child processes, from the parent's side. */
import { type ChildProcess, spawn } from "node:child_process";
import { openSync } from "node:fs";
import { selfCommand } from "../runtime/self.ts";
import { eachLine } from "./upstream.ts";

/** Time limits for a child to get ready, and to answer. */
const PATIENCE = 15_000;

/** A child that died or did not answer. `log` is the file with the details. */
export class ChildError extends Error {
  constructor(name: string, what: string, log: string) {
    super(`the demo's ${name} ${what}; its output is in ${log}`);
    this.name = "ChildError";
  }
}

/**
 * A re-execution of this program as `kmesh demo-part NAME OPTIONS`. It reads words from standard input, answers each
 * with one line of JSON, and dies with this process.
 */
export class Child {
  readonly name: string;
  readonly #process: ChildProcess;
  readonly #log: string;
  readonly #exited: Promise<void>;
  #waiting: ((line: string | undefined) => void)[] = [];

  private constructor(name: string, child: ChildProcess, log: string) {
    this.name = name;
    this.#process = child;
    this.#log = log;
    this.#exited = new Promise((resolve) => {
      const over = () => {
        for (const wake of this.#waiting.splice(0)) wake(undefined);
        resolve();
      };
      child.once("exit", over);
      child.once("error", over);
    });
    child.stdin?.on("error", () => {});
    if (child.stdout) eachLine(child.stdout, (line) => this.#waiting.shift()?.(line));
  }

  /** Starts a part. Its standard error is appended to `log`. */
  static start(name: string, part: string, options: unknown, log: string, env: NodeJS.ProcessEnv): Child {
    const [executable, ...args] = selfCommand();
    const child = spawn(executable, [...args, "demo-part", part, JSON.stringify(options)], {
      stdio: ["pipe", "pipe", openSync(log, "a")],
      env,
    });
    return new Child(name, child, log);
  }

  get pid(): number {
    return this.#process.pid ?? 0;
  }

  get dead(): boolean {
    return this.#process.exitCode !== null || this.#process.signalCode !== null;
  }

  /** Waits for the part's first line. Rejects with ChildError. */
  async ready(): Promise<void> {
    await this.#line("did not get ready");
  }

  /** Sends a word and returns the JSON of the answer. Rejects with ChildError. */
  async ask(word: string): Promise<unknown> {
    this.#process.stdin?.write(`${word}\n`);
    return JSON.parse(await this.#line(`did not answer "${word}"`));
  }

  /** Sends a signal and waits for the end. Sends SIGKILL after 5 s. */
  async end(signal: NodeJS.Signals = "SIGKILL"): Promise<void> {
    if (this.dead || this.pid === 0) return;
    this.#process.kill(signal);
    const timer = setTimeout(() => this.#process.kill("SIGKILL"), 5_000);
    await this.#exited;
    clearTimeout(timer);
  }

  #line(complaint: string): Promise<string> {
    if (this.dead) return Promise.reject(new ChildError(this.name, "is dead", this.#log));
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new ChildError(this.name, complaint, this.#log)), PATIENCE);
      this.#waiting.push((line) => {
        clearTimeout(timer);
        if (line === undefined) reject(new ChildError(this.name, "died", this.#log));
        else resolve(line);
      });
    });
  }
}
