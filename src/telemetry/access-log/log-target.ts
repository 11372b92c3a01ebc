/**
 * The target of access log lines: a file, a named pipe, stdout, or the journal. At most a megabyte of lines waits in memory
 * while earlier ones are written. Further lines are dropped and counted; the count is written as soon as the target accepts
 * data again. A line that a full disk cut is then completed.
 */
import { close, closeSync, constants, openSync, write, writeSync } from "node:fs";
import { createConnection } from "node:net";
import type { Writable } from "node:stream";
import { reasonOf } from "../../errors/reason.ts";

const ROOM = 1 << 20;
/** Pause after a failed write, milliseconds. */
const RETRY = 5_000;
/** journald's stream protocol: a header of seven lines, then a line an entry (systemd's sd_journal_stream_fd). */
const JOURNAL = "/run/systemd/journal/stdout";
const JOURNAL_HEADER = "kmesh-access\n\n6\n0\n0\n0\n0\n";
const NEWLINE = 10;

/** The number of written bytes, with an error when the target accepts no more for now. */
interface Outcome {
  written: number;
  error?: unknown;
}

/** Writes one text at a time. `done` is called once for each `write`, later. */
interface Sink {
  write(bytes: Uint8Array, done: (outcome: Outcome) => void): void;
  /** Writes as much as possible without waiting, and closes. */
  end(bytes: Uint8Array): void;
  destroy(): void;
}

export class LogTarget {
  readonly #to: string;
  readonly #warn: (line: string) => void;
  readonly #dropText: (count: number) => string;
  #lines: string[] = [];
  #size = 0;
  /** Text that was taken from `#lines` and is not written yet: the rest of a line, or everything for a slow reader. */
  #rest = new Uint8Array();
  /** Whether the last byte that was written ended a line. */
  #isAtStart = true;
  #sink: Sink | undefined;
  #isBusy = false;
  #isClosed = false;
  #failedAt = Number.NEGATIVE_INFINITY;
  #trouble = "";
  #untold = 0;
  /** How many of these the last line of what is being written, or of `#rest`, tells. */
  #telling = 0;
  /** Dropped lines, in total. */
  dropped = 0;

  /** `to` is a path, "stdout" or "journal". `dropText` formats the line about dropped lines. Opens nothing yet. */
  constructor(to: string, warn: (line: string) => void, dropText: (count: number) => string) {
    this.#to = to;
    this.#warn = warn;
    this.#dropText = dropText;
  }

  /** Adds a line; `flush` writes it. */
  write(line: string): void {
    if (this.#size + this.#rest.length + line.length > ROOM) {
      this.#drop(1);
      return;
    }
    this.#lines.push(line);
    this.#size += line.length + 1;
  }

