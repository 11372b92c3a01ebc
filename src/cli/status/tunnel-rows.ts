/** Rows of `kmesh status` about what is carried through the tunnel. */
import type { Summary } from "../../datapath/inspect/inspect.ts";
import type { TunnelStatus } from "../../tunnel/process/status-file.ts";

const TITLES: Record<string, string> = {
  istio: "mutual TLS",
  hbone: "HBONE",
  tls: "TLS",
  "proxy-protocol": "the PROXY protocol",
};

/** `processes` are the tunnels that live, the one that accepts first. Nothing where the mesh leads nobody there. */
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
    ["encrypted", `endpoints that are reached through it: ${led}`],
  ];
}

function pidsOf({ pid, workers = [] }: TunnelStatus): string {
  return workers.length === 0 ? `pid ${pid}` : `pid ${pid} and workers ${workers.join(", ")}`;
}

/** What keeps it from carrying connections. */
export function tunnelWarnings(processes: readonly TunnelStatus[] = []): string[] {
  const accepting = processes.find(({ draining }) => !draining);
  if (!accepting) return [];
  const { valid, trouble } = accepting.certificate;
  if (valid && trouble === undefined) return [];
  return [
    `The tunnel has no certificate that is valid${trouble === undefined ? "" : `: ${trouble}`}. kmesh cert shows this machine's.`,
  ];
}
