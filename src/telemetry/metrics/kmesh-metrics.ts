/** kmesh's own metrics, beyond Istio's standard ones. Their labels are units and services, never endpoints. */

import type { Counting } from "../counters/counting.ts";
import type { Rows } from "../counters/row-table.ts";
import { ENDS } from "../counters/rows.ts";
import { HISTORY_SECONDS } from "../history.ts";
import { type Family, type LabelSet, type Labels, labelSet, lastLabel, withLabel } from "./exposition.ts";
import type { PAIR_FIELDS, Tally } from "./tally.ts";

type PairField = (typeof PAIR_FIELDS)[number];

/** The kernel's buckets that have a bound here; each is twice as wide as the one before. The map's JSON has all. */
const RTT_BUCKETS = [6, 8, 10, 12, 14, 16, 18, 20];
const DURATION_BUCKETS = [2, 6, 10, 12, 14, 16, 18, 20];
/** Seconds of the kernel's units. */
const RTT_UNIT = 1e-6;
const DURATION_UNIT = 256e-6;

/** Numbers of the agent itself. */
export interface AgentNumbers {
  version: string;
  connected: boolean;
  /** Time of the last live push, seconds since the epoch; 0 = none. */
  lastPush: number;
  pushes: number;
  writes: number;
  hooks: { hook: string; attached: boolean }[];
  tables: { name: string; capacity: number; bytes: number }[];
  ejections: number;
  ejected: number;
  /** Refused inbound connections, by policy. */
  inboundRefusals: { by: string; count: number }[];
}

