/** Rows of `kmesh status` about what the tunnel carries, in both directions. */
import type { Summary } from "../../datapath/inspect/state.ts";
import type { InboundView } from "../../inbound/view.ts";
import type { ListenerState } from "../../machine/tunnel/sockets.ts";
import { TUNNEL_PORT } from "../../mesh/tunnel-address.ts";
import type { WayCounters } from "../../tunnel/counters.ts";
import type { TunnelStatus } from "../../tunnel/process/status-file.ts";
import { indent, plural, table } from "../framework/output.ts";

const TITLES: Record<string, string> = {
  istio: "mutual TLS",
  hbone: "HBONE",
  tls: "TLS",
  "proxy-protocol": "the PROXY protocol",
};

const WAYS: [keyof TunnelStatus["ways"], string][] = [
  ["outbound", "from apps to peers"],
  ["inbound", "from peers by mutual TLS"],
  ["hbone", "from peers by HBONE"],
];

/** Identities and reasons in the facts; JSON has all. */
const MOST = 3;
/** Rows of the encryption by service. */
const ROWS = 20;

/** `processes` are the tunnels that live, the one that accepts first. Nothing where nothing is carried. */
export function tunnelFacts(
  kernel: Summary | undefined,
  processes: readonly TunnelStatus[] = [],
): [string, string][] {
  const targets = kernel?.tunnel ?? {};
  const kinds = Object.entries(targets).map(([kind, count]) => `${count} by ${TITLES[kind] ?? kind}`);
  if (kinds.length === 0 && processes.length === 0) return [];
  const accepting = processes.find(({ draining }) => !draining);
  const draining = processes.filter((each) => each.draining).length;
  const state = accepting
    ? `runs (${pidsOf(accepting)}): ${accepting.connections} connections`
    : "no process accepts: the next connection starts one where systemd holds the socket";
  const rest = draining > 0 ? `; ${draining} more end with their last connections` : "";
  const led = kinds.length > 0 ? kinds.join(", ") : "none";
  return [
    ["tunnel", `${state}${rest}`],
    ...WAYS.flatMap(([way, title]) => wayFacts(sumOf(processes, way), title)),
    ...identityFacts(processes),
    ["encrypted", `endpoints that are reached through it: ${led}`],
  ];
}

function pidsOf({ pid, workers = [] }: TunnelStatus): string {
  return workers.length === 0 ? `pid ${pid}` : `pid ${pid} and workers ${workers.join(", ")}`;
}

/** One direction over all processes; undefined when nothing ever came that way. */
function sumOf(processes: readonly TunnelStatus[], way: keyof TunnelStatus["ways"]): WayCounters {
  const sum: WayCounters = { open: 0, total: 0, pending: 0, sent: 0, received: 0, failures: {} };
  for (const { ways } of processes) {
    const row = ways?.[way];
    if (!row) continue;
    for (const key of ["open", "total", "pending", "sent", "received"] as const) sum[key] += row[key];
    for (const [reason, count] of Object.entries(row.failures) as [keyof WayCounters["failures"], number][])
      sum.failures[reason] = (sum.failures[reason] ?? 0) + count;
  }
  return sum;
}

function wayFacts(row: WayCounters, title: string): [string, string][] {
  const failures = Object.entries(row.failures).sort(([, a], [, b]) => b - a);
  if (row.total === 0 && failures.length === 0) return [];
  const failed = failures.slice(0, MOST).map(([reason, count]) => `${count} ${reason}`);
  const others = failures.length > MOST ? ` and ${failures.length - MOST} other reasons` : "";
  const tail = failed.length > 0 ? `; failed: ${failed.join(", ")}${others}` : "";
  return [
    [
      "",
      `${title}: ${row.open} open, ${row.total} in all, ${formatBytes(row.sent)} sent, ` +
        `${formatBytes(row.received)} received${tail}`,
    ],
  ];
}

