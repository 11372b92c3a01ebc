/**
 * What the kernel counted, from the pinned maps that every generation shares: no agent is asked, and no generation's
 * tables are looked at.
 */

import { keptPin } from "../../../src/datapath/generation/pins.ts";
import { readEndpoint } from "../../../src/datapath/mesh-tables/endpoint-table.ts";
import { ChunkedTable } from "../../../src/datapath/tables/chunked-table.ts";
import * as layout from "../../../src/datapath/tables/layout.gen.ts";
import { readNames } from "../../../src/datapath/tables/names.ts";
import { KEPT_MAPS, type Maps } from "../../../src/datapath/tables/tables.ts";
import { ERRNO, KernelError } from "../../../src/kernel/error.ts";
import { BpfMap } from "../../../src/kernel/maps.ts";
import { Counting } from "../../../src/telemetry/counters/counting.ts";
import { Flusher } from "../../../src/telemetry/counters/flush.ts";
import { readTraffic } from "../../../src/telemetry/counters/reading.ts";
import {
  addCounters,
  type Counters,
  closedOf,
  endsOf,
  noCounters,
} from "../../../src/telemetry/counters/rows.ts";

const SERVICE = layout.service_counters;

export interface ServiceCount {
  redirected: number;
  refused: number;
  /** Redirected, and nobody answered. */
  failed: number;
  /** All others: connections that went where they asked to, and what shadow mode would have done. */
  other: number;
}

/** Connections from one address that apps accepted on one port. */
export interface Accepted {
  port: number;
  remote: string;
  opened: number;
  closed: number;
  /** Payload bytes. */
  received: number;
  sent: number;
  /** Segments. */
  retransmits: number;
}

export interface KernelCounts {
  /** By service name; "" is no service. */
  services: Map<string, ServiceCount>;
  /** By ADDRESS PORT, live connections; only those that are not 0. */
  live: Map<string, number>;
  /** The same number, as the clusters have it. */
  clusterLive: number;
  /** Of the traffic counters: over all rows, those that are retired, and what found no row. */
  traffic: {
    opened: number;
    ended: number;
    refused: number;
    /** Connects that a reset answered. */
    connectRefused: number;
    /** Connects that nothing answered, or an ICMP error. */
    neverConnected: number;
    /** Payload bytes; of connections that live at most two less. */
    sent: number;
    received: number;
  };
  accepted: Accepted[];
  /** Whether connections that live are in `traffic` and `accepted`; false where the kernel refuses iterators. */
  isFlushed: boolean;
}

/** Reads the counts below `bpffs`. Throws KernelError when there are none. */
export function readKernelCounts(bpffs: string): KernelCounts {
  const maps: BpfMap[] = [];
  const pinned = (name: string) => {
    const map = BpfMap.fromPin(keptPin(bpffs, name));
    maps.push(map);
    return map;
  };
  const open = (name: string, size: number) => {
    return new ChunkedTable(pinned(name), "read", size);
  };
  try {
    const names = readNames(
      open("service_names", layout.name_ref.size),
      open("name_lines", layout.name_line.size),
    );
    const counts = open("service_counts", SERVICE.size);
    const services = new Map([["", countsOf(counts, 0)]]);
    for (const [name, id] of names) services.set(name, countsOf(counts, id));
    return {
      services,
      live: liveOf(
        open("endpoints", layout.endpoint.size),
        open("tunnel_targets", layout.tunnel_target.size),
        open("endpoint_loads", layout.endpoint_load.size),
      ),
      clusterLive: sum(
        open("cluster_loads", layout.cluster_load.size),
        layout.cluster_load.fields.live.offset,
      ),
      ...trafficOf(pinned),
    };
  } finally {
    for (const map of maps) map.close();
  }
}

