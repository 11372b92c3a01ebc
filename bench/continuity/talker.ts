/** A process that answers lines with lines. */
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, openSync, readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { type Place, placed, plainEnvironment } from "../../test/lab/process.ts";

export class Talker {
  readonly name: string;
  readonly #child: ChildProcess;
  readonly #log: string;
  readonly #lines: string[] = [];
  #wake: (() => void) | undefined;
  #status: number | string | undefined;

  /** Starts `command`; its standard error goes to `log`. */
  constructor(name: string, command: readonly string[], log: string, place: Place = {}) {
    this.name = name;
    this.#log = log;
    const [file = "", ...args] = placed(command, place);
    const errors = openSync(log, "a");
    this.#child = spawn(file, args, { stdio: ["pipe", "pipe", errors], env: plainEnvironment() });
    closeSync(errors);
    const { stdin, stdout } = this.#child;
    if (!stdin || !stdout) throw new Error(`${name} can't be started`);
    stdin.on("error", () => undefined);
    createInterface(stdout).on("line", (line) => {
      this.#lines.push(line);
      this.#wake?.();
    });
    const over = (status: number | string) => {
      this.#status = status;
      this.#wake?.();
    };
    this.#child.once("error", (error) => over(error.message));
    this.#child.once("exit", (code, signal) => over(code ?? signal ?? "gone"));
  }

  say(word: string): void {
    this.#child.stdin?.write(`${word}\n`);
  }

  /** The next line. Rejects when it ended, or says nothing for that long. */
  async hear(timeoutMs = 30_000): Promise<string> {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      const line = this.#lines.shift();
      if (line !== undefined) return line;
      const left = deadline - performance.now();
      if (this.#status !== undefined || left <= 0) {
        const what =
          this.#status === undefined ? `said nothing for ${timeoutMs / 1000} s` : `ended: ${this.#status}`;
        throw new Error(`${this.name} ${what}\n${readFileSync(this.#log, "utf8").slice(-2000)}`);
      }
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  ask(word: string, timeoutMs?: number): Promise<string> {
    this.say(word);
    return this.hear(timeoutMs);
  }

  /** SIGKILL; resolves once it is gone. */
  async end(): Promise<void> {
    if (this.#status !== undefined) return;
    const gone = new Promise((resolve) => this.#child.once("exit", resolve));
    this.#child.kill("SIGKILL");
    await gone;
  }
}