  /** Starts to write the waiting lines, unless a write is in progress. Does not wait. */
  flush(): void {
    if (this.#isBusy || (this.#lines.length === 0 && this.#rest.length === 0 && this.#untold === 0)) return;
    const sink = this.#open();
    if (!sink) return;
    const bytes = this.#take();
    this.#isBusy = true;
    sink.write(bytes, ({ written, error }) => {
      this.#isBusy = false;
      if (written > 0) this.#isAtStart = bytes[written - 1] === NEWLINE;
      const left = bytes.subarray(written);
      if (error === undefined) {
        this.#rest = left.slice();
        if (left.length === 0) this.#telling = 0;
        this.#trouble = "";
      } else {
        const cut = this.#isAtStart ? 0 : left.indexOf(NEWLINE) + 1;
        this.#rest = left.slice(0, cut);
        const missing = countLines(left.subarray(cut));
        // The line with the count is the last one.
        const isTold = this.#telling === 0 || missing === 0;
        if (!isTold) this.#untold += this.#telling;
        this.#telling = 0;
        this.#drop(isTold ? missing : missing - 1);
        this.#fail(error);
      }
      if (this.#isClosed) this.#end();
    });
  }

  /** Writes as much as possible without waiting. */
  close(): void {
    this.#isClosed = true;
    if (!this.#isBusy) this.#end();
  }

  #end(): void {
    const waits = this.#lines.length + this.#rest.length + this.#untold > 0;
    const sink = waits ? this.#open() : this.#sink;
    sink?.end(waits ? Buffer.concat([this.#take(), this.#take()]) : new Uint8Array());
    this.#sink = undefined;
  }

  /** The rest of the last write; without one, all waiting lines and the count of missing ones. */
  #take(): Uint8Array {
    if (this.#rest.length > 0) {
      const rest = this.#rest;
      this.#rest = new Uint8Array();
      return rest;
    }
    const lines = this.#untold > 0 ? [...this.#lines, this.#dropText(this.#untold)] : this.#lines;
    this.#telling = this.#untold;
    this.#untold = 0;
    this.#lines = [];
    this.#size = 0;
    return new TextEncoder().encode(lines.map((line) => `${line}\n`).join(""));
  }

  #open(): Sink | undefined {
    if (this.#sink) return this.#sink;
    if (performance.now() - this.#failedAt < RETRY) return undefined;
    try {
      this.#sink = this.#make();
    } catch (error) {
      this.#fail(error);
    }
    return this.#sink;
  }

  #make(): Sink {
    if (this.#to === "stdout") return new StreamSink(process.stdout, true);
    if (this.#to !== "journal") return new FileSink(this.#to);
    const stream = createConnection(JOURNAL);
    stream.write(JOURNAL_HEADER);
    const sink = new StreamSink(stream, false);
    stream.on("error", (error) => {
      // A write that is under way fails by itself.
      if (this.#sink === sink && !this.#isBusy) this.#fail(error);
    });
    return sink;
  }

  #drop(count: number): void {
    this.dropped += count;
    this.#untold += count;
  }

  #fail(error: unknown): void {
    this.#failedAt = performance.now();
    this.#sink?.destroy();
    this.#sink = undefined;
    const text = `the access log can't be written to ${this.#to}: ${reasonOf(error)}. Lines are dropped; next try in ${RETRY / 1000} s`;
    if (text !== this.#trouble) this.#warn(text);
    this.#trouble = text;
  }
}

/** A file or a named pipe. A pipe that is full or has no reader never blocks. */
class FileSink implements Sink {
  #fd: number;
  #isBusy = false;

  /** Throws ENXIO for a pipe without a reader. */
  constructor(path: string) {
    const { O_WRONLY, O_APPEND, O_CREAT, O_NONBLOCK, O_NOCTTY } = constants;
    this.#fd = openSync(path, O_WRONLY | O_APPEND | O_CREAT | O_NONBLOCK | O_NOCTTY, 0o640);
  }

  write(bytes: Uint8Array, done: (outcome: Outcome) => void, before = 0): void {
    this.#isBusy = true;
    write(this.#fd, bytes, before, bytes.length - before, null, (error, count) => {
      this.#isBusy = false;
      const written = before + (error ? 0 : count);
      if (error?.code === "EINTR") this.write(bytes, done, before);
      else if (error?.code === "EAGAIN") done({ written });
      else if (error) done({ written, error });
      else if (count === 0 || written === bytes.length) done({ written });
      else this.write(bytes, done, written);
    });
  }

  end(bytes: Uint8Array): void {
    try {
      if (bytes.length > 0) writeSync(this.#fd, bytes);
    } catch {
      // Nobody waits for the error any more.
    }
    closeSync(this.#fd);
  }

  destroy(): void {
    if (!this.#isBusy) close(this.#fd, () => undefined);
  }
}

class StreamSink implements Sink {
  readonly #stream: Writable;
  readonly #stays: boolean;

  /** `stays`: the stream is shared and stays open. */
  constructor(stream: Writable, stays: boolean) {
    this.#stream = stream;
    this.#stays = stays;
  }

  write(bytes: Uint8Array, done: (outcome: Outcome) => void): void {
    this.#stream.write(bytes, (error) => done(error ? { written: 0, error } : { written: bytes.length }));
  }

  end(bytes: Uint8Array): void {
    if (bytes.length > 0) this.#stream.write(bytes);
    if (!this.#stays) this.#stream.end();
  }

  destroy(): void {
    if (!this.#stays) this.#stream.destroy();
  }
}

function countLines(bytes: Uint8Array): number {
  let count = 0;
  for (const byte of bytes) if (byte === NEWLINE) count++;
  return count;
}
