/** Adds rows up to the nodes and edges of the map (model.ts), without rates. */
import { REASONS } from "../mesh/model.ts";
import { parseCarried } from "./carried.ts";
import type { LatencyRow, Reading, RetiredRow } from "./counters/reading.ts";
import { addCounters, type Counters, type FlowRow, noCounters } from "./counters/rows.ts";
import type { Source, Sources } from "./counters/sources.ts";
import { type Labels, parseWorkload } from "./labels.ts";
import type { Carried, Edge, Histogram, Node, ServiceNode, Workload } from "./model.ts";

export interface EdgeSum {
  id: string;
  from: string;
  to: string;
  kind: Edge["kind"];
  port: number;
  counters: Counters;
  /** Refusals on purpose, by reason. */
  refused: Map<string, number>;
  /** CLOCK_MONOTONIC, nanoseconds; 0 = not known. */
  usedNs: number;
  carried?: Carried;
  histograms?: { rtt: number[]; duration: number[] };
}

export interface Sums {
  nodes: Map<string, Node>;
  edges: Map<string, EdgeSum>;
}

export function sumUp(reading: Reading, sources: Sources, labels: Labels): Sums {
  const sums: Sums = { nodes: new Map(), edges: new Map() };
  const ejectedIn = (id: number) => Math.max(0, labels.ejectedUntil(id) - reading.atNs) / 1e9;
  for (const row of reading.rows) {
    const { key } = row;
    const unit = unitNode(sums, sources.of(key.source));
    if (key.direction === "in") {
      const workload = labels.caller(key.remote);
      const caller = callerNode(sums, labels.callerAddress(key.remote), workload);
      addNewest(edgeOf(sums, { from: caller, to: unit, kind: "inbound", port: key.port }), row, workload);
      continue;
    }
    const service = labels.service(key.service);
    if (key.direction === "passed") {
      add(sums, { from: unit, to: outsideNode(sums, service), kind: "passed", port: 0 }, row);
      continue;
    }
    const to = serviceNode(sums, service);
    addCall(sums, unit, to, row);
    if (key.direction === "refused") continue;
    const at = labels.endpoint(key.endpoint);
    if (!at) continue;
    const workload = labels.workload(key.endpoint, key.service);
    const endpoint = endpointNode(sums, at, workload, ejectedIn(key.endpoint));
    addNewest(edgeOf(sums, { from: to, to: endpoint, kind: "endpoint", port: 0 }), row, workload);
  }
  for (const row of reading.retired) {
    if (row.direction === "in") {
      const to = unitNode(sums, sources.of(row.source));
      const from = formerCallerNode(sums, row.workload);
      const edge = edgeOf(sums, { from, to, kind: "inbound", port: Number(row.service) });
      addCounters(edge.counters, row.counters);
    }
    if (row.direction !== "in") addRetired(sums, unitNode(sums, sources.of(row.source)), row);
  }
  for (const row of reading.latency) addHistograms(sums, row, sources, labels);
  carryCalls(sums);
  return sums;
}

/** A call is carried as its endpoints are, if all endpoints in use are carried in the same way. */
function carryCalls({ edges }: Sums): void {
  const legs = Map.groupBy(
    [...edges.values()].filter(({ kind }) => kind === "endpoint"),
    ({ from }) => from,
  );
  for (const edge of edges.values()) {
    const [first, ...rest] = edge.kind === "call" ? (legs.get(edge.to) ?? []) : [];
    const one = first?.carried;
    if (!one || rest.some(({ carried }) => carried?.by !== one.by)) continue;
    const isSame = rest.every(({ carried }) => carried?.principal === one.principal);
    edge.carried = isSame ? one : { ...one, principal: "" };
  }
}

/** Adds one of several rows with the same ends, which differ in the way: that of the newest one is the edge's. */
function addNewest(sum: EdgeSum, row: FlowRow, workload: string): void {
  if (row.usedNs >= sum.usedNs) {
    const carried = parseCarried(workload);
    if (carried) sum.carried = carried;
    else delete sum.carried;
  }
  addRow(sum, row);
}

