/** The configuration, read from all sources (sources.ts) and checked as a whole. */
import { resolve } from "node:path";
import type { Json } from "../istiod/node.ts";
import { MODES, type Mode } from "../istiod/stream/types.ts";
import { ConfigError, NotThereYet } from "./config-error.ts";
import { type Exclude, parseExclude } from "./exclude.ts";
import { type FOLDERS, SETTINGS } from "./settings.ts";
import { readFile, refuseUnknown, type Sources, Values } from "./sources.ts";
import {
  Invalid,
  isObject,
  MissingFile,
  parseAddresses,
  parseCgroup,
  parseDirectory,
  parseGroup,
  parseIp,
  parseIstiod,
  parseLife,
  parseLocality,
  parseMetadata,
  parseName,
  parseNodeName,
  parseObjectName,
  parsePorts,
  parseProbe,
  parseSuffix,
  parseTrustDomain,
  parseUnit,
  plain,
  readable,
  textOf,
} from "./syntax.ts";
import {
  type AccessLogFilter,
  mergeFilters,
  parseInterval,
  parseListener,
  parseLogFilter,
  parseLogTarget,
  parseRate,
} from "./telemetry.ts";

export interface Folders {
  bpffs: string;
  stateDir: string;
  runDir: string;
}

export interface AccessLogConfig {
  /** A path, "stdout" or "journal". */
  to: string;
  format: "text" | "json";
  filter: AccessLogFilter;
  /** Lines a second. */
  rate: number;
  /** Seconds; 0 = only when they end. */
  interval: number;
}

export interface Config extends Folders {
  /** The absolute path of the file, whether or not it exists. */
  file: string;
  istiod: { host: string; port: number };
  /** Canonical addresses of names, in the order in which they are tried. */
  hosts: Record<string, string[]>;
  /** Absent without istiod. */
  caServer: { host: string; port: number } | undefined;
  plaintext: boolean;
  ca: string | undefined;
  token: string | undefined;
  mode: Mode;
  namespace: string;
  serviceAccount: string;
  trustDomain: string;
  /** Sorted, without the trust domain itself. */
  trustDomainAliases: string[];
  /** Seconds. */
  certificateLife: number;
  name: string | undefined;
  /** Canonical; empty to detect them. */
  ips: string[];
  /** Canonical. */
  serviceIp: string | undefined;
  locality: { region: string; zone: string; subzone: string };
  clusterId: string;
  network: string;
  meshId: string;
  labels: Record<string, string>;
  workloadName: string | undefined;
  /** At most one of the two. */
  workloadGroup: string | undefined;
  workloadEntry: string | undefined;
  ports: readonly Json[] | undefined;
  /** In the format of a WorkloadGroup. */
  readinessProbe: { readonly [key: string]: Json } | undefined;
  probeLocalhost: boolean;
  metadata: Record<string, Json>;
  /** As given: paths below the cgroup2 root, or absolute paths. */
  cgroups: string[];
  /** Full names. */
  units: string[];
  excludes: Exclude[];
  netns: "own" | "all";
  dns: "auto" | "on" | "off";
  /** Whether policies for connections to this machine are enforced. */
  inbound: "on" | "off";
  enforceEstablished: boolean;
  /** Lower case, without dots at their ends. */
  dnsExcludes: string[];
  /** Whether an answer that lacks addresses has the TC bit. */
  dnsTruncate: boolean;
  shadow: boolean;
  allowPlaintext: boolean;
  /** Whether `kmesh tunnel` carries what needs TLS. */
  tunnel: "auto" | "on" | "off";
  /** Whether connections are counted. */
  traffic: boolean;
  metrics: { host: string; port: number } | undefined;
  accessLog: AccessLogConfig | undefined;
  logLevel: LogLevel;
  /** A group's name or number. */
  adminGroup: string | undefined;
}

