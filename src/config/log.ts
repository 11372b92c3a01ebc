import { styleText } from "node:util";
import { type ConsolaInstance, createConsola, type LogObject } from "consola";
import { reasonOf } from "../errors/reason.ts";
import type { Config } from "./config.ts";

/** The agent's log. */
export type Log = Pick<ConsolaInstance, "error" | "warn" | "info" | "debug">;

const LEVELS: Record<Config["logLevel"], number> = { error: 0, warn: 1, info: 3, debug: 4 };

/** Lines on standard error. Without times of its own: the journal has them, and a terminal needs none. */
export function openLog(level: Config["logLevel"]): Log {
  return createConsola({
    level: LEVELS[level],
    reporters: [{ log: (entry) => process.stderr.write(`${format(entry)}\n`) }],
  });
}

/** The level in five letters, then the text. */
function format(entry: LogObject): string {
  const text = entry.args.map((arg) => reasonOf(arg)).join(" ");
  const level = entry.type.padEnd(5);
  if (!process.stderr.isTTY) return `${level} ${text}`;
  const colour = entry.type === "error" ? "red" : entry.type === "warn" ? "yellow" : "gray";
  return `${styleText(colour, level)} ${text}`;
}
