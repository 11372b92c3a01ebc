/**
 * The map of who talks to whom, as one JSON document: `GET /edges` of the agent, `kmesh topology --output json`, and what
 * `kmesh topology --from` merges. Pure data, imports nothing.
 *
 * Stable from version 1 on: ids of nodes and edges and how they are made, every field below with its unit, the words of
 * `kind`, `state` and `rule`. Fields and words may be added; readers skip what they do not know. Ids contain no time and no
 * number of the kernel, so the same unit, service or endpoint has the same id in every document of every machine.
 */

export interface EdgesDocument {
  version: 1;
  /** When it was made, ISO 8601. */
  at: string;
  /** Seconds that `recent` and rates cover; the hour at most. 0 without an agent: there are totals alone. */
  window: number;
  /** Seconds for which the agent has history; a `window` that is longer is cut to it. */
  history: number;
  /** This machine. */
  machine: Machine;
  /** `kmesh tunnel` of this machine; absent where none runs, and in merged documents. */
  tunnel?: TunnelSummary;
  /** Sorted by kind (callers, units, services, endpoints, outside), then by id. */
  nodes: Node[];
  /** Sorted by id. */
  edges: Edge[];
  /** Worst first. */
  problems: Problem[];
  limits: Limits;
}

export interface Machine {
  /** Host name. */
  host: string;
  /** As peers name it; "unknown" without a WorkloadGroup. */
  workload: string;
  namespace: string;
  cluster: string;
  /** By which other machines' documents know it as an endpoint or caller. */
  addresses: string[];
}

/** Counts since the processes started that run now, as each tunnel process counts for itself. */
export interface TunnelSummary {
  /** The SPIFFE id of this machine's certificate; "" without one. */
  principal: string;
  /** Whether new handshakes can use that certificate. */
  certified: boolean;
  /** Connections of this machine's apps to peers. */
  outbound: TunnelWay;
  /** Connections to this machine's services by a sidecar's mutual TLS, and what passed in plaintext beside it. */
  inbound: TunnelWay;
  /** HBONE streams to this machine's services. */
  hbone: TunnelWay;
  /** TLS handshakes that succeeded. */
  handshakes: number;
  /** Identities that peers proved, with their connections: the 100 with most. */
  peers: Record<string, number>;
}

export interface TunnelWay {
  open: number;
  total: number;
  /** Bytes from apps of this machine to peers, and back, of connections that ended. */
  sent: number;
  received: number;
  /** By reason (docs/tunnel.md). */
  failures: Record<string, number>;
}

export type Node = CallerNode | UnitNode | ServiceNode | EndpointNode | OutsideNode;

interface Named {
  /** See each kind. */
  id: string;
  /** To be shown. */
  name: string;
  /** Kubernetes namespace, "" when there is none or it is not known. */
  namespace: string;
  /** Why it has no better name; absent when it has one. A sentence. */
  unknown?: string;
}

/** Who connects to this machine. `caller:ADDRESS`; "caller:other" for those beyond the table's room. */
export interface CallerNode extends Named {
  kind: "caller";
  address: string;
  /** From istiod, when the address is one of an endpoint that it knows. */
  workload?: Workload;
}

/** Who connects from this machine, or accepts here. `unit:NAME`, `cgroup:NAME`, `user:NAME`, `unit:unknown`. */
export interface UnitNode extends Named {
  kind: "unit";
  /** "unit" is a systemd unit, "cgroup" another cgroup, "user" a user outside of units. */
  source: "unit" | "cgroup" | "user" | "unknown";
}

/** `service:HOST:PORT`. */
export interface ServiceNode extends Named {
  kind: "service";
  host: string;
  port: number;
  /**
   * Endpoints of the clusters that its connections are led to, and those of them that are healthy and not ejected; absent
   * without an agent. `largestShare` is what one endpoint gets of the connections at most by the configuration, 0 to 1: 1
   * where it is chosen by the source's address, or where no other one has its priority or a weight.
   */
  endpoints?: { known: number; usable: number; largestShare: number };
  /** Of its clusters' max_connections, and live ones, for the cluster that is nearest to its limit. */
  limit?: { live: number; most: number };
}

/** `endpoint:ADDRESS:PORT`, IPv6 in brackets. */
export interface EndpointNode extends Named {
  kind: "endpoint";
  address: string;
  port: number;
  workload?: Workload;
  /** Set while the kernel leaves it out: seconds until it is tried again. */
  ejected?: number;
  /** In merged documents: the unit of another machine that accepts there. */
  unit?: string;
}

/** Where connections go that match a frontend without endpoints of its own. `outside:SERVICE`. */
export interface OutsideNode extends Named {
  kind: "outside";
}

/** As istiod names an endpoint's workload; "unknown" where it does not. */
export interface Workload {
  name: string;
  namespace: string;
  canonicalService: string;
  canonicalRevision: string;
  cluster: string;
}