/** The files that the user of the configuration can access: a service's sandbox. */
export interface FileAccess {
  /** The reason why a file can't be read or a folder can't be written, and the next step; undefined when it can. */
  blocked(path: string, access: "read" | "write"): { reason: string; next: string } | undefined;
}
export const LOG_LEVELS = ["error", "warn", "info", "debug"] as const;

export type LogLevel = (typeof LOG_LEVELS)[number];

/** Reads the whole configuration, for `run`. Throws ConfigError for the first fault. */
export function readConfig(sources: Sources): Config {
  const { config, problems } = examineConfig(sources);
  const [first] = problems;
  if (first) throw first;
  return config;
}

/**
 * Reads the whole configuration and collects all faults; with a `sandbox`, also inaccessible files. Faulty settings have
 * their defaults in the result, so no agent may use it. Throws ConfigError when the file is not a configuration.
 */
export function examineConfig(
  sources: Sources,
  sandbox?: FileAccess,
): { config: Config; problems: ConfigError[] } {
  const problems: ConfigError[] = [];
  const file = readFile(sources.file);
  refuseUnknown(file, sources.file.path, problems);
  const given = new Values(sources, file, problems);
  const visible = visibleIn(sandbox);
  const plaintext = given.switch("plaintext");
  const port = plaintext ? 15010 : 15012;
  const istiod = given.text("istiod", (text) => parseIstiod(text, port));
  if (!istiod && !given.has("istiod")) {
    problems.push(
      new NotThereYet(
        "istiod's address is missing",
        `Give --istiod HOST:PORT, or set KMESH_ISTIOD, or write "istiod: HOST:PORT" into ${sources.file.path}.`,
        sources.file.path,
      ),
    );
  }
  const ca = given.text("ca", (path) => readable(visible(path, "read")));
  if (!plaintext && !given.has("ca")) {
    problems.push(
      new ConfigError(
        "istiod's root certificate is missing",
        "Give --ca FILE (istioctl x workload entry configure writes it as root-cert.pem), or --plaintext for port 15010.",
      ),
    );
  }
  const trustDomain = given.always("trust-domain", parseTrustDomain);
  const aliases = [...new Set(given.list("trust-domain-aliases", parseTrustDomain))].sort();
  const config: Config = {
    file: resolve(sources.file.path),
    ...folders(given, visible),
    istiod: istiod ?? { host: "", port },
    hosts: given.map("hosts", parseAddresses),
    caServer: given.text("ca-server", (text) => parseIstiod(text, port)),
    plaintext,
    ca,
    // Not read here, because a machine with a certificate needs no token.
    token: given.text("token", (path) => resolve(visible(path, "read"))),
    mode: given.choice("mode", MODES),
    namespace: given.always("namespace", parseName),
    serviceAccount: given.always("service-account", parseObjectName),
    trustDomain,
    trustDomainAliases: aliases.filter((name) => name !== trustDomain),
    certificateLife: given.always("certificate-life", parseLife),
    name: given.text("name", parseNodeName),
    ips: given.list("ip", parseIp),
    serviceIp: given.text("service-ip", parseIp),
    locality: given.text("locality", parseLocality) ?? { region: "", zone: "", subzone: "" },
    clusterId: given.always("cluster-id", plain),
    network: given.always("network", plain),
    meshId: given.always("mesh-id", plain),
    labels: given.map("labels", (key, value) => textOf(value, key)),
    workloadName: given.text("workload-name", parseObjectName),
    workloadGroup: given.text("workload-group", parseObjectName),
    workloadEntry: given.text("workload-entry", parseObjectName),
    ports: given.json("ports", parsePorts),
    readinessProbe: given.json("readiness-probe", (value) => visibleProbe(parseProbe(value), visible)),
    probeLocalhost: given.switch("probe-localhost"),
    metadata: given.map("metadata", parseMetadata),
    // The whole machine by default. An empty list of units means none.
    cgroups: given.has("unit") && !given.has("cgroup") ? [] : given.list("cgroup", parseCgroup),
    units: [...new Set(given.list("unit", parseUnit))],
    excludes: given.list("exclude", parseExclude),
    netns: given.choice("netns", ["own", "all"]),
    dns: given.choice("dns", ["auto", "on", "off"]),
    inbound: given.choice("inbound", ["on", "off"]),
    enforceEstablished: given.switch("enforce-established"),
    dnsExcludes: [...new Set(given.list("dns-exclude", parseSuffix))],
    dnsTruncate: given.switch("dns-truncate"),
    shadow: given.switch("shadow"),
    allowPlaintext: given.switch("allow-plaintext"),
    tunnel: given.choice("tunnel", ["auto", "on", "off"]),
    traffic: given.choice("traffic", ["on", "off"]) === "on",
    metrics: given.text("metrics", parseListener),
    accessLog: accessLog(given),
    logLevel: given.choice("log-level", LOG_LEVELS),
    adminGroup: given.text("admin-group", parseGroup),
  };
  if (config.workloadGroup !== undefined && config.workloadEntry !== undefined) {
    problems.push(
      new ConfigError(
        `workload-group (${config.workloadGroup}) and workload-entry (${config.workloadEntry}) are both set`,
        "Keep workload-entry for a WorkloadEntry that exists already, workload-group for one that istiod is to make.",
      ),
    );
  }
  return { config, problems };
}

