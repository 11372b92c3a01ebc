/**
 * The mesh as both modes produce it and the data path consumes it. Pure data: no behaviour, no imports.
 *
 * Everything is keyed by name, so that what did not change can be recognised, and every address is canonical
 * text (see address.ts). A mesh is closed: a target may name a cluster that is missing, and that means what it
 * says, the share is refused.
 */

import type { EndpointList } from "./endpoint-list.ts";
import type { Inbound } from "./inbound.ts";
import type { Transport } from "./transport.ts";

/** Why a connection is refused. The order is the kernel's (bpf/maps/verdict.h): append only. */
export const REASONS = [
  "none",
  /** The cluster has no healthy endpoint. */
  "no-endpoint",
  /** The cluster has healthy endpoints, but none of the socket's address family. */
  "no-family",
  /** A route's share names a cluster that istiod never sent. */
  "missing-cluster",
  /** The configuration demands TLS, which kmesh does not originate yet. */
  "tls-required",
  /** A policy or a route to BlackHoleCluster refuses it. */
  "policy",
  /** The mesh is REGISTRY_ONLY and the address belongs to no service. */
  "not-in-registry",
  /** The cluster's max_connections are in use. */
  "max-connections",
  /** The destination can't be chosen at connect time (a dynamic DNS host, say). */
  "undecidable",
  /** The tables contradict each other: a bug in kmesh, counted to be visible. */
  "internal",
  /** An app connected to the tunnel's own port, which only redirected connections may enter. */
  "tunnel-entry",
  /** The endpoint is reached through the tunnel, which runs in another network namespace than the app. */
  "other-netns",
] as const;
export type Reason = (typeof REASONS)[number];

/** The target of a frontend's connections. */
export type Target =
  | { kind: "cluster"; cluster: string }
  | { kind: "split"; split: string }
  /** Connects to the address that the app asked for. */
  | { kind: "passthrough" }
  | { kind: "refuse"; reason: Reason };

/**
 * The destination that an app connects to. The three kinds are looked up in this order; the first that matches wins.
 */
export type Match =
  | { kind: "address"; address: string; port: number }
  /** `length` counts bits of the address's own family. Longest prefix first. */
  | { kind: "prefix"; address: string; length: number; port: number }
  /** Every address, both families. */
  | { kind: "port"; port: number };

export interface Frontend {
  match: Match;
  protocol: "tcp";
  /** Name of the service that counts this frontend's connections. */
  service: string;
  target: Target;
  /**
   * Its routes are not known yet. An entry that the kernel has under this key stays; `target` is used if there is
   * none.
   */
  pending?: true;
}

/** The unit of statistics, lists and `explain`: one host and port. Its name is `host:port`. */
export interface Service {
  name: string;
  host: string;
  port: number;
  /** Valid configuration that kmesh does not enforce, or not fully. Complete: nothing is dropped without a note. */
  notes: Note[];
}

/**
 * Kinds of notes about valid configuration that is not, or not fully, enforced. The order is part of the encoding:
 * only append.
 */
/** The host of a service's name; a text without a port stays. */
export function hostOfService(name: string): string {
  return name.replace(/:\d+$/, "");
}

export const NOTE_KINDS = [
  /** A route depends on the request; `text` names what is used at connect time. */
  "layer7",
  /** The peer prefers mTLS; kmesh sends plaintext. */
  "plaintext",
  /** Valid and without effect in kmesh: slow start, timeouts, ... */
  "not-enforced",
  /** The reason why connections are refused. */
  "refused",
  /** Two resources contradict each other; `text` names the winner. */
  "conflict",
] as const;

export type NoteKind = (typeof NOTE_KINDS)[number];

export interface Note {
  kind: NoteKind;
  text: string;
}

/** Titles of the kinds in log and status, the most important first. */
export const NOTE_TITLES: readonly { kind: NoteKind; title: string }[] = [
  { kind: "refused", title: "refused" },
  { kind: "layer7", title: "layer 7, not enforced yet" },
  { kind: "plaintext", title: "in plaintext, though mTLS is preferred" },
  { kind: "conflict", title: "contradictory" },
  { kind: "not-enforced", title: "accepted, without effect" },
];

/** Exact shares over clusters: in any 1,000 connections 80/20 is 800/200. */
export interface Split {
  name: string;
  /** Weights are positive integers; their order is the configuration's. */
  shares: { cluster: string; weight: number }[];
}

export type Balance =
  | { policy: "round-robin" }
  | { policy: "random" }
  /** Power of two choices over live connections. */
  | { policy: "least-request" }
  /** By source address. `tableSize` is the configured ring or table size, 0 for the default. */
  | { policy: "ring-hash"; tableSize: number }
  | { policy: "maglev"; tableSize: number };