export function kmeshFamilies(tally: Tally, rows: Rows, counting: Counting, agent: AgentNumbers): Family[] {
  const { pairs } = tally;
  const used = pairs.used();
  const sets = used.flatMap((index) => pairs.sets[index] ?? []);
  const counter = (name: string, help: string, field: PairField, scale = 1): Family => ({
    ...{ name, help, type: "counter", sets },
    values: pairs.column(field, used, scale),
  });
  const gauge = (name: string, help: string, samples: readonly Sample[]): Family => ({
    ...{ name, help, type: "gauge" },
    ...seriesOf(samples),
  });
  const count = (name: string, help: string, samples: readonly Sample[]): Family => ({
    ...{ name, help, type: "counter" },
    ...seriesOf(samples),
  });
  const one = (value: number): Sample[] => [[[], value]];
  const ends = ENDS.map((end, i) => ({
    label: lastLabel("end", end),
    values: pairs.column(`end${i}` as PairField, used),
  }));
  const ended: Series = { sets: [], values: [] };
  const live = pairs.column("opened", used);
  sets.forEach((set, i) => {
    let closed = 0;
    for (const { label, values } of ends) {
      const value = values[i] ?? 0;
      closed += value;
      if (value > 0) put(ended, withLabel(set, label), value);
    }
    live[i] = Math.max(0, (live[i] ?? 0) - closed);
  });
  const refusals: Series = { sets: [], values: [] };
  for (const [index, reasons] of tally.refused) {
    const set = pairs.sets[index];
    if (set)
      for (const [reason, value] of reasons)
        put(refusals, withLabel(set, lastLabel("reason", reason)), value);
  }
  const histogram = (
    name: string,
    help: string,
    kernel: "rtt" | "duration",
    buckets: readonly number[],
    unit: number,
    field: PairField,
    perUnit: number,
  ): Family => {
    const values = pairs.column(
      field,
      pairs.sets.map((_, index) => index),
    );
    const counted: { index: number; counts: number[]; sum: number }[] = [];
    for (const [index, each] of tally.histograms) {
      const counts: number[] = [];
      let all = 0;
      each[kernel].forEach((value, bucket) => {
        all += value;
        if (buckets.includes(bucket)) counts.push(all);
      });
      if (all === 0) continue;
      counts.push(all);
      let total = 0;
      for (const pair of each.of) total += values[pair] ?? 0;
      counted.push({ index, counts, sum: total / perUnit });
    }
    return {
      ...{ name, help, type: "histogram", values: [] },
      sets: counted.flatMap(({ index }) => pairs.sets[index] ?? []),
      histograms: {
        bounds: buckets.map((i) => 2 ** i * unit),
        counts: counted.map(({ counts }) => counts),
        sums: counted.map((each) => each.sum),
      },
    };
  };
  return [
    gauge("kmesh_build_info", "The agent's version", [[[["version", agent.version]], 1]]),
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
    count("kmesh_pushes", "Pushes that went live", one(agent.pushes)),
    count("kmesh_table_writes", "Records and words written to the kernel's tables", one(agent.writes)),
    gauge(
      "kmesh_hook_attached",
      "Whether the hook runs kmesh's program",
      agent.hooks.map(({ hook, attached }): Sample => [[["hook", hook]], Number(attached)]),
    ),
    gauge(
      "kmesh_table_room",
      "Records that the kernel's table has room for before it grows",
      agent.tables.map(({ name, capacity }): Sample => [[["table", name]], capacity]),
    ),
    gauge(
      "kmesh_table_bytes",
      "Memory of the kernel's table",
      agent.tables.map(({ name, bytes }): Sample => [[["table", name]], bytes]),
    ),
    gauge("kmesh_ejected_endpoints", "Endpoints that get no connections now", one(agent.ejected)),
    count(
      "kmesh_ejections",
      "How often an endpoint was left out since its connects failed",
      one(agent.ejections),
    ),
    gauge("kmesh_traffic_rows", "Pairs of a source and a destination in use", [
      [[["table", "out"]], rows.out.count],
      [[["table", "in"]], rows.in.count],
    ]),
    gauge("kmesh_traffic_rows_room", "Pairs that there is room for", [
      [[["table", "out"]], rows.room.rows],
      [[["table", "in"]], rows.room.callers],
    ]),
    count(
      "kmesh_traffic_other_connections",
      "Connections counted without their pair, since there was no room",
      [
        [[["table", "out"]], rows.other.out.opened],
        [[["table", "in"]], rows.other.in.opened],
      ],
    ),
    count(
      "kmesh_log_dropped",
      "Connections that the access log had no room for in the kernel",
      one(counting.get("unlogged")),
    ),
    gauge("kmesh_traffic_history_seconds", "How far back kmesh topology can look", one(HISTORY_SECONDS)),
    counter("kmesh_connections_opened", "Connections led to an endpoint", "opened"),
    {
      ...{ name: "kmesh_connections_ended", help: "Connections that ended, by how", type: "counter" },
      ...ended,
    },
    {
      ...{ name: "kmesh_connections_live", help: "Connections that are open", type: "gauge" },
      ...{ sets, values: live },
    },
    counter("kmesh_sent_bytes", "Payload bytes that apps of this machine sent", "sent"),
    counter("kmesh_received_bytes", "Payload bytes that apps of this machine received", "received"),
    counter("kmesh_retransmitted_segments", "Segments that this machine had to send again", "retransmits"),
    counter(
      "kmesh_failed_connect_seconds",
      "How long connects took that failed, all together",
      "failedNs",
      1e-9,
    ),
    {
      ...{ name: "kmesh_refusals", help: "Connections refused on purpose, by reason", type: "counter" },
      ...refusals,
    },
    count(
      "kmesh_inbound_refusals",
      "Connections to this machine's services that were refused, by policy",
      agent.inboundRefusals.map(({ by, count }): Sample => [[["policy", by]], count]),
    ),
    histogram(
      "kmesh_connection_rtt_seconds",
      "Least network round trip of each connection that ended",
      "rtt",
      RTT_BUCKETS,
      RTT_UNIT,
      "rttUs",
      1e6,
    ),
    histogram(
      "kmesh_connection_duration_seconds",
      "How long established connections lasted",
      "duration",
      DURATION_BUCKETS,
      DURATION_UNIT,
      "durationNs",
      1e9,
    ),
  ];
}

type Sample = readonly [labels: Labels, value: number];

interface Series {
  sets: LabelSet[];
  values: number[];
}

function put({ sets, values }: Series, set: LabelSet, value: number): void {
  sets.push(set);
  values.push(value);
}

function seriesOf(samples: readonly Sample[]): Series {
  return { sets: samples.map(([labels]) => labelSet(labels)), values: samples.map(([, value]) => value) };
}
