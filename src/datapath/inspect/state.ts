/** What the pinned tables say, with names instead of ids. */
import type { Hook } from "../../kernel/link.ts";
import type { Reason } from "../../mesh/model.ts";
import type { Descriptor } from "../mesh-tables/descriptor.ts";
import type { UnitState } from "../tables/unit.ts";
import type { RecentConnection } from "./recent.ts";

export interface HookState {
  hook: Hook;
  attached: boolean;
  programId?: number;
}

export interface ServiceCounters {
  service: string;
  redirected: number;
  passed: number;
  wouldRedirect: number;
  wouldRefuse: number;
  /** Reasons with at least one refusal. */
  refused: Partial<Record<Reason, number>>;
  /** Redirected connections whose endpoint refused or did not answer. */
  failed: number;
}

export interface FrontendState {
  /** `10.0.0.1:80`, `10.1.0.0/16:80`, `*:80` */
  match: string;
  service: string;
  action: "cluster" | "split" | "pass" | "refuse";
  /** The name of a cluster or split, or the reason of a refusal. */
  target: string;
}

export interface EndpointState {
  address: string;
  port: number;
  /** The share of its cluster's connections, 0 to 1. */
  share: number;
  live: number;
  /** Failed connects: all, and consecutive ones now. */
  failed: number;
  failures: number;
  /** Milliseconds until its ejection from this cluster ends; 0 without one. */
  ejectedFor: number;
}

export interface EjectedEndpoint {
  cluster: string;
  address: string;
  port: number;
  /** Milliseconds until the ejection ends. */
  forMs: number;
}

export interface ClusterState {
  name: string;
  kind: Descriptor["kind"];
  policy: Descriptor["policy"];
  reason?: Reason;
  /** The destination port at the address that the app asked for; present for kind port. */
  port?: number;
  maxConnections: number;
  live: number;
  endpoints: EndpointState[];
  /** Endpoints of further priorities, used when all earlier ones are ejected. Absent if there are none. */
  fallbacks?: EndpointState[][];
  /** The clusters of a split and their shares, 0 to 1. */
  shares: { cluster: string; share: number }[];
}

export interface TableState {
  name: string;
  /** The capacity in records. */
  capacity: number;
  bytes: number;
}

/** The kernel's state without the long lists. */
export interface Summary {
  bpffs: string;
  /** The layout of this version's tables. */
  abi: string;
  /** The layout of the live tables if another version made them. Settings and tables below are then not theirs. */
  foreign?: string;
  hooks: HookState[];
  /** Absent when this version has no tables. */
  settings?: {
    shadow: boolean;
    netns: "all" | "initial" | string;
    cgroups: string[];
    /** Units that are enrolled by name, with their present cgroups. */
    units: UnitState[];
    exclusions: string[];
    fallback: string;
  };
  services: ServiceCounters[];
  /** Ejected endpoints. Absent as the settings. */
  ejections?: {
    now: EjectedEndpoint[];
    /** The number of ejections. */
    ever: number;
    /** Whether the tables are stale, so that clusters without outlier detection eject, too. */
    stale: boolean;
  };
  /** The number of endpoints behind the tunnel, by kind of transport. Absent as the settings. */
  tunnel?: Record<string, number>;
  /** The same by service: the encryption of connections to it. Services without such an endpoint are absent. */
  encrypted?: Record<string, Record<string, number>>;
  tables: TableState[];
  /** Functions that this kernel does not support, one line each. Absent as the settings. */
  limits?: string[];
  /** The last refused and failed connections, the newest first. Absent as the settings. */
  recent?: RecentConnection[];
}

/** The part of a summary that changes with traffic. */
export type Vitals = Pick<Summary, "hooks" | "tables"> & Required<Pick<Summary, "ejections">>;

export interface Inspection extends Summary {
  frontends: FrontendState[];
  clusters: ClusterState[];
}
