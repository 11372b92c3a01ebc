/** The settings and the status of mesh names. */

/** The settings. */
export interface NamesSettings {
  dns: "on" | "off" | "auto";
  /** Names that are never answered, with all names below them. */
  excludes: readonly string[];
  /** Sets the TC bit in answers that lack addresses. */
  truncate: boolean;
  /** Counts and answers nothing. */
  shadow: boolean;
  /** Every cgroup is governed, so the asking process does not matter. */
  everybody: boolean;
  /** Also answers queries from other network namespaces that pass through. */
  forwarded: boolean;
}

/** An interface and its attachment. */
export interface Coverage {
  name: string;
  index: number;
  way: "tcx" | "clsact" | "none";
  /** The reason if it is not attached. */
  error?: string;
}

/** A local resolver. */
export interface LocalResolver {
  /** Its address in resolv.conf, or "nss-resolve". */
  via: string;
  /** "systemd-resolved", "dnsmasq", "unbound", or the name of the process. */
  program: string;
  /** Its systemd unit. */
  unit?: string;
  /** Whether its queries are answered, and with them those of all its clients. */
  governed: boolean;
}

export interface NamesStatus {
  dns: NamesSettings["dns"];
  /** Whose queries are answered. "machine": all clients of a governed local resolver. */
  askers: "everybody" | "enrolled" | "machine" | "nobody";
  /** Local resolvers that apps use; absent when unknown. */
  resolvers?: LocalResolver[];
  /** Why they are unknown. */
  resolversUnknown?: string;
  /** A host below .local, which some resolvers do not forward. */
  localHost?: string;
  /** Entries of the table. */
  entries: number;
  hosts: number;
  /** Entries that this process wrote or removed; 0 after a restart without changes. */
  writes: number;
  interfaces: Coverage[];
  counts: NameCounts;
  skipped: { name: string; reason: string }[];
  /** The last error; the operation is repeated. */
  trouble?: string;
}

/** Counts by event since the machine's start. */
export type NameCounts = Record<string, number>;