/** Connections that live are in the rows from the last flush on, so opened ones are brought up to date first. */
function trafficOf(
  pinned: (name: string) => BpfMap,
): Pick<KernelCounts, "traffic" | "accepted" | "isFlushed"> {
  const maps = Object.fromEntries(KEPT_MAPS.map((name) => [name, pinned(name)])) as Maps;
  const counting = new Counting(maps.traffic, maps.served_ports);
  let isFlushed = false;
  try {
    const flusher = Flusher.open(maps, counting);
    flusher?.flush();
    flusher?.close();
    isFlushed = flusher !== undefined;
  } catch (error) {
    if (!(error instanceof KernelError && error.errno === ERRNO.EPERM)) throw error;
  } finally {
    counting.close();
  }
  const out = noCounters();
  const refused = noCounters();
  const { rows, retired, other } = readTraffic(maps);
  addCounters(out, other.out);
  const all = [...rows.map(({ key, counters }) => ({ direction: key.direction, counters })), ...retired];
  for (const { direction, counters } of all) {
    if (direction === "out") addCounters(out, counters);
    if (direction === "refused") addCounters(refused, counters);
  }
  const traffic = {
    opened: out.opened,
    ended: closedOf(out),
    refused: refused.opened,
    connectRefused: endsOf(out, "refused"),
    neverConnected: endsOf(out, "timed-out") + endsOf(out, "unreachable"),
    sent: out.sent,
    received: out.received,
  };
  const accepted = [
    ...rows.flatMap(({ key: { direction, port, remote }, counters }) =>
      direction === "in" ? [acceptedOf(port, remote, counters)] : [],
    ),
    // What has no row of its own is nobody's.
    ...retired.flatMap(({ direction, service, counters }) =>
      direction === "in" ? [acceptedOf(Number(service), "", counters)] : [],
    ),
    ...(other.in.opened > 0 ? [acceptedOf(0, "", other.in)] : []),
  ];
  return { traffic, accepted, isFlushed };
}

/** Whether connections that apps accept on the port are counted. Throws KernelError when there are no tables. */
export function countsAccepted(bpffs: string, port: number): boolean {
  using served = BpfMap.fromPin(keptPin(bpffs, "served_ports"));
  const word = new Uint8Array(new ArrayBuffer(8));
  served.lookup(new Uint8Array(Uint32Array.of(port >> 6).buffer), word);
  return ((word[(port & 63) >> 3] ?? 0) & (1 << (port & 7))) !== 0;
}

function acceptedOf(port: number, remote: string, counters: Counters): Accepted {
  const { opened, received, sent, retransmits } = counters;
  return { port, remote, opened, closed: closedOf(counters), received, sent, retransmits };
}

function countsOf(table: ChunkedTable, id: number): ServiceCount {
  const { redirected, passed, would_redirect, would_refuse, refused, failed } = SERVICE.fields;
  const at = (offset: number) => (table.has(id) ? Number(table.long(id, offset)) : 0);
  let refusals = 0;
  for (let reason = 0; reason < refused.count; reason++) refusals += at(refused.offset + reason * 8);
  return {
    redirected: at(redirected.offset),
    refused: refusals,
    failed: at(failed.offset),
    other: at(passed.offset) + at(would_redirect.offset) + at(would_refuse.offset),
  };
}

function liveOf(endpoints: ChunkedTable, targets: ChunkedTable, loads: ChunkedTable): Map<string, number> {
  const live = new Map<string, number>();
  for (let id = 0; id < loads.capacity; id++) {
    const count = Number(BigInt.asIntN(64, loads.long(id, layout.endpoint_load.fields.live.offset)));
    if (count === 0) continue;
    const { address, port } = readEndpoint({ endpoints, tunnelTargets: targets }, id);
    // Several ids of one endpoint, or a count that no endpoint has, must show.
    const key = `${address} ${port}`;
    live.set(live.has(key) ? `${key} again, as id ${id}` : key, count);
  }
  return live;
}

function sum(table: ChunkedTable, offset: number): number {
  let total = 0;
  for (let id = 0; id < table.capacity; id++) total += Number(BigInt.asIntN(64, table.long(id, offset)));
  return total;
}
