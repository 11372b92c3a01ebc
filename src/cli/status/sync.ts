/** The sync state of each resource type in `kmesh status`, like `istioctl proxy-status`. */
import type { AgentStatus } from "../../admin/status.ts";
import type { ResourceType } from "../../istiod/stream/sink.ts";
import type { TypeStatus } from "../../istiod/stream/status.ts";
import { formatSpan, table } from "../framework/output.ts";

/** In istioctl's order, with its names. */
const TYPES: readonly [ResourceType, string][] = [
  ["cluster", "CDS"],
  ["listener", "LDS"],
  ["endpoints", "EDS"],
  ["route", "RDS"],
  ["names", "NDS"],
];
/** Types of the workload API. */
const WORKLOAD_TYPES: readonly [ResourceType, string][] = [
  ["address", "ADDRESS"],
  ["authorization", "AUTHORIZATION"],
  ["names", "NDS"],
];

/** The table of types; undefined when nothing was ever received (the line of the stream says why). */
export function formatSync({ stream, mode }: AgentStatus, now: number): string | undefined {
  const types = mode === "dual-engine" ? WORKLOAD_TYPES : TYPES;
  if (types.every(([type]) => stream.types[type]?.answered === undefined)) return undefined;
  const rows = types.map(([type, name]) => {
    const one = stream.types[type];
    const { answered } = one;
    return [
      name,
      stateOf(one),
      String(one.resources),
      answered ? `${answered.acks} ACK, ${answered.nacks} NACK` : "-",
      answered?.version || "-",
      answered ? `${formatSpan(now - answered.at)} ago` : "-",
    ];
  });
  return table(["ISTIOD", "STATE", "HELD", "ANSWERED", "LAST VERSION", "RECEIVED"], rows);
}

/** Begins with SYNCED, REJECTED (a part of the configuration is refused), WAITING or NOT SENT. */
function stateOf({ answered, rejected, unanswered }: TypeStatus): string {
  if (rejected > 0) return `REJECTED ${rejected}`;
  if (unanswered > 0) return `WAITING for ${unanswered}`;
  return answered ? "SYNCED" : "NOT SENT";
}
