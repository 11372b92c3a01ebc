/** kmesh's own metrics: what Istio's names have no room for. Units and services are their labels, never endpoints. */

import * as layout from "../../datapath/tables/layout.gen.ts";
import type { Counting } from "../counting.ts";
import { HISTORY_SECONDS } from "../history.ts";
import { addCounters, ENDS, liveOf, noCounters } from "../rows.ts";
import type { EdgeSum } from "../sums.ts";
import type { Moment } from "../traffic.ts";
import { type Family, labelBlock, type Sample, withLabel } from "./exposition.ts";

/** Finite bounds of the kernel's histograms, each twice the one before; the bucket beyond them has no bound. */
const KERNEL_BOUNDS = layout.latency_row.fields.rtt.count - 1;
/** Every second of them is a series' bound: a pair has dozens of lines even so, and the map's JSON has them all. */
const STEP = 2;
/** Pairs of a unit and a service that have series of their own; the rest is added to unit="other", service="other". */
const MOST_PAIRS = 2_000;

/** What the agent says of itself. */
export interface AgentNumbers {
  version: string;
  connected: boolean;
  /** Seconds since the epoch of the last push that is live; 0 = none. */
  lastPush: number;
  pushes: number;
  writes: number;
  hooks: { hook: string; attached: boolean }[];
  tables: { name: string; capacity: number; bytes: number }[];
  ejections: number;
  ejected: number;
  /** Connections to this machine that were refused, by policy. */
  inboundRefusals: { by: string; count: number }[];
}

