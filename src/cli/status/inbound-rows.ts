/** The rows of `kmesh status` about inbound connections: policies and refusals. */
import type { InboundStatus } from "../../inbound/inbound.ts";
import type { InboundView } from "../../inbound/view.ts";
import { formatSpan, indent, plural, table } from "../framework/output.ts";

/** Policies with refusals that are listed; JSON has all. */
const MOST = 3;
/** Rows of the last refusals. */
const ROWS = 10;

/** The rows of what governs and what was refused; `status` is the running agent's. */
export function inboundFacts(view: InboundView | undefined, status?: InboundStatus): [string, string][] {
  if (!view) return [];
  const { ports, policies, refusals, enforced, tunnel, trouble } = view;
  if (trouble !== undefined) return [["inbound", `what is pinned can't be read: ${trouble}`]];
  const total = refusals.reduce((sum, { count }) => sum + count, 0);
  const where = ports
    .map(({ port, mtls }) => (mtls === "disable" ? `${port}` : `${port} ${mtls}`))
    .join(", ");
  const rows: [string, string][] = [
    [
      "inbound",
      `${enforced ? "" : "NOT enforced: "}${plural(policies.length, "policy", "policies")}, ` +
        `${ports.length === 0 ? "no service ports" : `ports ${where}`}${tunnel ? ", a tunnel listens" : ""}`,
    ],
  ];
  if (total > 0) rows.push(["", `${plural(total, "connection")} refused: ${mostOf(refusals)}`]);
  const cut = Object.entries(status?.cut ?? {}).map(([by, count]) => ({ by, count }));
  const cuts = cut.reduce((sum, { count }) => sum + count, 0);
  if (cuts > 0)
    rows.push(["", `${plural(cuts, "established connection")} cut since the start: ${mostOf(cut)}`]);
  return rows;
}

function mostOf(list: readonly { by: string; count: number }[]): string {
  const most = [...list].sort((a, b) => b.count - a.count).slice(0, MOST);
  const others = list.length > MOST ? ` and ${list.length - MOST} others` : "";
  return `${most.map(({ by, count }) => `${count} by ${by}`).join(", ")}${others}`;
}

export function inboundWarnings(status: InboundStatus | undefined, view: InboundView | undefined): string[] {
  const strict = view?.ports.filter(({ mtls }) => mtls === "strict").map(({ port }) => port) ?? [];
  return [
    ...(status?.trouble === undefined ? [] : [`Inbound policies are not up to date: ${status.trouble}.`]),
    ...(status && !status.enforce && view
      ? ["Inbound policies are not enforced (inbound: off, or shadow): every peer gets in."]
      : []),
    ...(status?.tooLarge.length
      ? [
          `The policies of port ${status.tooLarge.join(", ")} don't fit into the tables: every peer is refused there.`,
        ]
      : []),
    ...(view?.enforced && strict.length > 0 && !view.tunnel
      ? [
          `Port ${strict.join(", ")} demands mutual TLS (STRICT) and no tunnel listens: every connection from outside is refused.`,
        ]
      : []),
  ];
}

/** The section of refusals; empty without refusals. */
export function formatInboundRefusals(view: InboundView | undefined): string[] {
  if (!view || view.recent.length === 0) return [];
  const rows = view.recent
    .slice(0, ROWS)
    .map(({ ago, by, source, destination, port }) => [
      formatSpan(ago * 1000),
      source,
      destination.includes(":") ? `[${destination}]:${port}` : `${destination}:${port}`,
      by,
    ]);
  return [`LAST REFUSED FROM OUTSIDE\n${indent(table(["ago", "from", "to", "by"], rows))}`];
}
