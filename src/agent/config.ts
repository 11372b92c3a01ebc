/**
 * What the operator decides, from four places: flag, then environment, then file, then default.
 *
 * Every setting has one name. `service-account` is the flag `--service-account`, the variable
 * `KMESH_SERVICE_ACCOUNT` and the key `service-account` of the file.
 */
import { accessSync, constants, readFileSync } from "node:fs";
import { isAbsolute, resolve } from "node:path";
import { parse as parseYaml } from "yaml";
import { NoUnit, unitName } from "../datapath/unit.ts";
import { DECIDED_METADATA, type Json } from "../istiod/node.ts";
import { isNamespace, isObjectName, isTrustDomain } from "../istiod/object-name.ts";
import { faultOfProbe } from "../istiod/readiness-probe.ts";
import { canonicalAddress, isV4, parsePrefix } from "../mesh/address.ts";
import { FAULT_VARIABLE } from "../runtime/fault.ts";
import { closest } from "./closest.ts";

/** Where the file lies unless `--config` says otherwise. It need not exist. */
export const CONFIG_FILE = "/etc/kmesh/config.yaml";

/** The words of a setting, for flags, help, environment and file alike. */
export interface Setting {
  /** A map has keys with values, json is anything; both are plain YAML in the file. */
  kind: "text" | "switch" | "list" | "map" | "json";
  /** What the value looks like; switches have none. */
  hint?: string;
  about: string;
  /** The text that stands for "nobody said anything". */
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
    about: "where istiod and its CA are dialled; their certificates must still be for the name",
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
  mode: { kind: "text", hint: "kernel-native", about: "what is asked of istiod", fallback: "kernel-native" },
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
  shadow: { kind: "switch", about: "decide and count, change nothing" },
  "allow-plaintext": { kind: "switch", about: "connect in plaintext where the mesh demands TLS" },
  "log-level": { kind: "text", hint: "error|warn|info|debug", about: "how much to say", fallback: "info" },
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

/** The three that every command takes, so that several kmesh live side by side. */
export const FOLDERS = ["bpffs", "state-dir", "run-dir"] as const satisfies readonly SettingName[];

export interface Folders {
  bpffs: string;
  stateDir: string;
  runDir: string;
}

/** Connections to `address`/`length` are left alone; port 0 means every port. */
export interface Exclude {
  address: string;
  length: number;
  port: number;
}

export interface Config extends Folders {
  istiod: { host: string; port: number };
  /** Names to canonical addresses. */
  hosts: Record<string, string>;
  /** Absent when istiod is. */
  caServer: { host: string; port: number } | undefined;
  plaintext: boolean;
  ca: string | undefined;
  token: string | undefined;
  mode: "kernel-native";
  namespace: string;
  serviceAccount: string;
  trustDomain: string;
  /** Seconds. */
  certificateLife: number;
  name: string | undefined;
  /** Canonical; empty when they are to be found out. */
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
  /** As in a WorkloadGroup. */
  readinessProbe: { readonly [key: string]: Json } | undefined;
  probeLocalhost: boolean;
  metadata: Record<string, Json>;
  /** As given: a path below the cgroup2 root, or the whole path of the directory. */
  cgroups: string[];
  /** Whole names. */
  units: string[];
  excludes: Exclude[];
  netns: "own" | "all";
  shadow: boolean;
  allowPlaintext: boolean;
  logLevel: "error" | "warn" | "info" | "debug";
}

/** A wrong flag, variable or key. The message names it and where it came from; `next` is what to do. */
export class ConfigError extends Error {
  readonly next: string;
  constructor(message: string, next: string) {
    super(message);
    this.name = "ConfigError";
    this.next = next;
  }
}

/** What the command line held: text as typed, true and false for switches, all values of a list. */
export type Flags = Partial<Record<string, string | boolean | string[]>>;

export interface Sources {
  flags: Flags;
  env: Record<string, string | undefined>;
  /** The file's path; `required` when the operator named it; `text` when it is not written yet. */
  file: { path: string; required: boolean; text?: string };
}

/** The environment variable of a setting. */
export function variableOf(name: string): string {
  return `KMESH_${name.toUpperCase().replaceAll("-", "_")}`;
}

/** The sources of one invocation: `--config` or KMESH_CONFIG name the file. */
export function sourcesOf(flags: Flags, env: Record<string, string | undefined>): Sources {
  const named = typeof flags.config === "string" ? flags.config : env.KMESH_CONFIG;
  return { flags, env, file: { path: named ?? CONFIG_FILE, required: named !== undefined } };
}

/** All of it, for `run`. Throws ConfigError at the first thing that is wrong. */
export function readConfig(sources: Sources): Config {
  const { config, problems } = examineConfig(sources);
  const [first] = problems;
  if (first) throw first;
  return config;
}

/**
 * The same, with everything that is wrong; the configuration then has fallbacks in its place and is for no agent.
 * Throws ConfigError when the file can't be read as one.
 */
export function examineConfig(sources: Sources): { config: Config; problems: ConfigError[] } {
  const problems: ConfigError[] = [];
  const file = readFile(sources.file);
  refuseUnknown(file, sources.file.path, problems);
  const given = new Values(sources, file, problems);
  const plaintext = given.switch("plaintext");
  const port = plaintext ? 15010 : 15012;
  const istiod = given.text("istiod", (text) => parseIstiod(text, port));
  if (!istiod && !given.has("istiod")) {
    problems.push(
      new ConfigError(
        "istiod's address is missing",
        `Say --istiod HOST:PORT, or set KMESH_ISTIOD, or write "istiod: HOST:PORT" into ${sources.file.path}.`,
      ),
    );
  }
  const ca = given.text("ca", readable);
  if (!plaintext && !given.has("ca")) {
    problems.push(
      new ConfigError(
        "istiod's root certificate is missing",
        "Say --ca FILE (istioctl x workload entry configure writes it as root-cert.pem), or --plaintext for port 15010.",
      ),
    );
  }
  const config: Config = {
    ...folders(given),
    istiod: istiod ?? { host: "", port },
    hosts: given.map("hosts", (name, value) => parseIp(textOf(value, name))),
    caServer: given.text("ca-server", (text) => parseIstiod(text, port)),
    plaintext,
    ca,
    // Not read here: who has a certificate already can do without.
    token: given.text("token", (path) => resolve(path)),
    mode: given.choice("mode", ["kernel-native"]),
    namespace: given.always("namespace", parseName),
    serviceAccount: given.always("service-account", parseObjectName),
    trustDomain: given.always("trust-domain", parseTrustDomain),
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
    readinessProbe: given.json("readiness-probe", parseProbe),
    probeLocalhost: given.switch("probe-localhost"),
    metadata: given.map("metadata", parseMetadata),
    // Everything, unless somebody said what. No unit, said in so many words, is nothing.
    cgroups: given.has("unit") && !given.has("cgroup") ? [] : given.list("cgroup", parseCgroup),
    units: [...new Set(given.list("unit", parseUnit))],
    excludes: given.list("exclude", parseExclude),
    netns: given.choice("netns", ["own", "all"]),
    shadow: given.switch("shadow"),
    allowPlaintext: given.switch("allow-plaintext"),
    logLevel: given.choice("log-level", ["error", "warn", "info", "debug"]),
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

/** The folders alone, for the commands that look at a mesh which may have been started otherwise. */
export function readFolders(sources: Sources): Folders {
  const problems: ConfigError[] = [];
  const found = folders(new Values(sources, readFile(sources.file), problems));
  if (problems[0]) throw problems[0];
  return found;
}

/** KMESH_ variables that mean nothing: not an error, others may have set them, but worth a line. */
export function unknownVariables(env: Record<string, string | undefined>): string[] {
  const known = new Set(["KMESH_CONFIG", FAULT_VARIABLE, ...Object.keys(SETTINGS).map(variableOf)]);
  return Object.keys(env).filter((name) => name.startsWith("KMESH_") && !known.has(name));
}

/** Says why a text is no value, and what one looks like. Values turns it into a ConfigError. */
class Invalid extends Error {
  readonly example: string;
  constructor(reason: string, example: string) {
    super(reason);
    this.example = example;
  }
}

/** Looks a setting up in the four places, and remembers the place for the error. What is wrong is noted, and counts as not said. */
class Values {
  readonly #sources: Sources;
  readonly #file: Record<string, unknown>;
  readonly #problems: ConfigError[];

  constructor(sources: Sources, file: Record<string, unknown>, problems: ConfigError[]) {
    this.#sources = sources;
    this.#file = file;
    this.#problems = problems;
  }

  /** Whether anybody said anything. */
  has(name: SettingName): boolean {
    return this.#find(name) !== undefined;
  }

  text<T>(name: SettingName, parse: (text: string) => T): T | undefined {
    const found = this.#find(name);
    if (found === undefined) return undefined;
    if (typeof found.value !== "string" && typeof found.value !== "number")
      return this.#wrong(`${found.from}: one value is expected`, `${hintOf(name)}.`);
    return this.#parsed(found.from, String(found.value), parse);
  }

  /** For settings whose fallback parses. */
  always<T>(name: SettingName, parse: (text: string) => T): T {
    return this.text(name, parse) ?? parse(fallbackOf(name));
  }

  choice<T extends string>(name: SettingName, choices: readonly T[]): T {
    return this.always(name, (text) => {
      const choice = choices.find((each) => each === text);
      if (choice === undefined)
        throw new Invalid(`"${text}" is none of ${choices.join(", ")}`, choices[0] ?? "");
      return choice;
    });
  }

  switch(name: SettingName): boolean {
    const found = this.#find(name);
    if (found === undefined) return false;
    const word = String(found.value).toLowerCase();
    if (["true", "1", "yes", "on"].includes(word)) return true;
    if (!["false", "0", "no", "off", ""].includes(word))
      this.#wrong(`${found.from}: "${word}" is neither true nor false`, "Write true or false.");
    return false;
  }

  list<T>(name: SettingName, parse: (text: string) => T): T[] {
    const found = this.#find(name);
    if (found === undefined) return fallbackOf(name) === "" ? [] : [parse(fallbackOf(name))];
    return partsOf(found.value).flatMap((part) => {
      const value = this.#parsed(found.from, part, parse);
      return value === undefined ? [] : [value];
    });
  }

  /** A map of the file, a JSON object, or KEY=VALUE like a list. */
  map<T>(name: SettingName, parse: (key: string, value: Json) => T): Record<string, T> {
    const found = this.#find(name);
    if (found === undefined) return {};
    const value = this.#parsed(found.from, found.value, (given) => keysAndValues(given, hintOf(name)));
    const entries = Object.entries(value ?? {}).flatMap(([key, each]): [string, T][] => {
      const parsed = this.#parsed(found.from, each, (given) => parse(key, given));
      return parsed === undefined ? [] : [[key, parsed]];
    });
    return Object.fromEntries(entries);
  }

  /** What stands in the file as YAML, and elsewhere as JSON. */
  json<T>(name: SettingName, parse: (value: Json) => T): T | undefined {
    const found = this.#find(name);
    if (found === undefined) return undefined;
    return this.#parsed(found.from, found.value, (value) =>
      parse(typeof value === "string" ? parseJson(value) : (value as Json)),
    );
  }

  #find(name: SettingName): { value: unknown; from: string } | undefined {
    const flag = this.#sources.flags[name];
    if (flag !== undefined) return { value: flag, from: `--${name}` };
    const variable = this.#sources.env[variableOf(name)];
    // An empty variable is how a unit file says "not set", except for switches, where it is false.
    if (variable !== undefined && variable !== "") return { value: variable, from: variableOf(name) };
    const key = this.#file[name];
    if (key !== undefined && key !== null)
      return { value: key, from: `${this.#sources.file.path}, key ${name}` };
    return undefined;
  }

  #parsed<V, T>(from: string, value: V, parse: (value: V) => T): T | undefined {
    try {
      return parse(value);
    } catch (error) {
      if (!(error instanceof Invalid)) throw error;
      return this.#wrong(`${from}: ${error.message}`, error.example);
    }
  }

