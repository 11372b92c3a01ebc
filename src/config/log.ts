import { styleText } from "node:util";
import { type ConsolaInstance, createConsola, type LogObject } from "consola";
import { reasonOf } from "../errors/reason.ts";
import type { LogLevel } from "./config.ts";

/** The agent's log. */
export type Log = Pick<ConsolaInstance, "error" | "warn" | "info" | "debug">;

/** A log whose level can change while it is written. */
export interface LevelledLog extends Log {
  /** Messages below it are left out. */
  logLevel: LogLevel;
}

const LEVELS: Record<LogLevel, number> = { error: 0, warn: 1, info: 3, debug: 4 };

/** Lines on standard error, without timestamps: the journal adds them. */
export function openLog(level: LogLevel): LevelledLog {
  const log = createConsola({
    level: LEVELS[level],
    reporters: [{ log: (entry) => process.stderr.write(`${format(entry)}\n`) }],
  });
  let current = level;
  return {
    error: (...words: Parameters<Log["error"]>) => log.error(...words),
    warn: (...words: Parameters<Log["warn"]>) => log.warn(...words),
    info: (...words: Parameters<Log["info"]>) => log.info(...words),
    debug: (...words: Parameters<Log["debug"]>) => log.debug(...words),
    get logLevel() {
      return current;
    },
    set logLevel(next) {
      current = next;
      log.level = LEVELS[next];
    },
  } as LevelledLog;
}

/** The level in five letters, then the text. */
function format(entry: LogObject): string {
  const text = entry.args.map((arg) => reasonOf(arg)).join(" ");
  const level = entry.type.padEnd(5);
  if (!process.stderr.isTTY) return `${level} ${text}`;
  const colour = entry.type === "error" ? "red" : entry.type === "warn" ? "yellow" : "gray";
  return `${styleText(colour, level)} ${text}`;
}
