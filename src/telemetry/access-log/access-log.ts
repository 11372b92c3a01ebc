/**
 * The access log: a line for each connection that ended, from the records that the kernel writes at the same moment and from
 * the same facts as its counters. The kernel's buffer is read a few times a second, and only while somebody wants lines.
 * Nothing waits for a reader or a disk: what can't be taken is dropped and counted.
 */
import type { AccessLogConfig } from "../../config/config.ts";
import type { AccessLogFilter } from "../../config/telemetry.ts";
import * as layout from "../../datapath/tables/layout.gen.ts";
import { reasonOf } from "../../errors/reason.ts";
import type { RefusalFollower } from "../../inbound/refusals.ts";
import { monotonic } from "../../kernel/clock.ts";
import type { BpfMap } from "../../kernel/maps.ts";
import { RingReader } from "../../kernel/ring.ts";
import { formatAddress } from "../../mesh/address.ts";
import { REASONS } from "../../mesh/model.ts";
import { parseWorkload } from "../labels.ts";
import { refusalRecord } from "../refused-peers.ts";
import { type Direction, decodeKey, ENDS, FAILURES, longAt, viewOf } from "../rows.ts";
import type { Traffic } from "../traffic.ts";
import { LogTarget } from "./log-target.ts";

/** Between two looks at the kernel's buffer, milliseconds: it has room for 8,000 records. */
const LOOK = 200;
/** Records in one look: what is beyond waits in the kernel, or is dropped there. */
const MOST = 20_000;

export interface LogRecord {
  /** ISO 8601, when it ended (or was looked at, for a live one). */
  time: string;
  direction: "out" | "in" | "refused";
  unit: string;
  pid: number;
  /** "host:port"; "" when it belongs to none. */
  service: string;
  /** What the app asked for, `address:port`; "" for accepted ones. */
  asked: string;
  /** Where it went, or who came. */
  peer: string;
  /** Of the peer; "" when istiod names none. */
  workload: string;
  /** Milliseconds from connect() to the end; null when it is not known. */
  duration_ms: number | null;
  sent: number;
  received: number;
  retransmits: number;
  /** Least round trip; null when none was measured. */
  rtt_us: number | null;
  /** How it ended (rows.ts ENDS), "live", or "refused-on-purpose". */
  end: string;
  /** Why it was refused on purpose; "" otherwise. */
  reason: string;
}

export interface AccessLogOptions {
  map: BpfMap;
  traffic: Traffic;
  config?: AccessLogConfig;
  /** Peers that policies refused: they have no socket, so the buffer lacks them. */
  refusals?: Pick<RefusalFollower, "take" | "close">;
  warn(line: string): void;
}

export class AccessLog {
  readonly #options: AccessLogOptions;
  readonly #ring: RingReader;
  #config: AccessLogConfig | undefined;
  #target: LogTarget | undefined;
  readonly #followers = new Set<(record: LogRecord) => void>();
  readonly #timer: ReturnType<typeof setInterval>;
  #trouble = "";
  #second = 0;
  #lines = 0;
  /** What the kernel's buffer had no room for, as of the last look. */
  #unlogged = 0;
  /** Lines beyond the rate, ever. */
  limited = 0;

  /** Throws KernelError. */
  constructor(options: AccessLogOptions) {
    this.#options = options;
    const { config } = options;
    this.#ring = RingReader.open(options.map, layout.flow_record.size);
    this.#unlogged = options.traffic.counting.get("unlogged");
    // What an agent before left is nobody's any more, unless the log goes on.
    if (!config) this.#skip();
    this.configure(config);
    this.#timer = setInterval(() => this.#look(), LOOK);
    this.#timer.unref?.();
  }