  #wrong(message: string, next: string): undefined {
    this.#problems.push(new ConfigError(message, next));
    return undefined;
  }
}

/** A variable holds a list with commas; a flag and a key are repeated, or hold commas just as well. */
function partsOf(value: unknown): string[] {
  return (Array.isArray(value) ? value : [value])
    .flatMap((part) => String(part).split(","))
    .map((part) => part.trim())
    .filter((part) => part !== "");
}

function keysAndValues(value: unknown, hint: string): Record<string, Json> {
  if (typeof value === "object" && value !== null && !Array.isArray(value))
    return value as Record<string, Json>;
  const next = `${hint}, or in the file a key and a value a line.`;
  const [first] = Array.isArray(value) ? value : [value];
  if (typeof first === "string" && first.startsWith("{")) {
    const json = parseJson(first);
    if (isObject(json)) return { ...json };
    throw new Invalid("it is no JSON object", next);
  }
  return Object.fromEntries(
    partsOf(value).map((part) => {
      const equals = part.indexOf("=");
      if (equals < 1) throw new Invalid(`"${part}" is not KEY=VALUE`, next);
      return [part.slice(0, equals), part.slice(equals + 1)];
    }),
  );
}

function folders(given: Values): Folders {
  return {
    bpffs: given.always("bpffs", parseDirectory),
    stateDir: given.always("state-dir", parseDirectory),
    runDir: given.always("run-dir", parseDirectory),
  };
}