function identityFacts(processes: readonly TunnelStatus[]): [string, string][] {
  const counts = new Map<string, number>();
  for (const { identities } of processes)
    for (const [id, count] of Object.entries(identities ?? {})) counts.set(id, (counts.get(id) ?? 0) + count);
  if (counts.size === 0) return [];
  const handshakes = processes.reduce(
    (sum, each) => sum + each.handshakes.client + each.handshakes.server,
    0,
  );
  const most = [...counts].sort(([, a], [, b]) => b - a).slice(0, MOST);
  const others = counts.size > MOST ? ` and ${counts.size - MOST} others` : "";
  return [
    [
      "",
      `${plural(handshakes, "handshake")}; peers: ${most.map(([id, count]) => `${id} (${count})`).join(", ")}${others}`,
    ],
  ];
}

function formatBytes(count: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = count > 0 ? Math.min(units.length - 1, Math.floor(Math.log2(count) / 10)) : 0;
  const value = count / 1024 ** power;
  return `${power === 0 ? value : value.toFixed(1)} ${units[power]}`;
}

/** The encryption by service, both ways; nothing where everything is plaintext. `all` lists more than a screen bears. */
export function formatEncryption(
  kernel: Summary | undefined,
  inbound: InboundView | undefined,
  all: boolean,
): string[] {
  const to = Object.entries(kernel?.encrypted ?? {}).sort(([a], [b]) => (a < b ? -1 : 1));
  const from = (inbound?.ports ?? []).filter(({ mtls }) => mtls !== "disable");
  if (to.length === 0 && from.length === 0) return [];
  const rows = [
    ...from.map(({ port, mtls }) => [`this machine's port ${port}`, "in", IN[mtls] ?? mtls]),
    ...to.map(([service, kinds]) => [
      service,
      "out",
      Object.entries(kinds)
        .map(([kind, count]) => `${plural(count, "endpoint")} by ${TITLES[kind] ?? kind}`)
        .join(", "),
    ]),
  ];
  const shown = all ? rows : rows.slice(0, ROWS);
  const more =
    rows.length > shown.length ? `\n... and ${rows.length - shown.length} more: --all lists them` : "";
  return [`ENCRYPTED\n${indent(table(["service", "way", "how"], shown) + more)}`];
}

const IN: Record<string, string> = {
  strict: "mutual TLS alone",
  permissive: "mutual TLS and plaintext",
};

/** What keeps it from carrying connections. `sockets` are those that it should have. */
export function tunnelWarnings(
  processes: readonly TunnelStatus[] = [],
  kernel?: Summary,
  sockets: readonly ListenerState[] = [],
): string[] {
  const accepting = processes.find(({ draining }) => !draining);
  if (!accepting) return silentWarnings(kernel, sockets);
  const { valid, trouble } = accepting.certificate;
  const warnings: string[] = [];
  const hidden = accepting.callers?.hidden ?? 0;
  if (hidden > 0)
    warnings.push(
      `Apps saw this machine's own address instead of the caller's for ${hidden} connections through the tunnel. An app behind an IPv4 socket can't see an IPv6 caller; see docs/tunnel.md for the other causes.`,
    );
  if (valid && trouble === undefined) return warnings;
  return [
    ...warnings,
    `The tunnel has no certificate that is valid${trouble === undefined ? "" : `: ${trouble}`}. kmesh cert shows this machine's.`,
  ];
}

/** Endpoints are led to a port where nobody takes connections. */
function silentWarnings(kernel: Summary | undefined, sockets: readonly ListenerState[]): string[] {
  const led = Object.values(kernel?.tunnel ?? {}).reduce((sum, count) => sum + count, 0);
  const silent = sockets.find(({ port, state }) => port === TUNNEL_PORT && state !== "listens");
  if (led === 0 || !silent) return [];
  return [
    `No tunnel listens at port ${TUNNEL_PORT}, and ${plural(led, "endpoint")} can be reached through it alone: connections to them are refused. kmesh doctor says what to do.`,
  ];
}
