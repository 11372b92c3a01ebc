import type { ResourceType } from "./sink.ts";

/** An event of the stream, for the log. */
export type StreamEvent =
  | { kind: "connecting"; target: string }
  /** The first response came. */
  | { kind: "connected"; target: string }
  /**
   * The connection ended after `held` milliseconds; 0 when istiod never answered. The next attempt follows after
   * `retry` milliseconds.
   */
  | { kind: "disconnected"; reason: string; held: number; retry: number }
  /** A new connection replaced the old one. */
  | { kind: "renewed"; target: string }
  /** The new connection failed; the old one stays in use. The next attempt follows after `retry` milliseconds. */
  | { kind: "not-renewed"; reason: string; retry: number }
  /** istiod accepts no health reports; kmesh sends none. */
  | { kind: "health-not-taken"; reason: string }
  | { kind: "rejected"; type: ResourceType; resource: string; reason: string }
  | { kind: "ignored"; reason: string }
  /** istiod did not answer these names in time; the push is committed without them. */
  | { kind: "overdue"; type: ResourceType; names: string[] }
  /** `took`: milliseconds from the first response of the push to its commit. */
  | { kind: "committed"; version: string; first: boolean; took: number }
  /** The sink threw an error: a bug in kmesh. */
  | { kind: "failed"; reason: string };

/** Counters of one type. `responses` to `refused` count since the start of the process. */
export interface TypeStatus {
  /** Resources held. */
  resources: number;
  /** Names subscribed to; 0 for wildcard types. */
  subscribed: number;
  unanswered: number;
  rejected: number;
  responses: number;
  bytes: number;
  unchanged: number;
  changed: number;
  removed: number;
  refused: number;
  /** Acknowledgements of its responses; absent before the first response of this process. */
  answered?: Answered;
}

/** Acknowledgements of one type. Times are milliseconds since the epoch. */
export interface Answered {
  /** `system_version_info` of the last response, and its time. */
  version: string;
  at: number;
  acks: number;
  nacks: number;
  /** The last response that got a NACK. `rejected` lists the resources that are still rejected. */
  lastNack?: { version: string; at: number };
}

/** The stream as `kmesh status` shows it. Times are milliseconds since the epoch. */
export interface StreamStatus {
  target: string;
  plaintext: boolean;
  connected: boolean;
  /** Present while connected. */
  connectedSince?: number;
  /** Present while not connected, after the first attempt ended. */
  disconnectedSince?: number;
  /** Connections on which istiod answered. */
  connections: number;
  lastError?: { at: number; text: string };
  /** Whether the first complete snapshot was committed. */
  synced: boolean;
  /** Version of the last committed push. */
  version: string;
  /** Pushes committed. */
  pushes: number;
  lastPush?: number;
  /** Since when a push is being received; absent while there is none. */
  pendingSince?: number;
  /** The last health report to istiod; absent before the first one. */
  reported?: { healthy: boolean; at: number };
  /** Why kmesh sends no health reports; absent while istiod accepts them or there is nothing to report. */
  healthNotTaken?: string;
  types: Record<ResourceType, TypeStatus>;
  /** Resources that istiod sent and kmesh rejected as malformed, in their present version. */
  rejected: { type: ResourceType; resource: string; reason: string; since: number }[];
}
