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
}

export const SETTINGS = {
  istiod: {
    kind: "text",
    hint: "HOST:PORT",
    about: "where istiod listens (port 15012, with --plaintext 15010)",
  },
  hosts: {
    kind: "map",
    hint: "NAME=ADDRESS",
    about:
      "where istiod and its CA are dialled: addresses, one after the other, or a DNS name; their certificates must still be for NAME",
  },
  "ca-server": {
    kind: "text",
    hint: "HOST:PORT",
    about: "where certificates are asked for, when that is not istiod itself",
  },
  plaintext: { kind: "switch", about: "speak to istiod without TLS" },
  ca: { kind: "text", hint: "FILE", about: "root certificates that istiod is checked against" },
  token: {
    kind: "text",
    hint: "FILE",
    about: "token that istiod gives the first certificate for, read again at each use",
  },
  mode: {
    kind: "text",
    hint: "kernel-native|dual-engine",
    choices: MODES,
    about:
      "what is asked of istiod: listeners, routes, clusters and endpoints, or ambient's services and workloads",
    fallback: "kernel-native",
  },
  namespace: {
    kind: "text",
    hint: "NAME",
    about: "the namespace this machine belongs to",
    fallback: "default",
  },
  "service-account": { kind: "text", hint: "NAME", about: "its service account", fallback: "default" },
  "trust-domain": {
    kind: "text",
    hint: "NAME",
    about: "the mesh's trust domain, the first part of the machine's identity",
    fallback: "cluster.local",
  },
  "certificate-life": {
    kind: "text",
    hint: "TIME",
    about: "how long certificates are asked for (24h, 90m, 300s); istiod may allow less",
    fallback: "24h",
  },
  name: {
    kind: "text",
    hint: "NAME",
    about: "what istiod calls this machine (default: its host name)",
  },
  ip: {
    kind: "list",
    hint: "ADDRESS",
    about: "the machine's own addresses, the main one first (default: those of its interfaces)",
  },
  "service-ip": {
    kind: "text",
    hint: "ADDRESS",
    about: "where peers reach this machine, when none of its own addresses is it (NAT)",
  },
  locality: {
    kind: "text",
    hint: "REGION/ZONE/SUBZONE",
    about: "where the machine stands, for locality failover",
  },
  "cluster-id": {
    kind: "text",
    hint: "NAME",
    about: "the cluster whose addresses are meant",
    fallback: "Kubernetes",
  },
  network: { kind: "text", hint: "NAME", about: "the mesh network the machine is in", fallback: "" },
  "mesh-id": { kind: "text", hint: "NAME", about: "the mesh's own name, where several are joined" },
  labels: {
    kind: "map",
    hint: "KEY=VALUE",
    about: "the workload's labels, by which policies and routes select it",
  },
  "workload-name": {
    kind: "text",
    hint: "NAME",
    about: "the name of the workload that this machine is one of",
  },
  "workload-group": {
    kind: "text",
    hint: "NAME",
    about: "the WorkloadGroup with which istiod registers this machine while it is connected",
  },
  "workload-entry": {
    kind: "text",
    hint: "NAME",
    about: "the WorkloadEntry that stands for this machine already, instead of a workload-group",
  },
  ports: {
    kind: "json",
    hint: "JSON",
    about: "the workload's ports, as its WorkloadGroup names them",
  },
  "readiness-probe": {
    kind: "json",
    hint: "JSON",
    about: "how to find out whether the app is healthy: a WorkloadGroup's probe",
  },
  "probe-localhost": {
    kind: "switch",
    about: "probe the app at localhost, not at the machine's first address",
  },
  metadata: {
    kind: "map",
    hint: "KEY=VALUE",
    about: "further metadata for istiod (ISTIO_META_KEY in cluster.env)",
  },
  unit: {
    kind: "list",
    hint: "NAME",
    about: "enrol this systemd unit, whichever cgroup it has; then nothing else unless cgroup says so",
  },
  cgroup: { kind: "list", hint: "PATH", about: "enrol this cgroup and what is below it", fallback: "/" },
  exclude: { kind: "list", hint: "CIDR[:PORT]", about: "never touch connections to these addresses" },
  netns: {
    kind: "text",
    hint: "own|all",
    about: "the network namespaces that are governed",
    fallback: "own",
  },
  dns: {
    kind: "text",
    hint: "auto|on|off",
    choices: ["auto", "on", "off"],
    about: "answer queries for mesh names in the kernel: of those who are governed, of everybody, of nobody",
    fallback: "auto",
  },
  "dns-exclude": { kind: "list", hint: "SUFFIX", about: "never answer this name and names below it" },
  "dns-truncate": {
    kind: "switch",
    about: "mark an answer that lacks addresses as truncated: for name servers that know mesh names by TCP",
  },
  inbound: {
    kind: "text",
    hint: "on|off",
    choices: ["on", "off"],
    about: "enforce authorization policies and STRICT mutual TLS on connections to this machine's services",
    fallback: "on",
  },
  shadow: { kind: "switch", about: "decide and count, change nothing" },
  "allow-plaintext": { kind: "switch", about: "connect in plaintext where the mesh demands TLS" },
  tunnel: {
    kind: "text",
    hint: "auto|on|off",
    choices: ["auto", "on", "off"],
    about: "carry what needs mutual TLS through kmesh tunnel: where one listens, always, never",
    fallback: "auto",
  },
  traffic: {
    kind: "text",
    hint: "on|off",
    about: "count connections by unit, service and endpoint",
    fallback: "on",
  },
  metrics: {
    kind: "text",
    hint: "ADDRESS:PORT",
    about: "where GET /metrics is answered, beside the admin socket (default: nowhere)",
  },
  "access-log": {
    kind: "text",
    hint: "FILE|stdout|journal",
    about: "write a line for each connection that ends (default: none)",
  },
  "access-log-format": { kind: "text", hint: "text|json", about: "what a line looks like", fallback: "text" },
  "access-log-filter": {
    kind: "list",
    hint: "failures|service=NAME|unit=NAME",
    about: "only connections that match all of these",
  },
  "access-log-rate": {
    kind: "text",
    hint: "LINES",
    about: "lines a second at most; what is dropped is counted",
    fallback: "1000",
  },
  "access-log-interval": {
    kind: "text",
    hint: "TIME",
    about: "log connections that live each time as well (30s, 5m, 1h; default: only when they end)",
  },
  "log-level": { kind: "text", hint: "error|warn|info|debug", about: "how much to log", fallback: "info" },
  "admin-group": {
    kind: "text",
    hint: "GROUP",
    about: "the group whose members may look (status, explain, dump), and change nothing",
  },
  bpffs: {
    kind: "text",
    hint: "DIR",
    about: "where programs, maps and links are pinned",
    fallback: "/sys/fs/bpf/kmesh",
  },
  "state-dir": { kind: "text", hint: "DIR", about: "what outlives a reboot", fallback: "/var/lib/kmesh" },
  "run-dir": { kind: "text", hint: "DIR", about: "lock, admin socket, status", fallback: "/run/kmesh" },
} as const satisfies Record<string, Setting>;

export type SettingName = keyof typeof SETTINGS;

/** The three folders, which every command accepts, so that several installations can run side by side. */
export const FOLDERS = ["bpffs", "state-dir", "run-dir"] as const satisfies readonly SettingName[];

/** The environment variable of a setting. */
export function variableOf(name: string): string {
  return `KMESH_${name.toUpperCase().replaceAll("-", "_")}`;
}

/** Unknown KMESH_ variables. They give a warning, not an error, because other programs may have set them. */
export function unknownVariables(env: Record<string, string | undefined>): string[] {
  const known = new Set(["KMESH_CONFIG", FAULT_VARIABLE, ...Object.keys(SETTINGS).map(variableOf)]);
  return Object.keys(env).filter((name) => name.startsWith("KMESH_") && !known.has(name));
}
