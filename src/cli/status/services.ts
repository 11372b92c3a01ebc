/** The services of `kmesh status`: services with problems first, idle ones as a sum, and notes. */
import type { AgentStatus } from "../../admin/status.ts";
import type { ServiceCounters, Summary } from "../../datapath/inspect/state.ts";
import { NOTE_TITLES } from "../../mesh/model.ts";
import { indent, plural, table } from "../framework/output.ts";

/** Rows of text; JSON and --all have the rest. */
const ROWS = 40;

/** Services that the head lists by name. */
const NAMED = 3;

/** The filter for services. */
export interface Filter {
  /** A part of the name, or a pattern with * and ? for the whole name. */
  pattern?: string | undefined;
  /** Only services with refused or failed connections. */
  problems: boolean;
}

/** The services that match a filter, with their counters and notes. */
export function narrow<T extends { agent?: AgentStatus | undefined; kernel?: Summary | undefined }>(
  answer: T,
  { pattern, problems }: Filter,
): T {
  const fits = pattern === undefined ? () => true : matcher(pattern);
  const { agent, kernel } = answer;
  return {
    ...answer,
    ...(kernel && {
      kernel: {
        ...kernel,
        services: kernel.services.filter((each) => fits(nameOf(each)) && (!problems || isInTrouble(each))),
      },
    }),
    ...(agent && {
      agent: {
        ...agent,
        mesh: {
          ...agent.mesh,
          serviceNotes: agent.mesh.serviceNotes.filter(({ service }) => fits(service)),
        },
      },
    }),
  };
}

/** What to say when no service matches a pattern; undefined when some do, or when the services are not known. */
export function noMatch(kernel: Summary | undefined, pattern: string | undefined): string | undefined {
  if (pattern === undefined || !kernel || kernel.services.length > 0) return undefined;
  return `No service matches "${pattern}"; kmesh status --all lists them.`;
}

/** Whether a name contains `pattern`, or matches it as a whole if it has * or ?. */
export function matcher(pattern: string): (name: string) => boolean {
  if (!/[*?]/.test(pattern)) return (name) => name.includes(pattern);
  const source = pattern
    .replace(/[.+^${}()|[\]\\]/g, "\\$&")
    .replaceAll("*", ".*")
    .replaceAll("?", ".");
  const whole = new RegExp(`^${source}$`);
  return (name) => whole.test(name);
}

export function isInTrouble({ refused, failed, wouldRefuse }: ServiceCounters): boolean {
  return failed > 0 || wouldRefuse > 0 || Object.keys(refused).length > 0;
}

function isIdle(each: ServiceCounters): boolean {
  return !isInTrouble(each) && trafficOf(each) === 0;
}

function trafficOf({ redirected, passed, wouldRedirect }: ServiceCounters): number {
  return redirected + passed + wouldRedirect;
}

function refusedOf({ refused }: ServiceCounters): number {
  return Object.values(refused).reduce((sum, count) => sum + count, 0);
}

function nameOf({ service }: ServiceCounters): string {
  return service === "" ? "(no service)" : service;
}

/** The first rows: how many connections were refused or failed, and of which services. */
export function troubleFacts(kernel: Summary | undefined): [string, string][] {
  if (!kernel) return [];
  const rows: [string, (each: ServiceCounters) => number, (each: ServiceCounters) => string][] = [
    ["REFUSED", refusedOf, (each) => ` (${Object.keys(each.refused).join(", ")})`],
    ["FAILED", ({ failed }) => failed, () => ""],
    ["WOULD REFUSE", ({ wouldRefuse }) => wouldRefuse, () => ""],
  ];
  return rows.flatMap(([title, count, why]): [string, string][] => {
    const concerned = kernel.services.filter((each) => count(each) > 0).sort((a, b) => count(b) - count(a));
    if (concerned.length === 0) return [];
    const total = concerned.reduce((sum, each) => sum + count(each), 0);
    const named = concerned.slice(0, NAMED).map((each) => `${count(each)} of ${nameOf(each)}${why(each)}`);
    const more =
      concerned.length > NAMED ? [`${plural(concerned.length - NAMED, "more service")}: --problems`] : [];
    return [[title, `${plural(total, "connection")}: ${[...named, ...more].join(", ")}`]];
  });
}

/** The same in JSON. */
export function troubles(kernel: Summary): object {
  const concerned = kernel.services.filter(isInTrouble);
  return {
    refused: concerned.reduce((sum, each) => sum + refusedOf(each), 0),
    failed: concerned.reduce((sum, { failed }) => sum + failed, 0),
    wouldRefuse: concerned.reduce((sum, { wouldRefuse }) => sum + wouldRefuse, 0),
    services: concerned.map(({ service }) => service),
  };
}

/** The table: services with problems first, then by traffic. Without `all`, idle services are only counted. */
export function formatServices(kernel: Summary, all: boolean): string {
  const shadow = kernel.settings?.shadow ?? true;
  const trouble = (each: ServiceCounters) => refusedOf(each) + each.failed + each.wouldRefuse;
  const rows = [...kernel.services].sort(
    (a, b) =>
      trouble(b) - trouble(a) ||
      b.redirected + b.wouldRedirect - a.redirected - a.wouldRedirect ||
      b.passed - a.passed ||
      (a.service < b.service ? -1 : 1),
  );
  const busy = all ? rows : rows.filter((each) => !isIdle(each));
  const shown = all ? rows : busy.slice(0, ROWS);
  const head = [
    "SERVICE",
    "REDIRECTED",
    "PASSED",
    ...(shadow ? ["WOULD REDIRECT", "WOULD REFUSE"] : []),
    "REFUSED",
    "FAILED",
  ];
  const body = shown.map((row) => [
    nameOf(row),
    row.redirected,
    row.passed,
    ...(shadow ? [row.wouldRedirect, row.wouldRefuse] : []),
    Object.entries(row.refused)
      .map(([reason, count]) => `${count} ${reason}`)
      .join(", ") || "-",
    row.failed,
  ]);
  const idle =
    rows.filter((each) => each.service !== "").length - busy.filter((each) => each.service !== "").length;
  const rest = [
    ...(busy.length > shown.length ? [`... and ${busy.length - shown.length} more with connections`] : []),
    ...(idle > 0 ? [`${plural(idle, "service")} without a connection`] : []),
  ];
  const more = rest.length > 0 ? `${rest.join("; ")}: --all lists them` : "";
  return [...(shown.length > 0 ? [table(head, body)] : []), ...(more === "" ? [] : [more])].join("\n");
}

export function formatRemarks(agent: AgentStatus, all: boolean): string[] {
  return NOTE_TITLES.flatMap(({ kind, title }) => {
    const lines = agent.mesh.serviceNotes.flatMap(({ service, notes }) =>
      notes.filter((note) => note.kind === kind).map((note) => `${service}: ${note.text}`),
    );
    if (lines.length === 0) return [];
    const shown = all ? lines : lines.slice(0, ROWS);
    const more =
      lines.length > shown.length ? [`... and ${lines.length - shown.length} more: --all lists them`] : [];
    return [`${heading(title)}\n${indent([...shown, ...more].join("\n"))}`];
  });
}

/** Keeps the spelling of abbreviations. */
function heading(title: string): string {
  return title.toUpperCase().replace("MTLS", "mTLS");
}