  /** Logs by this configuration from now on, or not at all. What waits goes to where it was to go. */
  configure(config: AccessLogConfig | undefined): void {
    const { traffic, warn } = this.#options;
    if (this.#target) this.#look();
    else if (this.#followers.size === 0) this.#refusals();
    this.#target?.close();
    this.#config = config;
    this.#target = config
      ? new LogTarget(config.to, warn, (count) => dropText(count, "target", config.format))
      : undefined;
    traffic.counting.set("interval_ns", (config?.interval ?? 0) * 1e9);
    traffic.counting.log(config !== undefined || this.#followers.size > 0);
  }

  /** Gives each record to `listener` from now on; gives how to stop. */
  follow(listener: (record: LogRecord) => void): () => void {
    // Refusals from before are nobody's.
    if (!this.#target && this.#followers.size === 0) this.#refusals();
    this.#followers.add(listener);
    this.#options.traffic.counting.log(true);
    return () => {
      this.#followers.delete(listener);
      if (this.#followers.size === 0 && !this.#target) this.#options.traffic.counting.log(false);
    };
  }

  /** Lines that the target did not take, ever. */
  get dropped(): number {
    return this.#target?.dropped ?? 0;
  }

  /** Ends this process's part; without a configured log the kernel writes no records from now on. */
  close(): void {
    clearInterval(this.#timer);
    this.#look();
    if (!this.#target) this.#options.traffic.counting.log(false);
    this.#target?.close();
    this.#options.refusals?.close();
    this.#ring.close();
  }

  #skip(): void {
    for (let i = 0; i < 64 && this.#ring.read().count > 0; i++);
  }

  #look(): void {
    if (!this.#target && this.#followers.size === 0) return;
    const { traffic } = this.#options;
    const config = this.#config;
    const offset = Date.now() - Number(monotonic()) / 1e6;
    let named = false;
    const unlogged = traffic.counting.get("unlogged");
    if (unlogged > this.#unlogged)
      this.#target?.write(dropText(unlogged - this.#unlogged, "buffer", config?.format ?? "text"));
    this.#unlogged = unlogged;
    for (let seen = 0; seen < MOST; ) {
      const { bytes, count } = this.#ring.read();
      if (count === 0) break;
      seen += count;
      if (!named) traffic.sources.refresh();
      named = true;
      const view = viewOf(bytes);
      for (let i = 0; i < count; i++) {
        const record = this.#decode(view, bytes, i * layout.flow_record.size, offset);
        if (record) this.#give(record);
      }
    }
    for (const record of this.#refusals()) this.#give(record);
    this.#target?.flush();
  }

  #give(record: LogRecord): void {
    const config = this.#config;
    for (const follower of this.#followers) follower(record);
    if (this.#target && config && matches(record, config.filter) && this.#mayWrite(config.rate))
      this.#target.write(config.format === "json" ? JSON.stringify(record) : formatRecord(record));
  }

  /** Those since the last call. Never throws: other lines go on. */
  #refusals(): LogRecord[] {
    const { refusals, traffic, warn } = this.#options;
    try {
      const { refusals: list, missed } = refusals?.take() ?? { refusals: [], missed: 0 };
      if (missed > 0) this.#target?.write(dropText(missed, "refusals", this.#config?.format ?? "text"));
      return list.map((each) => refusalRecord(each, Date.now(), traffic.labels.caller(each.source)));
    } catch (error) {
      const text = `refused peers can't be read for the access log: ${reasonOf(error)}`;
      if (text !== this.#trouble) warn(text);
      this.#trouble = text;
      return [];
    }
  }

  /** False for what is beyond the rate, which is said once a second. */
  #mayWrite(rate: number): boolean {
    const second = Math.floor(performance.now() / 1000);
    if (second !== this.#second) {
      const dropped = this.#lines - rate;
      if (dropped > 0) this.#target?.write(dropText(dropped, "rate", this.#config?.format ?? "text"));
      this.#second = second;
      this.#lines = 0;
    }
    this.#lines++;
    if (this.#lines <= rate) return true;
    this.limited++;
    return false;
  }

  #decode(view: DataView, bytes: Uint8Array, at: number, offset: number): LogRecord | undefined {
    const { fields } = layout.flow_record;
    const { labels, sources } = this.#options.traffic;
    const key = decodeKey(view, bytes, at + fields.key.offset);
    if (!key || !isLogged(key.direction)) return undefined;
    const long = (field: "at_ns" | "since_ns" | "sent" | "received") =>
      longAt(view, at + fields[field].offset);
    const word = (field: "pid" | "retransmits" | "rtt_us") => view.getUint32(at + fields[field].offset, true);
    const end = view.getUint8(at + fields.end.offset);
    const isLive = view.getUint8(at + fields.is_live.offset) === 1;
    const endpoint = key.direction === "out" ? labels.endpoint(key.endpoint) : undefined;
    const askedPort = view.getUint16(at + fields.asked_port.offset);
    const asked = formatAddress(bytes.subarray(at + fields.asked.offset, at + fields.asked.offset + 16));
    const workload =
      key.direction === "out"
        ? labels.workload(key.endpoint)
        : key.direction === "in"
          ? labels.caller(key.remote)
          : "";
    const since = long("since_ns");
    const rtt = word("rtt_us");
    return {
      time: new Date(long("at_ns") / 1e6 + offset).toISOString(),
      direction: key.direction,
      unit: sources.of(key.source).name,
      pid: word("pid"),
      service: key.direction === "in" ? "" : (labels.service(key.service) ?? ""),
      asked: askedPort === 0 ? "" : join(asked, askedPort),
      peer:
        key.direction === "in"
          ? `${key.remote} on port ${key.port}`
          : endpoint
            ? join(endpoint.address, endpoint.port)
            : "",
      workload: parseWorkload(workload)?.name ?? "",
      duration_ms: since === 0 ? null : Math.round((long("at_ns") - since) / 1e3) / 1e3,
      sent: long("sent"),
      received: long("received"),
      retransmits: word("retransmits"),
      rtt_us: rtt === 0 ? null : rtt,
      end: key.direction === "refused" ? "refused-on-purpose" : isLive ? "live" : (ENDS[end] ?? "closed"),
      reason: key.direction === "refused" ? (REASONS[key.endpoint] ?? "internal") : "",
    };
  }
}

function isLogged(direction: Direction): direction is LogRecord["direction"] {
  return direction !== "passed";
}

/** Whether a record is one that the filter wants. */
export function matches({ end, service, unit }: LogRecord, filter: AccessLogFilter): boolean {
  if (filter.failures && !isFailure(end)) return false;
  if (filter.units.length > 0 && !filter.units.includes(unit)) return false;
  const host = service.replace(/:\d+$/, "");
  return filter.services.length === 0 || filter.services.some((name) => name === service || name === host);
}

export function isFailure(end: string): boolean {
  return end === "refused-on-purpose" || (FAILURES as readonly string[]).includes(end);
}

/** One line, without its end. Names come from others: control characters and quotes are escaped. */
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

/** Why lines are missing. */
const DROP_CAUSES = {
  rate: "more than access-log-rate in a second",
  buffer: "the kernel's buffer was full",
  refusals: "of refused peers the kernel keeps the last 64",
  target: "the log could not be written, or its reader was too slow",
} as const;

function dropText(count: number, cause: keyof typeof DROP_CAUSES, format: "text" | "json"): string {
  const time = new Date().toISOString();
  return format === "json"
    ? JSON.stringify({ time, dropped: count, cause: DROP_CAUSES[cause] })
    : `${time} ${count} connections were not logged: ${DROP_CAUSES[cause]}`;
}

function join(address: string, port: number): string {
  return address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
}
