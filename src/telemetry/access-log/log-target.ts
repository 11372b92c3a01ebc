/**
 * Where access log lines go: a file, stdout, or the journal. Lines wait in memory, a megabyte at most, while the one before
 * is written; what comes beyond, or can't be written, is dropped and counted.
 */
import { createWriteStream } from "node:fs";
import { createConnection } from "node:net";
import type { Writable } from "node:stream";
import { reasonOf } from "../../errors/reason.ts";

const ROOM = 1 << 20;
/** Between two tries at a file that can't be written, milliseconds. */
const RETRY = 5_000;
/** journald's stream protocol: a header of seven lines, then a line an entry (systemd's sd_journal_stream_fd). */
const JOURNAL = "/run/systemd/journal/stdout";
const JOURNAL_HEADER = "kmesh-access\n\n6\n0\n0\n0\n0\n";

export class LogTarget {
  readonly #to: string;
  readonly #warn: (line: string) => void;
  #lines: string[] = [];
  #size = 0;
  #stream: Writable | undefined;
  #busy = false;
  #failedAt = Number.NEGATIVE_INFINITY;
  #trouble = "";
  /** Lines that were dropped, ever. */
  dropped = 0;

  /** `to` is a path, "stdout" or "journal". Nothing is opened yet. */
  constructor(to: string, warn: (line: string) => void) {
    this.#to = to;
    this.#warn = warn;
  }

  /** Takes one line; `flush` writes it. */
  write(line: string): void {
    if (this.#size + line.length > ROOM) {
      this.dropped++;
      return;
    }
    this.#lines.push(line);
    this.#size += line.length + 1;
  }

  /** Writes what waits, unless something is being written, and waits for nothing. */
  flush(): void {
    if (this.#lines.length === 0 || this.#busy) return;
    const stream = this.#open();
    if (!stream) return;
    const text = `${this.#lines.join("\n")}\n`;
    const count = this.#lines.length;
    this.#lines = [];
    this.#size = 0;
    this.#busy = true;
    stream.write(text, (error) => {
      this.#busy = false;
      if (error) this.#fail(error, count);
      else this.#trouble = "";
    });
  }

  close(): void {
    this.flush();
    if (this.#stream && this.#stream !== process.stdout) this.#stream.end();
    this.#stream = undefined;
  }

  #open(): Writable | undefined {
    if (this.#stream) return this.#stream;
    if (performance.now() - this.#failedAt < RETRY) return undefined;
    if (this.#to === "stdout") this.#stream = process.stdout;
    else {
      const journal = this.#to === "journal";
      const stream = journal
        ? createConnection(JOURNAL)
        : createWriteStream(this.#to, { flags: "a", mode: 0o640 });
      if (journal) stream.write(JOURNAL_HEADER);
      stream.on("error", (error) => this.#fail(error, 0));
      this.#stream = stream;
    }
    return this.#stream;
  }

  #fail(error: unknown, lost: number): void {
    this.dropped += lost;
    this.#failedAt = performance.now();
    if (this.#stream && this.#stream !== process.stdout) this.#stream.destroy();
    this.#stream = undefined;
    const text = `the access log can't be written to ${this.#to}: ${reasonOf(error)}. Lines are dropped; next try in ${RETRY / 1000} s`;
    if (text !== this.#trouble) this.#warn(text);
    this.#trouble = text;
  }
}
