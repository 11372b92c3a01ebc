/** A line of the access log: its fields, the filter, and its text. */

import type { AccessLogFilter } from "../../config/telemetry.ts";
import type { RecentRefusal } from "../../inbound/refusals.ts";
import { hostOfService } from "../../mesh/model.ts";
import { FAILURES } from "../counters/rows.ts";
import { parseWorkload } from "../labels.ts";

export interface LogRecord {
  /** ISO 8601: its end, or for a live connection the time of the line. */
  time: string;
  direction: "out" | "in" | "refused";
  unit: string;
  pid: number;
  /** "host:port"; "" without a service. */
  service: string;
  /** The destination that the app asked for, `address:port`; "" for accepted connections. */
  asked: string;
  /** The endpoint, or the caller. */
  peer: string;
  /** The peer's; "" when istiod names none. */
  workload: string;
  /** Whether the tunnel carried it, and both ends proved an identity of the mesh. */
  mutual_tls: boolean;
  /** The peer's SPIFFE id: the one that it proved, or that it had to prove; "" without mutual TLS, or when several are right. */
  principal: string;
  /** Milliseconds from connect() to the end; null when it is not known. */
  duration_ms: number | null;
  sent: number;
  received: number;
  retransmits: number;
  /** Least round trip; null when none was measured. */
  rtt_us: number | null;
  /** How it ended (rows.ts ENDS), "live", or "refused-on-purpose". */
  end: string;
  /** The reason of a refusal on purpose; otherwise "". */
  reason: string;
}

/** Whether a record matches the filter. */
export function matches({ end, service, unit }: LogRecord, filter: AccessLogFilter): boolean {
  if (filter.failures && !isFailure(end)) return false;
  if (filter.units.length > 0 && !filter.units.includes(unit)) return false;
  const host = hostOfService(service);
  return filter.services.length === 0 || filter.services.some((name) => name === service || name === host);
}

export function isFailure(end: string): boolean {
  return end === "refused-on-purpose" || (FAILURES as readonly string[]).includes(end);
}

/** One line, without its end. Names are untrusted, so control characters and quotes are escaped. */
export function formatRecord(record: LogRecord): string {
  const { time, direction, unit, pid, service, asked, peer, workload } = record;
  const where =
    direction === "in"
      ? `from ${peer}`
      : `${service === "" ? asked : service} ${peer === "" ? "" : `at ${peer} `}`;
  const parts = [
    time,
    direction,
    unit === "" ? "-" : `${plain(unit)}[${pid}]`,
    plain(where.trim()),
    ...(workload === "" ? [] : [`(${plain(workload)})`]),
    ...(record.mutual_tls ? [`mtls=${record.principal === "" ? "unknown" : plain(record.principal)}`] : []),
    record.end + (record.reason === "" ? "" : `:${record.reason}`),
    ...(record.duration_ms === null ? [] : [`${record.duration_ms}ms`]),
    `sent=${record.sent}`,
    `received=${record.received}`,
    ...(record.retransmits > 0 ? [`retransmits=${record.retransmits}`] : []),
    ...(record.rtt_us === null ? [] : [`rtt=${record.rtt_us}us`]),
  ];
  return parts.join(" ");
}

/** Control characters, quotes and backslashes as \xNN. */
function plain(text: string): string {
  return text.replace(/["\\]|\p{Cc}/gu, (char) => `\\x${char.charCodeAt(0).toString(16).padStart(2, "0")}`);
}

/** The line of one refusal. `now` is in milliseconds; `text` is the caller's workload as istiod names it, or "". */
export function refusalRecord(refusal: RecentRefusal, now: number, text: string): LogRecord {
  const { ago, by, source, destination, port } = refusal;
  return {
    time: new Date(now - ago * 1000).toISOString(),
    ...{ direction: "in", unit: "", pid: 0, service: "", workload: parseWorkload(text)?.name ?? "" },
    ...{ mutual_tls: false, principal: "" },
    asked: destination.includes(":") ? `[${destination}]:${port}` : `${destination}:${port}`,
    peer: `${source} on port ${port}`,
    ...{ duration_ms: null, sent: 0, received: 0, retransmits: 0, rtt_us: null },
    end: "refused-on-purpose",
    reason: by,
  };
}