function readFile(file: Sources["file"]): Record<string, unknown> {
  let text: string;
  try {
    text = file.text ?? readFileSync(file.path, "utf8");
  } catch (error) {
    const code = codeOf(error);
    if (code === "ENOENT" && !file.required) return {};
    throw new ConfigError(
      `${file.path} can't be read (${code})`,
      "Check --config, KMESH_CONFIG and the file's mode.",
    );
  }
  let content: unknown;
  try {
    content = parseYaml(text);
  } catch (error) {
    const [line = "not YAML"] = (error instanceof Error ? error.message : String(error)).split("\n");
    throw new ConfigError(`${file.path} is not valid YAML: ${line.replace(/:$/, "")}`, "Mend that line.");
  }
  if (content === null || content === undefined) return {};
  if (typeof content !== "object" || Array.isArray(content)) {
    throw new ConfigError(`${file.path} holds no settings`, 'Write one "key: value" a line.');
  }
  return content as Record<string, unknown>;
}

function refuseUnknown(file: Record<string, unknown>, path: string, problems: ConfigError[]): void {
  const names = Object.keys(SETTINGS);
  for (const key of Object.keys(file)) {
    if (names.includes(key)) continue;
    const near = closest(key, names);
    problems.push(
      new ConfigError(
        `${path}: there is no setting "${key}"`,
        near ? `Did you mean "${near}"?` : `The settings are ${names.join(", ")}.`,
      ),
    );
  }
}

