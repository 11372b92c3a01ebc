/** The rows of `kmesh status` about mesh names: enrolment, interfaces and counters. */
import type { NamesStatus } from "../../names/status.ts";
import { plural } from "../framework/output.ts";

const ASKERS: Readonly<Record<NamesStatus["askers"], string>> = {
  everybody: "whoever asks",
  enrolled: "those who are governed",
  machine: "whoever asks on this machine, since systemd-resolved asks in the name of all (nss-resolve)",
  nobody: "nobody (dns: off)",
};

export function namesFacts(names: NamesStatus | undefined): [string, string][] {
  if (!names) return [];
  const { askers, hosts, interfaces, counts } = names;
  if (askers === "nobody") return [["names", `answered for ${ASKERS.nobody}`]];
  const covered = interfaces.filter(({ way }) => way !== "none").map(({ name }) => name);
  const bare = interfaces.filter(({ way }) => way === "none").map(({ name }) => name);
  const sum = (prefix: string) =>
    Object.entries(counts).reduce((all, [event, count]) => (event.startsWith(prefix) ? all + count : all), 0);
  const passed = Object.entries(counts)
    .filter(([event, count]) => event.startsWith("passed-") && count > 0)
    .map(([event, count]) => `${count} ${event.slice("passed-".length)}`);
  return [
    ["names", `${plural(hosts, "host")}, answered in the kernel for ${ASKERS[askers]}`],
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
