/**
 * The access log: one line for each ended connection, from records that the kernel writes at the same time and from the same
 * values as its counters. The kernel's buffer is read a few times a second, only while there is a reader. Nothing waits for a
 * reader or a disk: excess lines are dropped and counted.
 */
import type { AccessLogConfig } from "../../config/config.ts";
import * as layout from "../../datapath/tables/layout.gen.ts";
import { reasonOf } from "../../errors/reason.ts";
import type { RefusalFollower } from "../../inbound/refusals.ts";
import { monotonic } from "../../kernel/clock.ts";
import type { BpfMap } from "../../kernel/maps.ts";
import { RingReader } from "../../kernel/ring.ts";
import { formatAddress } from "../../mesh/address.ts";
import { REASONS } from "../../mesh/model.ts";
import { parseCarried } from "../carried.ts";
import { type Direction, decodeKey, ENDS, longAt, viewOf } from "../counters/rows.ts";
import { parseWorkload } from "../labels.ts";
import type { Traffic } from "../traffic.ts";
import { LogTarget } from "./log-target.ts";
import { formatRecord, type LogRecord, matches, refusalRecord } from "./record.ts";

/** Poll interval of the kernel's buffer, milliseconds. It holds 8,000 records. */
const LOOK = 200;
/** Most records of one poll. Others wait in the kernel, or are dropped there. */
const MOST = 20_000;

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
  /** Records that the kernel's buffer had no room for, at the last poll. */
  #unlogged = 0;
  /** Lines dropped by the rate limit, in total. */
  limited = 0;

  /** Throws KernelError. */
  constructor(options: AccessLogOptions) {
    this.#options = options;
    const { config } = options;
    this.#ring = RingReader.open(options.map, layout.flow_record.size);
    this.#unlogged = options.traffic.counting.get("unlogged");
    // Discard an earlier agent's records, unless the log continues.
    if (!config) this.#skip();
    this.configure(config);
    this.#timer = setInterval(() => this.#look(), LOOK);
    this.#timer.unref?.();
  }

  /** Applies a configuration; undefined turns the log off. Waiting lines go to the old target. */
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

  /** Passes each record to `listener`. Returns a function that stops it. */
  follow(listener: (record: LogRecord) => void): () => void {
    // Nobody asked for earlier refusals.
    if (!this.#target && this.#followers.size === 0) this.#refusals();
    this.#followers.add(listener);
    this.#options.traffic.counting.log(true);
    return () => {
      this.#followers.delete(listener);
      if (this.#followers.size === 0 && !this.#target) this.#options.traffic.counting.log(false);
    };
  }

  /** Lines that the target did not accept, in total. */
  get dropped(): number {
    return this.#target?.dropped ?? 0;
  }

  /** Stops. Without a configured log the kernel writes no more records. */
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

  /** The refusals since the last call. Never throws, so that other lines are written. */
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

  /** False for a line above the rate limit. The number of such lines is logged once a second. */
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
        ? labels.workload(key.endpoint, key.service)
        : key.direction === "in"
          ? labels.caller(key.remote)
          : "";
    const since = long("since_ns");
    const rtt = word("rtt_us");
    const carried = parseCarried(workload);
    return {
      time: new Date(long("at_ns") / 1e6 + offset).toISOString(),
      direction: key.direction,
      unit: sources.of(key.source).name,
      pid: word("pid"),
      service: key.direction === "in" ? "" : (labels.service(key.service) ?? ""),
      asked: askedPort === 0 ? "" : join(asked, askedPort),
      peer:
        key.direction === "in"
          ? `${labels.callerAddress(key.remote)} on port ${key.port}`
          : endpoint
            ? join(endpoint.address, endpoint.port)
            : "",
      workload: parseWorkload(workload)?.name ?? "",
      mutual_tls: carried?.mutualTls === true,
      principal: carried?.principal ?? "",
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

/** The line about missing lines. */
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