export function kmeshFamilies({ reading, sums }: Moment, counting: Counting, agent: AgentNumbers): Family[] {
  const calls = bounded([...sums.edges.values()].filter(({ kind }) => kind === "call"));
  const labelled = calls.map((edge) => {
    const labels = labelsOf(edge);
    return { edge, labels, block: labelBlock(labels) };
  });
  const counter = (name: string, help: string, value: (edge: EdgeSum) => number): Family => ({
    name,
    help,
    type: "counter",
    samples: labelled.map(({ edge, labels, block }) => ({ labels, block, value: value(edge) })),
  });
  const gauge = (name: string, help: string, samples: Sample[]): Family => ({
    name,
    help,
    type: "gauge",
    samples,
  });
  const one = (value: number): Sample[] => [{ labels: [], value }];
  const histogram = (
    name: string,
    help: string,
    kernel: (edge: EdgeSum) => number[] | undefined,
    scale: number,
    sum: (edge: EdgeSum) => number,
  ): Family => {
    const kept = Array.from({ length: Math.ceil(KERNEL_BOUNDS / STEP) }, (_, i) => i * STEP);
    const bounds = kept.map((i) => 2 ** i * scale);
    const histograms: NonNullable<Family["histograms"]> = [];
    for (const { edge, labels, block } of labelled) {
      const buckets = kernel(edge);
      if (!buckets) continue;
      let all = 0;
      const cumulative = buckets.map((count) => {
        all += count;
        return all;
      });
      if (all === 0) continue;
      const counts = [...kept.map((i) => cumulative[i] ?? 0), all];
      histograms.push({ labels, block, bounds, counts, sum: sum(edge) });
    }
    return { name, help, type: "histogram", samples: [], histograms };
  };
  const more = ({ labels, block }: (typeof labelled)[number], name: string, text: string, value: number) => ({
    labels: [...labels, [name, text] as const],
    block: withLabel(block, name, text),
    value,
  });
  const pairs: Sample[] = [];
  const refusals: Sample[] = [];
  for (const each of labelled) {
    each.edge.counters.ends.forEach((count, i) => {
      if (count > 0) pairs.push(more(each, "end", ENDS[i] ?? "closed", count));
    });
    for (const [reason, count] of each.edge.refused) refusals.push(more(each, "reason", reason, count));
  }
  const used = (inbound: boolean) =>
    reading.rows.filter(({ key }) => (key.direction === "in") === inbound).length;
  return [
    gauge("kmesh_build_info", "The agent's version", [{ labels: [["version", agent.version]], value: 1 }]),
    gauge(
      "kmesh_istiod_connected",
      "Whether the agent's stream to istiod is up",
      one(Number(agent.connected)),
    ),
    gauge(
      "kmesh_last_push_timestamp_seconds",
      "When the last push went live; 0 = none yet",
      one(agent.lastPush),
    ),
    { name: "kmesh_pushes", help: "Pushes that went live", type: "counter", samples: one(agent.pushes) },
    {
      name: "kmesh_table_writes",
      help: "Records and words written to the kernel's tables",
      type: "counter",
      samples: one(agent.writes),
    },
    gauge(
      "kmesh_hook_attached",
      "Whether the hook runs kmesh's program",
      agent.hooks.map(({ hook, attached }) => ({ labels: [["hook", hook]], value: Number(attached) })),
    ),
    gauge(
      "kmesh_table_room",
      "Records that the kernel's table has room for before it grows",
      agent.tables.map(({ name, capacity }) => ({ labels: [["table", name]], value: capacity })),
    ),
    gauge(
      "kmesh_table_bytes",
      "Memory of the kernel's table",
      agent.tables.map(({ name, bytes }) => ({ labels: [["table", name]], value: bytes })),
    ),
    gauge("kmesh_ejected_endpoints", "Endpoints that get no connections now", one(agent.ejected)),
    {
      name: "kmesh_ejections",
      help: "How often an endpoint was left out since its connects failed",
      type: "counter",
      samples: one(agent.ejections),
    },
    gauge("kmesh_traffic_rows", "Pairs of a source and a destination in use", [
      { labels: [["table", "out"]], value: used(false) },
      { labels: [["table", "in"]], value: used(true) },
    ]),
    gauge("kmesh_traffic_rows_room", "Pairs that there is room for", [
      { labels: [["table", "out"]], value: reading.room.rows },
      { labels: [["table", "in"]], value: reading.room.callers },
    ]),
    {
      name: "kmesh_traffic_other_connections",
      help: "Connections counted without their pair, since there was no room",
      type: "counter",
      samples: [
        { labels: [["table", "out"]], value: reading.other.out.opened },
        { labels: [["table", "in"]], value: reading.other.in.opened },
      ],
    },
    {
      name: "kmesh_log_dropped",
      help: "Connections that the access log had no room for in the kernel",
      type: "counter",
      samples: one(counting.get("unlogged")),
    },
    gauge("kmesh_traffic_history_seconds", "How far back kmesh topology can look", one(HISTORY_SECONDS)),
    counter("kmesh_connections_opened", "Connections led to an endpoint", ({ counters }) => counters.opened),
    {
      name: "kmesh_connections_ended",
      help: "Connections that ended, by how",
      type: "counter",
      samples: pairs,
    },
    gauge(
      "kmesh_connections_live",
      "Connections that are open",
      labelled.map(({ edge, labels, block }) => ({ labels, block, value: liveOf(edge.counters) })),
    ),
    counter(
      "kmesh_sent_bytes",
      "Payload bytes that apps of this machine sent",
      ({ counters }) => counters.sent,
    ),
    counter(
      "kmesh_received_bytes",
      "Payload bytes that apps of this machine received",
      ({ counters }) => counters.received,
    ),
    counter(
      "kmesh_retransmitted_segments",
      "Segments that this machine had to send again",
      ({ counters }) => counters.retransmits,
    ),
    counter(
      "kmesh_failed_connect_seconds",
      "How long connects took that failed, all together",
      ({ counters }) => counters.failedNs / 1e9,
    ),
    {
      name: "kmesh_refusals",
      help: "Connections refused on purpose, by reason",
      type: "counter",
      samples: refusals,
    },
    {
      name: "kmesh_inbound_refusals",
      help: "Connections to this machine's services that were refused, by policy",
      type: "counter",
      samples: agent.inboundRefusals.map(({ by, count }) => ({ labels: [["policy", by]], value: count })),
    },
    histogram(
      "kmesh_connection_rtt_seconds",
      "Least network round trip of each connection that ended",
      ({ histograms }) => histograms?.rtt,
      1e-6,
      ({ counters }) => counters.rttUs / 1e6,
    ),
    histogram(
      "kmesh_connection_duration_seconds",
      "How long established connections lasted",
      ({ histograms }) => histograms?.duration,
      256e-6,
      ({ counters }) => counters.durationNs / 1e9,
    ),
  ];
}

/** The first MOST_PAIRS, and one edge that is the sum of the others. */
function bounded(edges: readonly EdgeSum[]): EdgeSum[] {
  if (edges.length <= MOST_PAIRS) return [...edges];
  const rest: EdgeSum = {
    id: "other",
    from: "other",
    to: "other",
    kind: "call",
    port: 0,
    counters: noCounters(),
    refused: new Map(),
    usedNs: 0,
  };
  for (const { counters, refused } of edges.slice(MOST_PAIRS)) {
    addCounters(rest.counters, counters);
    for (const [reason, count] of refused) rest.refused.set(reason, (rest.refused.get(reason) ?? 0) + count);
  }
  return [...edges.slice(0, MOST_PAIRS), rest];
}

function labelsOf({ from, to }: EdgeSum): Sample["labels"] {
  return [
    ["unit", from.startsWith("unit:") ? from.slice(5) : from],
    ["service", to.startsWith("service:") ? to.slice(8) : to],
  ];
}
