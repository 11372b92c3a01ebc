/** The last refused and failed connections of `kmesh status`. */
import type { RecentConnection } from "../../datapath/inspect/recent.ts";
import { formatSpan, indent, table } from "../framework/output.ts";

/** Rows on the page; JSON has all that the kernel keeps. */
const ROWS = 10;

/** The section; empty without such connections. */
export function formatRecent(recent: readonly RecentConnection[] = []): string[] {
  if (recent.length === 0) return [];
  const rows = recent
    .slice(0, ROWS)
    .map((each) => [formatSpan(each.agoMs), whoOf(each), whereOf(each), whyOf(each)]);
  return [`LAST REFUSED AND FAILED CONNECTIONS\n${indent(table(["ago", "unit", "to", "what"], rows))}`];
}

function whoOf({ unit, command, pid }: RecentConnection): string {
  const task = [command, pid === undefined ? undefined : `pid ${pid}`].filter(Boolean).join(", ");
  if (unit === undefined) return task === "" ? "unknown" : task;
  return task === "" ? unit : `${unit} (${task})`;
}

function whereOf({ address, port, service }: RecentConnection): string {
  const at = address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
  return service === "" ? at : `${at} (${service})`;
}

function whyOf({ outcome, reason, endpoint }: RecentConnection): string {
  if (outcome === "refused") return `refused: ${reason}`;
  if (!endpoint) return "failed";
  const { address, port } = endpoint;
  return `failed at ${address.includes(":") ? `[${address}]` : address}:${port}`;
}