/** A row of direction "out" or "refused". */
function addCall(sums: Sums, from: string, to: string, row: FlowRow): void {
  const { direction, endpoint } = row.key;
  const edge = add(sums, { from, to, kind: "call", port: 0 }, direction === "refused" ? undefined : row);
  if (direction !== "refused") return;
  addRefused(edge, REASONS[endpoint] ?? "internal", row.counters.opened);
  edge.usedNs = Math.max(edge.usedNs, row.usedNs);
}

/** A sum of any direction but "in". */
function addRetired(
  sums: Sums,
  from: string,
  { direction, service: name, workload, counters }: RetiredRow,
): void {
  const service = name === "" ? undefined : name;
  if (direction === "passed") {
    const to = outsideNode(sums, service);
    addCounters(edgeOf(sums, { from, to, kind: "passed", port: 0 }).counters, counters);
    return;
  }
  const edge = edgeOf(sums, { from, to: serviceNode(sums, service), kind: "call", port: 0 });
  if (direction === "out") addCounters(edge.counters, counters);
  else addRefused(edge, workload || "internal", counters.opened);
}

function addRefused({ refused }: EdgeSum, reason: string, count: number): void {
  refused.set(reason, (refused.get(reason) ?? 0) + count);
}

function add(
  sums: Sums,
  edge: Pick<EdgeSum, "from" | "to" | "kind" | "port">,
  row: FlowRow | undefined,
): EdgeSum {
  const sum = edgeOf(sums, edge);
  if (row) addRow(sum, row);
  return sum;
}

function addRow(sum: EdgeSum, { counters, usedNs }: FlowRow): void {
  addCounters(sum.counters, counters);
  sum.usedNs = Math.max(sum.usedNs, usedNs);
}

function edgeOf(sums: Sums, edge: Pick<EdgeSum, "from" | "to" | "kind" | "port">): EdgeSum {
  const id = edgeId(edge.from, edge.to, edge.port);
  let sum = sums.edges.get(id);
  if (!sum) {
    sum = { id, ...edge, counters: noCounters(), refused: new Map(), usedNs: 0 };
    sums.edges.set(id, sum);
  }
  return sum;
}

function addHistograms(sums: Sums, row: LatencyRow, sources: Sources, labels: Labels): void {
  const unit = unitId(sources.of(row.source));
  const put = (sum: EdgeSum) => {
    sum.histograms ??= { rtt: row.rtt.map(() => 0), duration: row.duration.map(() => 0) };
    const { rtt, duration } = sum.histograms;
    row.rtt.forEach((count, i) => {
      rtt[i] = (rtt[i] ?? 0) + count;
    });
    row.duration.forEach((count, i) => {
      duration[i] = (duration[i] ?? 0) + count;
    });
  };
  if (row.direction !== "out") return;
  const sum = sums.edges.get(`${unit} -> ${serviceId(labels.service(row.service))}`);
  if (sum) put(sum);
}

export function unitId({ kind, name }: Source): string {
  return kind === "unknown" ? "unit:unknown" : `${kind}:${name}`;
}

function unitNode({ nodes }: Sums, source: Source): string {
  const id = unitId(source);
  if (!nodes.has(id))
    nodes.set(id, {
      kind: "unit",
      id,
      name: source.name,
      namespace: "",
      source: source.kind,
      ...(source.kind === "unknown"
        ? {
            unknown:
              "The kernel had no room for its name, or it was idle for so long that others needed the room: 4,096 units have one.",
          }
        : {}),
    });
  return id;
}

/** `port` is 0, except for accepted connections. */
export function edgeId(from: string, to: string, port = 0): string {
  return `${from} -> ${to}${port === 0 ? "" : ` port ${port}`}`;
}

/** Undefined and "" mean no service. */
export function serviceId(service: string | undefined): string {
  return `service:${service || "none"}`;
}

function serviceNode({ nodes }: Sums, service: string | undefined): string {
  const id = serviceId(service);
  if (!nodes.has(id)) {
    const [, host = service ?? "none", port = "0"] = /^(.*):(\d+)$/.exec(service ?? "") ?? [];
    const node: ServiceNode = {
      kind: "service",
      id,
      name: shortName(host),
      namespace: namespaceOf(host),
      host,
      port: Number(port),
    };
    nodes.set(id, service === undefined ? { ...node, unknown: "The address belongs to no service." } : node);
  }
  return id;
}

