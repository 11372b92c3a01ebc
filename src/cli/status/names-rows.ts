/** The rows of `kmesh status` about mesh names: enrolment, interfaces and counters. */
import type { NameCounts, NamesStatus } from "../../names/status.ts";
import { plural } from "../framework/output.ts";

/** Whose queries are answered. */
function formatAskers({ askers, resolvers = [] }: NamesStatus): string {
  if (askers === "nobody") return "nobody (dns: off)";
  if (askers === "everybody") return "whoever asks";
  if (askers === "enrolled") return "those who are governed";
  const programs = resolvers.filter(({ governed }) => governed).map(({ program }) => program);
  return `whoever asks on this machine, since ${list([...new Set(programs)]) || "its resolver"} asks in the name of all`;
}

/** Resolvers of this machine that apps ask. */
function formatResolvers({ askers, resolvers = [], resolversUnknown }: NamesStatus): string[] {
  if (resolversUnknown !== undefined)
    return [`which resolver of this machine apps ask is not known: ${resolversUnknown}`];
  return resolvers.map(({ via, program, unit, governed }) => {
    const where = `${program}${unit === undefined || unit === `${program}.service` ? "" : ` (${unit})`} ${via === "nss-resolve" ? "by nss-resolve" : `at ${via}`}`;
    if (askers === "everybody") return `apps ask ${where}`;
    return governed
      ? `apps ask ${where}: it is governed, so whoever asks it gets mesh names`
      : `apps ask ${where}: it is not governed, so it has no mesh names for apps that are not governed either`;
  });
}

function list(words: readonly string[]): string {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} or ${words.at(-1)}`;
}

export function namesFacts(names: NamesStatus | undefined): [string, string][] {
  if (!names) return [];
  const { askers, hosts, interfaces, counts } = names;
  if (askers === "nobody") return [["names", `answered for ${formatAskers(names)}`]];
  const covered = interfaces.filter(({ way }) => way !== "none").map(({ name }) => name);
  const bare = interfaces.filter(({ way }) => way === "none").map(({ name }) => name);
  const rows: string[] = [
    ...formatResolvers(names),
    `at ${covered.join(", ") || "no interface"}${bare.length > 0 ? `; not at ${bare.join(", ")}` : ""}`,
    ...formatCounts(counts),
  ];
  return [
    ["names", `${plural(hosts, "host")}, answered in the kernel for ${formatAskers(names)}`],
    ...rows.map((text): [string, string] => ["", text]),
  ];
}

/** Queries that were answered by type, and that passed by reason. */
function formatCounts(counts: NameCounts): string[] {
  const of = (prefix: string) =>
    Object.entries(counts)
      .filter(([event, count]) => event.startsWith(prefix) && count > 0)
      .map(([event, count]): [string, number] => [event.slice(prefix.length), count]);
  const answered = of("answered-").map(
    ([type, count]) => `${count} ${type === "empty" ? type : type.toUpperCase()}`,
  );
  const all = of("answered-").reduce((sum, [, count]) => sum + count, 0);
  const passed = of("passed-").map(([reason, count]) => `${count} ${reason}`);
  const { "would-answer": would = 0, failed = 0 } = counts;
  return [
    `${plural(all, "query", "queries")} answered${answered.length > 0 ? ` (${answered.join(", ")})` : ""}${passed.length > 0 ? `; passed: ${passed.join(", ")}` : ""}`,
    ...(would > 0
      ? [`${plural(would, "query", "queries")} would have been answered without shadow mode`]
      : []),
    ...(failed > 0
      ? [`${plural(failed, "query", "queries")} dropped, since the packet could not be rewritten`]
      : []),
  ];
}

/** Names that are listed one by one. */
const LISTED = 10;

export function namesWarnings(names: NamesStatus | undefined): string[] {
  if (!names) return [];
  const more = names.skipped.length - LISTED;
  return [
    ...(names.trouble === undefined ? [] : [`Names are not up to date: ${names.trouble}`]),
    ...names.skipped
      .slice(0, LISTED)
      .map(({ name, reason }) => `The name ${name} is not answered: ${reason}.`),
    ...(more > 0
      ? [`${plural(more, "more name is", "more names are")} not answered: see --output json.`]
      : []),
  ];
}
