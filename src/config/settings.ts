/**
 * All settings. Each has one name: `service-account` is the flag `--service-account`, the variable
 * `KMESH_SERVICE_ACCOUNT` and the key `service-account` of the file.
 */
import { MODES } from "../istiod/stream/types.ts";
import { FAULT_VARIABLE } from "../runtime/fault.ts";

/** Describes a setting for flags, help, environment and file. */
export interface Setting {
  /** "map": keys with values; "json": any value. Both are plain YAML in the file. */
  kind: "text" | "switch" | "list" | "map" | "json";
  /** A placeholder for the value; switches have none. */
  hint?: string;
  about: string;
  /** The short form of the flag, one letter. */
  short?: string;
  /** Values for completion. */
  choices?: readonly string[];
  /** The default, as text. */
  fallback?: string;
  /** A running agent applies a change at a reload. All others wait for its next start. */
  live?: true;
}

export const SETTINGS = {
  istiod: {
    kind: "text",
    hint: "HOST:PORT",
    about: "istiod's address (default port 15012, with --plaintext 15010)",
  },
  hosts: {
    kind: "map",
    hint: "NAME=ADDRESS",
    about:
      "dial these addresses, in order, or this DNS name instead of NAME, for istiod and its CA; their certificates must be for NAME",
  },
  "ca-server": {
    kind: "text",
    hint: "HOST:PORT",
    about: "the certificate authority (default: istiod)",
  },
  plaintext: { kind: "switch", about: "connect to istiod without TLS" },
  ca: { kind: "text", hint: "FILE", about: "root certificates that verify istiod (PEM)" },
  token: {
    kind: "text",
    hint: "FILE",
    about: "token for the first certificate; read again at each use",
  },
  mode: {
    kind: "text",
    hint: "kernel-native|dual-engine",
    choices: MODES,
    about:
      "the configuration that istiod sends: listeners, routes, clusters and endpoints, or ambient's services and workloads",
    fallback: "kernel-native",
  },
  namespace: {
    kind: "text",
    hint: "NAME",
    about: "this machine's namespace",
    fallback: "default",
  },
  "service-account": {
    kind: "text",
    hint: "NAME",
    about: "this machine's service account",
    fallback: "default",
  },
  "trust-domain": {
    kind: "text",
    hint: "NAME",
    about: "the mesh's trust domain, the first part of the machine's identity",
    fallback: "cluster.local",
  },
  "trust-domain-aliases": {
    kind: "list",
    hint: "NAME",
    about:
      "the mesh's trustDomainAliases, for mode dual-engine: its API does not have them (in kernel-native mode istiod says them)",
  },
  "certificate-life": {
    kind: "text",
    hint: "TIME",
    about: "the requested lifetime of certificates (24h, 90m, 300s); istiod may shorten it",
    fallback: "24h",
  },
  name: {
    kind: "text",
    hint: "NAME",
    about: "this machine's name for istiod (default: the host name)",
  },
  ip: {
    kind: "list",
    hint: "ADDRESS",
    about: "the machine's addresses, the primary one first (default: those of its interfaces)",
  },
  "service-ip": {
    kind: "text",
    hint: "ADDRESS",
    about: "the address at which peers reach this machine behind NAT",
  },
  locality: {
    kind: "text",
    hint: "REGION/ZONE/SUBZONE",
    about: "the machine's locality, for locality load balancing and failover",
  },
  "cluster-id": {
    kind: "text",
    hint: "NAME",
    about: "the cluster id for istiod",
    fallback: "Kubernetes",
  },
  network: { kind: "text", hint: "NAME", about: "the machine's mesh network", fallback: "" },
  "mesh-id": { kind: "text", hint: "NAME", about: "the mesh's id, for several joined meshes" },
  labels: {
    kind: "map",
    hint: "KEY=VALUE",
    about: "the workload's labels, which policies and routes select",
  },
  "workload-name": {
    kind: "text",
    hint: "NAME",
    about: "the name of this machine's workload",
  },
  "workload-group": {
    kind: "text",
    hint: "NAME",
    about: "the WorkloadGroup by which istiod registers this machine while it is connected",
  },
  "workload-entry": {
    kind: "text",
    hint: "NAME",
    about: "the existing WorkloadEntry of this machine, instead of a workload-group",
  },
  ports: {
    kind: "json",
    hint: "JSON",
    about: "the workload's ports, in the format of its WorkloadGroup",
  },
  "readiness-probe": {
    kind: "json",
    hint: "JSON",
    about: "the health check of the app, in the format of a WorkloadGroup",
  },
  "probe-localhost": {
    kind: "switch",
    about: "check the app at localhost instead of the machine's first address",
  },
  metadata: {
    kind: "map",
    hint: "KEY=VALUE",
    about: "further metadata for istiod (ISTIO_META_KEY in cluster.env)",
  },
  unit: {
    kind: "list",
    hint: "NAME",
    about: "enrol this systemd unit, in any cgroup; nothing else is enrolled unless --cgroup is given, too",
    live: true,
  },
  cgroup: {
    kind: "list",
    hint: "PATH",
    about: "enrol this cgroup and everything below it",
    fallback: "/",
    live: true,
  },
  exclude: {
    kind: "list",
    hint: "CIDR[:PORT]",
    about: "never govern connections to these addresses",
    live: true,
  },
  netns: {
    kind: "text",
    hint: "own|all",
    about: "the network namespaces that are governed",
    fallback: "own",
    live: true,
  },
  dns: {
    kind: "text",
    hint: "auto|on|off",
    choices: ["auto", "on", "off"],
    about:
      "answer queries for mesh names in the kernel: auto for enrolled processes, on for all, off for none",
    fallback: "auto",
    live: true,
  },
  "dns-exclude": {
    kind: "list",
    hint: "SUFFIX",
    about: "never answer queries for this name and names below it",
    live: true,
  },
  "dns-truncate": {
    kind: "switch",
    about:
      "set the TC bit when not all addresses fit; for machines whose name servers know mesh names by TCP",
    live: true,
  },
  inbound: {
    kind: "text",
    hint: "on|off",
    choices: ["on", "off"],
    about: "enforce authorization policies and STRICT mutual TLS on connections to this machine's services",
    fallback: "on",
    live: true,
  },
  "enforce-established": {
    kind: "switch",
    about: "cut established connections of peers when new policies refuse them",
    live: true,
  },
  shadow: { kind: "switch", about: "decide and count, but change no connection", live: true },
  "allow-plaintext": { kind: "switch", about: "connect in plaintext where the mesh demands TLS" },
  tunnel: {
    kind: "text",
    hint: "auto|on|off",
    choices: ["auto", "on", "off"],
    about:
      "carry connections that need mutual TLS through kmesh tunnel: auto if one listens, on always, off never",
    fallback: "auto",
  },
  traffic: {
    kind: "text",
    hint: "on|off",
    about: "count connections by unit, service and endpoint",
    fallback: "on",
    live: true,
  },
  metrics: {
    kind: "text",
    hint: "ADDRESS:PORT",
    about: "serve GET /metrics here, too (default: only on the admin socket)",
    live: true,
  },
  "access-log": {
    kind: "text",
    hint: "FILE|stdout|journal",
    about: "write one line for each ended connection (default: off)",
    live: true,
  },
  "access-log-format": {
    kind: "text",
    hint: "text|json",
    about: "the format of a line",
    fallback: "text",
    live: true,
  },
  "access-log-filter": {
    kind: "list",
    hint: "failures|service=NAME|unit=NAME",
    about: "log only connections that match all of these",
    live: true,
  },
  "access-log-rate": {
    kind: "text",
    hint: "LINES",
    about: "most lines per second; dropped lines are counted",
    fallback: "1000",
    live: true,
  },
  "access-log-interval": {
    kind: "text",
    hint: "TIME",
    about: "also log open connections at this interval (30s, 5m, 1h; default: only at their end)",
    live: true,
  },
  "log-level": { kind: "text", hint: "error|warn|info|debug", about: "how much to log", fallback: "info" },
  "admin-group": {
    kind: "text",
    hint: "GROUP",
    about: "the group whose members may read the state (status, explain, dump, topology, top)",
  },
  bpffs: {
    kind: "text",
    hint: "DIR",
    about: "the folder of pinned programs, maps and links",
    fallback: "/sys/fs/bpf/kmesh",
  },
  "state-dir": {
    kind: "text",
    hint: "DIR",
    about: "the folder for state that outlives a reboot",
    fallback: "/var/lib/kmesh",
  },
  "run-dir": {
    kind: "text",
    hint: "DIR",
    about: "the folder for lock, admin socket and status",
    fallback: "/run/kmesh",
  },
} as const satisfies Record<string, Setting>;

export type SettingName = keyof typeof SETTINGS;

/** The three folders, which every command accepts, so that several installations can run side by side. */
export const FOLDERS = ["bpffs", "state-dir", "run-dir"] as const satisfies readonly SettingName[];

/** The settings that a running agent changes at a reload: they are in a kernel map, or only the agent uses them. */
export const LIVE: readonly SettingName[] = (Object.keys(SETTINGS) as SettingName[]).filter(
  (name) => "live" in SETTINGS[name],
);

/** The environment variable of a setting. */
export function variableOf(name: string): string {
  return `KMESH_${name.toUpperCase().replaceAll("-", "_")}`;
}

/** Unknown KMESH_ variables. They give a warning, not an error, because other programs may have set them. */
export function unknownVariables(env: Record<string, string | undefined>): string[] {
  const known = new Set(["KMESH_CONFIG", FAULT_VARIABLE, ...Object.keys(SETTINGS).map(variableOf)]);
  return Object.keys(env).filter((name) => name.startsWith("KMESH_") && !known.has(name));
}
