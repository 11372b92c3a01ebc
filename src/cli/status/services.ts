/** The services of `kmesh status`, with their counters and with what is not enforced of them. */
import type { AgentStatus } from "../../admin/status.ts";
import type { Summary } from "../../datapath/inspect/inspect.ts";
import { NOTE_TITLES } from "../../mesh/model.ts";
import { indent, table } from "../framework/output.ts";

/** Rows of text that a screen bears; JSON and --all have the rest. */
const ROWS = 40;

export function formatServices(kernel: Summary, all: boolean): string {
  const shadow = kernel.settings?.shadow ?? true;
  const rows = kernel.services
    .map((each) => ({ ...each, refusals: Object.entries(each.refused) }))
    .sort(
      (a, b) =>
        b.redirected + b.wouldRedirect - a.redirected - a.wouldRedirect || (a.service < b.service ? -1 : 1),
    );
  const shown = all ? rows : rows.slice(0, ROWS);
  const head = [
    "SERVICE",
    "REDIRECTED",
    "PASSED",
    ...(shadow ? ["WOULD REDIRECT", "WOULD REFUSE"] : []),
    "REFUSED",
    "FAILED",
  ];
  const body = shown.map((row) => [
    row.service === "" ? "(no service)" : row.service,
    row.redirected,
    row.passed,
    ...(shadow ? [row.wouldRedirect, row.wouldRefuse] : []),
    row.refusals.map(([reason, count]) => `${count} ${reason}`).join(", ") || "-",
    row.failed,
  ]);
  const more =
    rows.length > shown.length ? `\n... and ${rows.length - shown.length} more: --all lists them` : "";
  return table(head, body) + more;
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

/** The abbreviation keeps its spelling. */
function heading(title: string): string {
  return title.toUpperCase().replace("MTLS", "mTLS");
}
