/** The rows of `kmesh status` about mesh names: enrolment, interfaces and counters. */
import type { NamesStatus } from "../../names/status.ts";
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
function formatResolvers({ askers, resolvers = [] }: NamesStatus): string[] {
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
  const sum = (prefix: string) =>
    Object.entries(counts).reduce((all, [event, count]) => (event.startsWith(prefix) ? all + count : all), 0);
  const passed = Object.entries(counts)
    .filter(([event, count]) => event.startsWith("passed-") && count > 0)
    .map(([event, count]) => `${count} ${event.slice("passed-".length)}`);
  return [
    ["names", `${plural(hosts, "host")}, answered in the kernel for ${formatAskers(names)}`],
    ...formatResolvers(names).map((text): [string, string] => ["", text]),
    ["", `at ${covered.join(", ") || "no interface"}${bare.length > 0 ? `; not at ${bare.join(", ")}` : ""}`],
    [
      "",
      `${plural(sum("answered-"), "query", "queries")} answered${passed.length > 0 ? `; passed: ${passed.join(", ")}` : ""}`,
    ],
  ];
}

export function namesWarnings(names: NamesStatus | undefined): string[] {
  if (!names) return [];
  return [
    ...(names.trouble === undefined ? [] : [`Names are not up to date: ${names.trouble}`]),
    ...names.skipped.map(({ name, reason }) => `The name ${name} is not answered: ${reason}.`),
  ];
}