/** HOST, HOST:PORT, IPv4, [IPv6]:PORT or a bare IPv6 address. */
function parseIstiod(text: string, port: number): { host: string; port: number } {
  const example = "Write HOST:PORT, for example istiod.istio-system.svc:15012.";
  const bare = canonicalAddress(text);
  if (bare !== undefined) return { host: bare, port };
  const found = /^(\[[^\]]+\]|[^:[\]/\s]+)(?::(\d+))?$/.exec(text);
  if (!found?.[1]) throw new Invalid(`"${text}" is not HOST:PORT`, example);
  const host = found[1].startsWith("[") ? canonicalAddress(found[1]) : found[1];
  if (host === undefined) throw new Invalid(`"${found[1]}" is no IPv6 address`, example);
  return { host, port: found[2] === undefined ? port : parsePort(found[2], example) };
}

function parsePort(digits: string, example: string): number {
  const port = Number(digits);
  if (!/^\d+$/.test(digits) || port < 1 || port > 65535) throw new Invalid(`"${digits}" is no port`, example);
  return port;
}

/** CIDR, ADDRESS, either with :PORT; an IPv6 block that has a port stands in brackets. */
export function parseExclude(text: string): Exclude {
  const example = "Write CIDR or CIDR:PORT, for example 10.0.0.0/8, 192.0.2.7:443 or [fd00::/8]:443.";
  const found = /^(\[[^\]]+\]|[\d.]+(?:\/\d+)?)(?::([^:]*))?$/.exec(text);
  const block = parsePrefix(found?.[1] ?? text);
  if (!block) throw new Invalid(`"${text}" is no address block`, example);
  return { ...block, port: found?.[2] === undefined ? 0 : parsePort(found[2], example) };
}

function parseIp(text: string): string {
  const address = canonicalAddress(text);
  if (address === undefined)
    throw new Invalid(`"${text}" is no IP address`, "Write an IPv4 or IPv6 address.");
  return address;
}

function parseLocality(text: string): Config["locality"] {
  const parts = text.split("/");
  if (parts.length > 3 || parts[0] === "") {
    throw new Invalid(`"${text}" is no locality`, "Write REGION, REGION/ZONE or REGION/ZONE/SUBZONE.");
  }
  const [region = "", zone = "", subzone = ""] = parts;
  return { region, zone, subzone };
}

function parseName(text: string): string {
  if (isNamespace(text)) return text;
  throw new Invalid(`"${text}" is no Kubernetes name`, "Use small letters, digits and dashes, at most 63.");
}

