/** What is decided and known about the answering of mesh names. */

/** What the operator decides about names. */
export interface NamesSettings {
  dns: "on" | "off" | "auto";
  /** Names and all below them that are never answered. */
  excludes: readonly string[];
  /** Set the TC bit in answers that lack addresses. */
  truncate: boolean;
  /** Count, answer nothing. */
  shadow: boolean;
  /** Every cgroup is governed, so that who asks need not be known. */
  everybody: boolean;
  /** Also answer what passes through from other network namespaces. */
  forwarded: boolean;
}

/** An interface, and how its queries are answered. */
export interface Coverage {
  name: string;
  index: number;
  way: "tcx" | "clsact" | "none";
  /** Why not. */
  error?: string;
}

/** A resolver of this machine, and where apps reach it. */
export interface LocalResolver {
  /** An address of resolv.conf, or "nss-resolve". */
  via: string;
  /** "systemd-resolved", "dnsmasq", "unbound", or the name of the process. */
  program: string;
  /** Its systemd unit. */
  unit?: string;
  /** Whether its own queries are answered, and so whoever asks it. */
  governed: boolean;
}

export interface NamesStatus {
  dns: NamesSettings["dns"];
  /** Whose queries are answered. "machine": whoever asks a governed resolver of this machine, which asks in the name of all. */
  askers: "everybody" | "enrolled" | "machine" | "nobody";
  /** Resolvers of this machine that apps ask; absent when they can't be found out. */
  resolvers?: LocalResolver[];
  /** A host below .local, which some resolvers keep to themselves. */
  localHost?: string;
  /** Entries of the table. */
  entries: number;
  hosts: number;
  /** Entries that this process wrote or removed; 0 after a restart that found all as it is to be. */
  writes: number;
  interfaces: Coverage[];
  counts: NameCounts;
  skipped: { name: string; reason: string }[];
  /** What went wrong last and is tried again. */
  trouble?: string;
}

/** By event, since the machine's start. */
export type NameCounts = Record<string, number>;
