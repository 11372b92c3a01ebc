/** What commands print: text for people, JSON for programs. */

import { writeSync } from "node:fs";
import { toJson } from "../../admin/json.ts";
import type { Flags } from "../../config/sources.ts";
import { codeOf } from "../../errors/reason.ts";
import { UsageError } from "./arguments.ts";

export type Format = "text" | "json";

/** Which of the two `--output` asks for. */
export function formatOf(flags: Flags): Format {
  const value = flags.output ?? "text";
  if (value === "text" || value === "json") return value;
  throw new UsageError(
    `--output: "${value}" is neither text nor json`,
    "Write --output text or --output json.",
  );
}

/** Writes a line or several to standard output. */
export function print(text: string): void {
  write(1, `${text}\n`);
}

/** Writes JSON to standard output. */
export function printJson(value: unknown): void {
  print(toJson(value, 2));
}

/** Writes what is not the answer itself to standard error, so that pipes hold the answer alone. */
export function remark(text: string): void {
  write(2, `${text}\n`);
}

/** Synchronous, whole, and quiet when the reader went away, as `kmesh dump tables | head` does. */
function write(fd: number, text: string): void {
  const bytes = Buffer.from(text);
  let at = 0;
  while (at < bytes.length) {
    try {
      at += writeSync(fd, bytes, at);
    } catch (error) {
      const code = codeOf(error);
      if (code === "EPIPE") process.exit(0);
      if (code !== "EAGAIN") throw error;
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

/** Two levels of text: every line of `text` moved right by `by` blanks. */
export function indent(text: string, by = 2): string {
  return text.replace(/^(?=.)/gm, " ".repeat(by));
}

/** A span of time as people say it: 340 ms, 12 s, 3 min, 5 h, 2 days. */
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