/** Outlier detection: when an endpoint with consecutive failed connects is ejected. */
export interface Ejection {
  /** Consecutive failures that eject; 0 = never. */
  after: number;
  /** Duration of the first ejection, milliseconds. The second consecutive one lasts twice as long, and so on. */
  base: number;
  /** Milliseconds. */
  longest: number;
  /** The share of endpoints that may be ejected at a time, percent. One always may, unless this is 0. */
  percent: number;
  /** Percentage of such series of failures that eject: Envoy's enforcing percentage, 1 to 100; 0 = never. */
  enforcing: number;
}

export const NO_EJECTION: Ejection = { after: 0, base: 0, longest: 0, percent: 0, enforcing: 0 };

export interface Cluster {
  name: string;
  /** Name of a service of the same mesh; istiod's own clusters (PassthroughCluster) are services of their name. */
  service: string;
  kind:
    | "endpoints"
    /** ORIGINAL_DST: connects to the address that the app asked for. */
    | "passthrough"
    /** ORIGINAL_DST with a port override: the address that the app asked for, at `port`. */
    | "port-override"
    /** Every connection is refused with `reason`. */
    | "refuse";
  reason: Reason;
  /** The port of kind port-override; else 0. */
  port: number;
  balance: Balance;
  /** Localities in a stable order (sorted by priority, region, zone, subzone). */
  localities: Locality[];
  /** Whether locality weights are used (common_lb_config.locality_weighted_lb_config). */
  localityWeighted: boolean;
  /** Envoy's overprovisioning factor in percent, default 140. */
  overprovisioning: number;
  /** Below this percentage of healthy endpoints all of them are used; 0 = never. Envoy's default is 50. */
  panicThreshold: number;
  /** 0 = no limit. */
  maxConnections: number;
  ejection: Ejection;
  /** How its endpoints are reached that are not reached in plaintext; an endpoint has a number in this list. */
  transports: readonly Transport[];
  /** Not known yet (a DNS name without its first answer): the cluster that the kernel has under this name stays. */
  pending: boolean;
}

export interface Locality {
  region: string;
  zone: string;
  subzone: string;
  priority: number;
  /** 0 when the configuration gives none. */
  weight: number;
  /** Sorted by address and port; each address:port once. */
  endpoints: EndpointList;
}

/** What a host resolves to. */
export interface Name {
  /** Fully qualified, lower case, without a dot at the end; may begin with "*.". */
  host: string;
  /** Canonical, sorted. */
  addresses: readonly string[];
  /** Other names of it, shorter ones as a rule. */
  aliases: readonly string[];
}

/**
 * Parts of the mesh that are not known yet: missing routes, or a malformed listener. The frontends that an earlier
 * agent left in the kernel stay, as for a `pending` cluster.
 */
export interface Pending {
  /** Ports with frontends that are not known. */
  ports: ReadonlySet<number> | "all";
  /** The fallback is not known. */
  fallback: boolean;
}

/**
 * The whole configuration of the data path at one moment. The maps may change in place, but their values are only
 * ever replaced: a copy of the maps preserves a moment.
 */
export interface Mesh {
  services: Map<string, Service>;
  /** By `frontendKey`. */
  frontends: Map<string, Frontend>;
  splits: Map<string, Split>;
  clusters: Map<string, Cluster>;
  /** By host. */
  names: Map<string, Name>;
  /** For connections that match no frontend. */
  fallback: Target;
  /** Who may connect to this machine's services; absent: not known, and what the kernel has goes on. */
  inbound?: Inbound;
  /** Absent when all is known. */
  pending?: Pending;
  /** Notes that concern no single service: inbound policies of layer 7, undecidable ports. */
  notes: Note[];
}

/** A mesh without services: every connection passes. */
export function emptyMesh(): Mesh {
  return {
    services: new Map(),
    frontends: new Map(),
    splits: new Map(),
    clusters: new Map(),
    names: new Map(),
    fallback: { kind: "passthrough" },
    notes: [],
  };
}

/**
 * What differs from the mesh that was published before: keys of `frontends`, names in `clusters`, `splits`,
 * `services` and `names`, each either changed, new or (when the mesh lacks it) removed.
 */
export interface MeshDelta {
  everything: false;
  services: Set<string>;
  frontends: Set<string>;
  splits: Set<string>;
  clusters: Set<string>;
  names: Set<string>;
}

/** What to publish of a mesh; `everything` for the first one after a start. */
export type Changes = { everything: true } | MeshDelta;

export function emptyDelta(): MeshDelta {
  return {
    everything: false,
    services: new Set(),
    frontends: new Set(),
    splits: new Set(),
    clusters: new Set(),
    names: new Set(),
  };
}