/** In seconds. A shorter one than two minutes would be renewed all the time: istiod dates it back by as much. */
function parseLife(text: string): number {
  const [, digits, unit = ""] = /^(\d{1,9})([smh])$/.exec(text) ?? [];
  const seconds = Number(digits) * ({ s: 1, m: 60, h: 3600 }[unit] ?? 0);
  const example = "Write a whole number and s, m or h, for example 24h.";
  if (digits === undefined) throw new Invalid(`"${text}" is no length of time`, example);
  if (seconds < 120) throw new Invalid(`${text} is too short for a certificate: 2m is the least`, example);
  return seconds;
}

function parseNodeName(text: string): string {
  if (/^[-A-Za-z0-9._]{1,253}$/.test(text)) return text;
  throw new Invalid(
    `"${text}" can't be the name of a machine`,
    "Use letters, digits, dashes, dots and underscores.",
  );
}

/** Of an object in Kubernetes. */
function parseObjectName(text: string): string {
  if (isObjectName(text)) return text;
  throw new Invalid(
    `"${text}" is no Kubernetes name`,
    "Use small letters, digits, dashes and dots, at most 253.",
  );
}

function parsePorts(value: Json): readonly Json[] {
  if (Array.isArray(value)) return value;
  throw new Invalid("it is no list", 'Write a list, for example [{"name": "http", "containerPort": 8080}].');
}

function parseProbe(value: Json): { readonly [key: string]: Json } {
  const fault = faultOfProbe(value);
  if (fault === undefined && isObject(value)) return value;
  throw new Invalid(
    `it ${fault}`,
    'Write a probe, for example {"httpGet": {"path": "/ready", "port": 8080}}.',
  );
}

/** Lone values are texts to istiod; a bare boolean would make it close the stream. */
function parseMetadata(key: string, value: Json): Json {
  if (DECIDED_METADATA.has(key))
    throw new Invalid(`${key} has a setting of its own, or is decided by kmesh`, "Take it out.");
  return typeof value === "object" ? value : String(value);
}

/** A number that YAML made of a text may have lost digits: 1.10 is 1.1. */
function textOf(value: Json, key: string): string {
  if (typeof value === "string") return value;
  throw new Invalid(`${key} is no text`, `Write ${key}: "..." with quotes.`);
}

function parseJson(text: string): Json {
  try {
    return JSON.parse(text);
  } catch {
    throw new Invalid("it is no JSON", "Quote keys and texts, and the whole of it for the shell.");
  }
}

function isObject(value: unknown): value is { readonly [key: string]: Json } {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function parseTrustDomain(text: string): string {
  if (isTrustDomain(text)) return text;
  throw new Invalid(
    `"${text}" is no trust domain`,
    "Use small letters, digits, dots, dashes and underscores, for example cluster.local.",
  );
}

function parseDirectory(text: string): string {
  if (text === "") throw new Invalid("the folder's name is empty", "Write a path.");
  return resolve(text);
}

function parseUnit(text: string): string {
  try {
    return unitName(text);
  } catch (error) {
    if (!(error instanceof NoUnit)) throw error;
    throw new Invalid(error.message, "Write a unit as systemctl shows it, for example nginx.service.");
  }
}

function parseCgroup(text: string): string {
  if (isAbsolute(text)) return text;
  throw new Invalid(
    `"${text}" does not start with /`,
    "Write a path, for example /system.slice/nginx.service.",
  );
}

function readable(path: string): string {
  try {
    accessSync(path, constants.R_OK);
    return resolve(path);
  } catch (error) {
    throw new Invalid(`${path} can't be read (${codeOf(error)})`, "Check the path and the file's mode.");
  }
}

/** Throws ConfigError when the file that `from` names can't be read. */
export function requireReadable(from: string, path: string): void {
  try {
    readable(path);
  } catch (error) {
    if (!(error instanceof Invalid)) throw error;
    throw new ConfigError(`${from}: ${error.message}`, error.example);
  }
}

function plain(text: string): string {
  return text;
}

function hintOf(name: SettingName): string {
  const setting: Setting = SETTINGS[name];
  return `Write ${setting.hint ?? "true or false"}`;
}

function fallbackOf(name: SettingName): string {
  const setting: Setting = SETTINGS[name];
  return setting.fallback ?? "";
}

function codeOf(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : String(error);
}

/** How an exclusion is written. */
export function formatExclude(exclude: Exclude): string {
  const block = `${exclude.address}/${exclude.length}`;
  if (exclude.port === 0) return block;
  return isV4(exclude.address) ? `${block}:${exclude.port}` : `[${block}]:${exclude.port}`;
}
