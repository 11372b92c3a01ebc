/** The syntax of settings about metrics and the access log. */
import { resolve } from "node:path";
import { Invalid, parsePort } from "./syntax.ts";

/** Filter of the access log: a connection must match all given fields. */
export interface AccessLogFilter {
  failures: boolean;
  /** Host, or host and port; empty = all. */
  services: string[];
  /** Names of units, cgroups or users; empty = all. */
  units: string[];
}

export type FilterPart =
  | { kind: "failures" }
  | { kind: "service"; name: string }
  | { kind: "unit"; name: string };

export function parseLogFilter(text: string): FilterPart {
  if (text === "failures") return { kind: "failures" };
  const [, kind, name] = /^(service|unit)=(.+)$/.exec(text) ?? [];
  if (kind === "service" && name) return { kind, name };
  if (kind === "unit" && name) return { kind, name };
  throw new Invalid(`"${text}" is not a filter`, "Write failures, service=HOST[:PORT] or unit=NAME.");
}

export function mergeFilters(parts: readonly FilterPart[]): AccessLogFilter {
  return {
    failures: parts.some(({ kind }) => kind === "failures"),
    services: parts.flatMap((part) => (part.kind === "service" ? [part.name] : [])),
    units: parts.flatMap((part) => (part.kind === "unit" ? [part.name] : [])),
  };
}

export function formatFilter(filter: AccessLogFilter | undefined): string[] {
  if (!filter) return [];
  return [
    ...(filter.failures ? ["failures"] : []),
    ...filter.services.map((name) => `service=${name}`),
    ...filter.units.map((name) => `unit=${name}`),
  ];
}

/** `127.0.0.1:15020`, `[::1]:15020`, `localhost:15020`. */
export function parseListener(text: string): { host: string; port: number } {
  const example = "Write ADDRESS:PORT, for example 127.0.0.1:15020.";
  const [, v6, name, digits] = /^(?:\[([0-9a-fA-F:.]+)\]|([^:\s]+)):(\d+)$/.exec(text) ?? [];
  const host = v6 ?? name;
  if (host === undefined || digits === undefined)
    throw new Invalid(`"${text}" is not an address and port`, example);
  return { host, port: parsePort(digits, example) };
}

/** A path, "stdout" or "journal". */
export function parseLogTarget(text: string): string {
  if (text === "") throw new Invalid("the target is empty", "Write a path, stdout or journal.");
  return text === "stdout" || text === "journal" ? text : resolve(text);
}

export function parseRate(text: string): number {
  const rate = Number(text);
  if (!/^\d{1,7}$/.test(text) || rate < 1)
    throw new Invalid(
      `"${text}" is not a number of lines`,
      "Write a whole number from 1 on, for example 1000.",
    );
  return rate;
}

/** In seconds. Connections are looked at every five. */
export function parseInterval(text: string): number {
  const [, digits, unit = ""] = /^(\d{1,6})([smh])$/.exec(text) ?? [];
  const seconds = Number(digits) * ({ s: 1, m: 60, h: 3600 }[unit] ?? 0);
  if (digits === undefined || seconds < 5)
    throw new Invalid(`"${text}" is not an interval`, "Write a whole number and s, m or h, 5s at least.");
  return seconds;
}