export interface Edge {
  /** `FROM -> TO`, of node ids. */
  id: string;
  from: string;
  to: string;
  kind: /** Caller to unit: accepted here. Its counters are seen from this machine. */
    | "inbound"
    /** Unit to service: all endpoints together. */
    | "call"
    /** Service to endpoint: all units together. */
    | "endpoint"
    /** Unit to outside. */
    | "passed";
  /** Local port of "inbound", 0 otherwise. */
  port: number;
  /**
   * Since the kernel's counters began; never less than in an earlier document of this boot. Of "endpoint" it begins again when
   * the endpoint has left the mesh and comes back: the service's calls keep what it counted.
   */
  total: EdgeCounters;
  /** Within the window. */
  recent: EdgeCounters;
  /** In merged documents: what the other end of an "endpoint" edge counted of it within the window. */
  peer?: EdgeCounters;
  /** How `kmesh tunnel` carries its connections; absent when they go, or come, as an app sends them. Not of "passed". */
  carried?: Carried;
  /** Open now. Accepted ones are found within about five seconds; before Linux 5.12 not at all: 0. */
  live: number;
  /** By `recent` and the window, per second. */
  rate: { opened: number; failed: number; sent: number; received: number };
  /** Share of ended connects of the window that failed, 0 to 1. */
  failureShare: number;
  /** Least network round trip of a connection, microseconds, of those that ended in the window; absent without any. */
  rtt?: { mean: number };
  /** How long failed connects took, milliseconds. */
  failed?: { mean: number };
  /** Seconds that ended connections lasted. */
  duration?: { mean: number };
  /** Since the counters began; only of "call" and "inbound" edges. */
  histograms?: { rtt: Histogram; duration: Histogram };
  /** When its counters moved last, ISO 8601; absent when that is not known. */
  usedAt?: string;
  state: EdgeState;
}

/**
 * Of "endpoint" and "inbound", by the newest of its connections. Of "call" it is there when it is so of each endpoint in use; `principal`
 * is "" where they differ.
 */
export interface Carried {
  /**
   * "istio" is a sidecar's mutual TLS, "hbone" HTTP CONNECT inside mutual TLS, "tls" the TLS of a DestinationRule, and
   * "proxy-protocol" that header before plaintext.
   */
  by: "istio" | "hbone" | "tls" | "proxy-protocol";
  /** Whether both ends prove an identity of the mesh. */
  mutualTls: boolean;
  /** The SPIFFE id that the peer's certificate must have, or of "inbound" had; "" when several are right, or it is not known. */
  principal: string;
}

/** "failing" and "slow" have a problem each; "idle" had nothing in the window, and says nothing about health. */
export type EdgeState = "ok" | "failing" | "slow" | "idle";

export interface EdgeCounters {
  opened: number;
  closed: number;
  /** Payload bytes that `from` sent. */
  sent: number;
  /** Payload bytes that `to` sent. */
  received: number;
  /** Segments that this machine sent again. */
  retransmits: number;
  failures: Failures;
  /** On purpose, by reason (src/mesh/model.ts REASONS); only on "call". */
  refused: Record<string, number>;
}

/** Connections that ended badly. The first three never were established. */
export interface Failures {
  refused: number;
  timedOut: number;
  unreachable: number;
  reset: number;
}

/** Values not above `le`, cumulative as Prometheus has it; the last bound is "+Inf". */
export interface Histogram {
  unit: "us" | "ms";
  buckets: { le: number | "+Inf"; count: number }[];
}

export interface Problem {
  /** Of an edge or a node. */
  subject: string;
  rule: Rule;
  severity: "error" | "warning" | "info";
  /** A sentence with the numbers in it. */
  text: string;
  /** The number behind it. */
  value: number;
  /** What to type next. */
  next: string;
}

/** See problems.ts for what each means exactly. */
export type Rule =
  | "connect-refused"
  | "connect-timeout"
  | "unreachable"
  | "reset"
  | "no-endpoint"
  | "refused-by-policy"
  | "overloaded"
  | "retransmits"
  | "slower-than-before"
  | "slower-than-siblings"
  | "ejected"
  | "alone"
  | "no-answer"
  | "tunnel"
  | "outside-mesh";

export interface Limits {
  /** Pairs of a source and a destination in use, and how many fit. */
  rows: { used: number; room: number };
  callers: { used: number; room: number };
  /** Connections counted without their pair, since the table was full. */
  other: number;
  /** What this kernel or these settings can't do, a sentence each. */
  off: string[];
}

/** `GET /edges/history?edge=ID`: the last hour, oldest first. Gaps while no agent ran are one step with their sum. */
export interface EdgeHistory {
  edge: string;
  /** Seconds of one step. */
  step: number;
  /** When the last step ended, ISO 8601. */
  at: string;
  opened: number[];
  failed: number[];
  /** Bytes. */
  sent: number[];
  received: number[];
  retransmits: number[];
  live: number[];
  /** Mean least round trip, microseconds; 0 = none ended. */
  rtt: number[];
}