export function outsideId(service: string | undefined): string {
  return `outside:${service ?? "mesh"}`;
}

function outsideNode({ nodes }: Sums, service: string | undefined): string {
  const id = outsideId(service);
  if (!nodes.has(id))
    nodes.set(id, { kind: "outside", id, name: service ?? "outside the mesh", namespace: "" });
  return id;
}

export function endpointId(at: { address: string; port: number }): string {
  return `endpoint:${placeOf(at)}`;
}

function placeOf({ address, port }: { address: string; port: number }): string {
  return address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
}

function endpointNode(
  { nodes }: Sums,
  { address, port }: { address: string; port: number },
  workloadText: string,
  ejected: number,
): string {
  const at = placeOf({ address, port });
  const id = endpointId({ address, port });
  const known = nodes.get(id);
  const before = known?.kind === "endpoint" ? known : undefined;
  const workload = firstByName(before?.workload, parseWorkload(workloadText));
  // An address has an id for each way in which it is reached.
  const seconds = Math.max(before?.ejected ?? 0, Math.ceil(ejected));
  nodes.set(id, {
    kind: "endpoint",
    id,
    name: workload?.name ?? at,
    namespace: workload?.namespace ?? "",
    address,
    port,
    ...(workload ? { workload } : { unknown: "istiod names no workload for this address." }),
    ...(seconds > 0 ? { ejected: seconds } : {}),
  });
  return id;
}

/** Services may name one endpoint differently. The order of rows must not decide which name it gets. */
function firstByName(a: Workload | undefined, b: Workload | undefined): Workload | undefined {
  if (!a || !b) return a ?? b;
  return b.name < a.name ? b : a;
}

const OTHER_CALLERS = "caller:other";
const NO_ROOM = "There were more callers than have a row of their own.";

export function callerId(address: string): string {
  return address === "::" ? OTHER_CALLERS : `caller:${address}`;
}

function callerNode({ nodes }: Sums, address: string, workloadText: string): string {
  const id = callerId(address);
  const isOther = id === OTHER_CALLERS;
  if (!nodes.has(id)) {
    const workload = parseWorkload(workloadText);
    const unknown = isOther ? NO_ROOM : "No endpoint that istiod knows has this address.";
    nodes.set(id, {
      kind: "caller",
      id,
      name: workload?.name ?? (isOther ? "other callers" : address),
      namespace: workload?.namespace ?? "",
      address: isOther ? "" : address,
      ...(workload ? { workload } : { unknown }),
    });
  }
  return id;
}

/** The callers of a workload whose rows were retired: their counts are kept, but not their addresses. */
export function formerCallerId(workloadText: string): string {
  const workload = parseWorkload(workloadText);
  return `caller:former:${workload ? `${workload.namespace}/${workload.name}` : "unknown"}`;
}

function formerCallerNode({ nodes }: Sums, workloadText: string): string {
  const workload = parseWorkload(workloadText);
  const id = formerCallerId(workloadText);
  if (!nodes.has(id))
    nodes.set(id, {
      kind: "caller",
      id,
      name: workload ? `${workload.name} (earlier)` : "earlier callers",
      namespace: workload?.namespace ?? "",
      address: "",
      ...(workload ? { workload } : { unknown: NO_ROOM }),
    });
  return id;
}

/** The first label of a host name, or the whole address. */
export function shortName(host: string): string {
  return /^[\d.:]+$/.test(host) ? host : (host.split(".")[0] ?? host);
}

/** The namespace of a Kubernetes service's name; "" for other hosts. */
export function namespaceOf(host: string): string {
  return /^[^.]+\.([^.]+)\.svc(\.|$)/.exec(host)?.[1] ?? "";
}

/** Cumulative, as in Prometheus, without empty buckets at the end except the last. */
export function histogramOf(counts: readonly number[], unit: Histogram["unit"], scale: number): Histogram {
  const buckets: Histogram["buckets"] = [];
  let sum = 0;
  for (let i = 0; i < counts.length - 1; i++) {
    sum += counts[i] ?? 0;
    buckets.push({ le: 2 ** i * scale, count: sum });
  }
  buckets.push({ le: "+Inf", count: sum + (counts.at(-1) ?? 0) });
  return { unit, buckets };
}
