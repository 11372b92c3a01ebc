/** Output of commands: text for people, JSON for programs. */

import { writeSync } from "node:fs";
import { toJson } from "../../admin/json.ts";
import type { Flags } from "../../config/sources.ts";
import { codeOf } from "../../errors/reason.ts";
import { UsageError } from "./arguments.ts";

export type Format = "text" | "json";

/** The format that `--output` selects. */
export function formatOf(flags: Flags): Format {
  const value = flags.output ?? "text";
  if (value === "text" || value === "json") return value;
  throw new UsageError(
    `--output: "${value}" is neither text nor json`,
    "Write --output text or --output json.",
  );
}

/** Writes one or more lines to standard output. */
export function print(text: string): void {
  write(1, `${text}\n`);
}

/** The version of the JSON output. It rises when a field is removed or changes its meaning, not when one is added. */
export const SCHEMA = 1;

/** Writes a JSON object to standard output, with the version of its schema. */
export function printJson(value: object): void {
  jsonPrinted = true;
  print(toJson({ schema: SCHEMA, ...value }, 2));
}

let jsonPrinted = false;

/** Whether a JSON object was printed already: a second one would make the output invalid. */
export function hasPrintedJson(): boolean {
  return jsonPrinted;
}

/** Writes a remark to standard error, so that a pipe gets the answer only. */
export function remark(text: string): void {
  write(2, `${text}\n`);
}

let verbose = false;

/** Turns `detail` on, for `--verbose`. */
export function beVerbose(): void {
  verbose = true;
}

/** With --verbose, writes to standard error how the command found its answer. */
export function detail(text: string): void {
  if (verbose) remark(`kmesh: ${text}`);
}

/** Descriptors that failed: the reader is gone, the disk is full, or the terminal is gone. */
const broken = new Set<number>();

/** Whether the output has lost its reader. The work of a command and its exit code don't depend on it. */
export function outputIsLost(): boolean {
  return broken.has(1);
}

/** Writes synchronously and completely. Output that can't be written is dropped: the command continues. */
function write(fd: number, text: string): void {
  if (broken.has(fd)) return;
  const bytes = Buffer.from(text);
  let at = 0;
  while (at < bytes.length) {
    try {
      at += writeSync(fd, bytes, at);
    } catch (error) {
      if (codeOf(error) !== "EAGAIN") {
        broken.add(fd);
        return;
      }
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5);
    }
  }
}

/** Columns padded to their widest cell, numbers to the right. No trailing blanks. */
export function table(head: readonly string[], rows: readonly (readonly (string | number)[])[]): string {
  const widths = head.map((name, i) =>
    Math.max(name.length, ...rows.map((row) => String(row[i] ?? "").length)),
  );
  const numeric = head.map((_, i) => rows.length > 0 && rows.every((row) => typeof row[i] === "number"));
  const line = (cells: readonly (string | number)[]) =>
    cells
      .map((cell, i) =>
        numeric[i] ? String(cell).padStart(widths[i] ?? 0) : String(cell).padEnd(widths[i] ?? 0),
      )
      .join("  ")
      .trimEnd();
  return [line(head), ...rows.map(line)].join("\n");
}

/** Indents every line of `text` by `by` blanks. */
export function indent(text: string, by = 2): string {
  return text.replace(/^(?=.)/gm, " ".repeat(by));
}

/** Formats a duration: 340 ms, 12 s, 3 min, 5 h, 2 days. */
export function formatSpan(milliseconds: number): string {
  if (milliseconds < 1000) return `${Math.max(0, Math.round(milliseconds))} ms`;
  const seconds = milliseconds / 1000;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86_400)} days`;
}

/** `1 service`, `2 services`. */
export function plural(count: number, one: string, many = `${one}s`): string {
  return `${count} ${count === 1 ? one : many}`;
}

/** The span since an ISO 8601 time. */
export function since(time: string, now: number): string {
  return formatSpan(now - Date.parse(time));
}
