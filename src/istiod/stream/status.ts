import type { ResourceType } from "./sink.ts";

/** What happens on the stream, for the log. */
export type StreamEvent =
  | { kind: "connecting"; target: string }
  /** The first response came. */
  | { kind: "connected"; target: string }
  /** `held` milliseconds after it was connected, 0 when it never was. The next attempt follows in `retry` ms. */
  | { kind: "disconnected"; reason: string; held: number; retry: number }
  /** A new connection with new credentials took the place of the old one. */
  | { kind: "renewed"; target: string }
  /** It could not; the old one goes on. */
  | { kind: "not-renewed"; reason: string; retry: number }
  /** istiod can't take reports of the application's health, and gets none. */
  | { kind: "health-not-taken"; reason: string }
  | { kind: "rejected"; type: ResourceType; resource: string; reason: string }
  | { kind: "ignored"; reason: string }
  /** Names that istiod did not answer in time; the push goes live without them. */
  | { kind: "overdue"; type: ResourceType; names: string[] }
  /** `took`: milliseconds from the first response of the push to its commit. */
  | { kind: "committed"; version: string; first: boolean; took: number }
  /** The receiver of the resources failed: a fault of kmesh. */
  | { kind: "failed"; reason: string };

/** One type's numbers. `responses` to `refused` count since the start of the process. */
export interface TypeStatus {
  /** Resources held. */
  resources: number;
  /** Names subscribed to; 0 for types that come whole. */
  subscribed: number;
  unanswered: number;
  rejected: number;
  responses: number;
  bytes: number;
  unchanged: number;
  changed: number;
  removed: number;
  refused: number;
  /** How its responses were answered; absent before the first one of this process. */
  answered?: Answered;
}

/** Acknowledgements of one type. Times are milliseconds since the epoch. */
export interface Answered {
  /** `system_version_info` of the last response, and when that came. */
  version: string;
  at: number;
  acks: number;
  nacks: number;
  /** The last response that was not acknowledged; what of it is still refused stands in `rejected`. */
  lastNack?: { version: string; at: number };
}

/** The stream as `kmesh status` shows it. Times are milliseconds since the epoch. */
export interface StreamStatus {
  target: string;
  plaintext: boolean;
  connected: boolean;
  /** Present while connected. */
  connectedSince?: number;
  /** Present while not connected, if it ever was. */
  disconnectedSince?: number;
  /** Connections that got a response. */
  connections: number;
  lastError?: { at: number; text: string };
  /** The first complete snapshot was committed. */
  synced: boolean;
  /** The push that was committed last. */
  version: string;
  /** Pushes committed. */
  pushes: number;
  lastPush?: number;
  /** A push is being received, and since when. */
  pendingSince?: number;
  /** The application's health as istiod was told it last; absent while it was told nothing. */
  reported?: { healthy: boolean; at: number };
  /** Why istiod is told nothing of the application's health; absent where it is, or there is nothing to tell. */
  healthNotTaken?: string;
  types: Record<ResourceType, TypeStatus>;
  /** What istiod sent and was refused as malformed, in its present version. */
  rejected: { type: ResourceType; resource: string; reason: string; since: number }[];
}