/** The folders only, for commands that inspect a mesh whose agent may have other settings. */
export function readFolders(sources: Sources): Folders {
  const problems: ConfigError[] = [];
  const found = folders(new Values(sources, readFile(sources.file), problems), visibleIn(undefined));
  if (problems[0]) throw problems[0];
  return found;
}

/** Undefined without the setting access-log. The other settings are checked in any case. */
function accessLog(given: Values): AccessLogConfig | undefined {
  const rest = {
    format: given.choice("access-log-format", ["text", "json"]),
    filter: mergeFilters(given.list("access-log-filter", parseLogFilter)),
    rate: given.always("access-log-rate", parseRate),
    interval: given.text("access-log-interval", parseInterval) ?? 0,
  };
  const to = given.text("access-log", parseLogTarget);
  return to === undefined ? undefined : { to, ...rest };
}

function folders(given: Values, visible: Visible): Folders {
  const folder = (name: (typeof FOLDERS)[number]) =>
    given.text(name, (text) => parseDirectory(visible(text, "write"))) ?? SETTINGS[name].fallback;
  return { bpffs: folder("bpffs"), stateDir: folder("state-dir"), runDir: folder("run-dir") };
}

/** Returns the path. Throws Invalid when the sandbox denies access. */
type Visible = (path: string, access: "read" | "write") => string;

function visibleIn(sandbox: FileAccess | undefined): Visible {
  return (path, access) => {
    const blocked = sandbox?.blocked(path, access);
    if (blocked) throw new Invalid(blocked.reason, blocked.next);
    return path;
  };
}

/** The program of an exec probe, and its arguments that are absolute paths. */
function visibleProbe<P extends { readonly [key: string]: Json }>(probe: P, visible: Visible): P {
  const { exec } = probe;
  const command = isObject(exec) && Array.isArray(exec.command) ? exec.command : [];
  for (const [i, word] of command.entries()) {
    const isPath = typeof word === "string" && (i === 0 ? word.includes("/") : word.startsWith("/"));
    if (isPath) visible(word, "read");
  }
  return probe;
}

/** Throws ConfigError when the file `from` can't be read. */
export function requireReadable(from: string, path: string): void {
  try {
    readable(path);
  } catch (error) {
    if (!(error instanceof Invalid)) throw error;
    const message = `${from}: ${error.message}`;
    throw error instanceof MissingFile
      ? new NotThereYet(message, error.next, error.path)
      : new ConfigError(message, error.next);
  }
}
