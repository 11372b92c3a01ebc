/**
 * Reads the files that `istioctl x workload entry configure` writes for a VM, together: cluster.env, mesh.yaml,
 * root-cert.pem, istio-token and hosts. Takes their texts; uses no file and no network.
 */

import { X509Certificate } from "node:crypto";
import { parse as parseYaml } from "yaml";
import { reasonOf } from "../../errors/reason.ts";
import { canonicalAddress } from "../../mesh/address.ts";
import { pemBlocks } from "../identity/certificate.ts";
import { faultOfToken, freshTokenCommand, isExpired } from "../identity/token.ts";
import { DECIDED_METADATA, type Json } from "../node.ts";
import type { SpiffeId } from "../spiffe.ts";
import { isDialledList, parseDialled, parseTarget, type Target } from "../target.ts";
import { type Problem, parseClusterEnv } from "./cluster-env.ts";
import { isNamespace, isObjectName, isTrustDomain } from "./object-name.ts";
import { faultOfProbe } from "./readiness-probe.ts";

/** The files by istioctl's names. */
export const MEMBERSHIP_FILES = [
  "cluster.env",
  "mesh.yaml",
  "root-cert.pem",
  "istio-token",
  "hosts",
] as const;
export type MembershipFile = (typeof MEMBERSHIP_FILES)[number];

export interface Membership {
  id: SpiffeId;
  /** istiod's xDS server. */
  istiod: Target;
  /** istiod's CA: CA_ADDR, or the xDS server. */
  ca: Target;
  /** All addresses of each name in the file `hosts`; may be empty. */
  hosts: ReadonlyMap<string, readonly string[]>;
  /** The certificates of the root file, PEM, without anything else that was in it. */
  roots: string;
  /** Empty when the token is missing or expired and none is needed. */
  token: string;
  clusterId: string;
  network: string;
  meshId: string;
  labels: Readonly<Record<string, string>>;
  workloadName?: string;
  /** The WorkloadGroup to register with. Without one a WorkloadEntry must exist already. */
  autoRegisterGroup?: string;
  /** The address for peers (ISTIO_SVC_IP), canonical. Behind NAT it is not one of the machine's own. */
  serviceIp?: string;
  /** The ports of the WorkloadGroup. */
  ports?: readonly Json[];
  /** As in the WorkloadGroup: httpGet, tcpSocket or exec, and thresholds. */
  readinessProbe?: { readonly [key: string]: Json };
  /** Whether the probe connects to localhost instead of the machine's first address. */
  probeLocalhost: boolean;
  /** POD_NAME. istioctl does not write it; an administrator may. */
  name?: string;
  /** Further node metadata, by istiod's names. */
  metadata: Readonly<Record<string, Json>>;
}

const META = "ISTIO_META_";
/** ISTIO_METAJSON_KEY holds a JSON object whose members become metadata, as in istio-agent. LABELS is the exception. */
const META_JSON = "ISTIO_METAJSON_";
const LABELS = `${META_JSON}LABELS`;

export interface MembershipOptions {
  /** The time to compare the token's expiry with, milliseconds since the epoch. */
  now: number;
  /** The id in the machine's valid certificate. With that certificate a missing or expired token is no problem. */
  certified?: SpiffeId | undefined;
  /** Names of the files in problems, when they differ from istioctl's. */
  paths?: Readonly<Partial<Record<MembershipFile, string>>>;
}

/**
 * Reads the texts by file name; undefined is a missing file. Gives the membership, or all problems in the order of
 * the files.
 */
export function readMembership(
  texts: Partial<Record<MembershipFile, string | undefined>>,
  { now, certified, paths = {} }: MembershipOptions,
): { membership: Membership } | { problems: Problem[] } {
  const problems: Problem[] = [];
  const nameOf = (file: MembershipFile) => paths[file] ?? file;
  for (const file of MEMBERSHIP_FILES) {
    if (texts[file] === undefined && file !== "istio-token")
      problems.push({ file: nameOf(file), reason: "is missing: copy it from where istioctl wrote it" });
  }
  const env = parseClusterEnv(texts["cluster.env"] ?? "", nameOf("cluster.env"), problems);
  const mesh = readMesh(texts["mesh.yaml"], nameOf("mesh.yaml"), problems);
  // cluster.env wins over mesh.yaml: it is the file that administrators edit.
  const values = new Fields(
    new Map([...mesh.metadata, ...env]),
    nameOf("cluster.env"),
    problems,
    texts["cluster.env"] !== undefined,
  );

  const namespace = values.name("ISTIO_NAMESPACE", isNamespace, env.get("POD_NAMESPACE"));
  const podNamespace = env.get("POD_NAMESPACE");
  if (podNamespace !== undefined && namespace !== "" && podNamespace !== namespace)
    values.wrong("POD_NAMESPACE", `is ${podNamespace}, but ISTIO_NAMESPACE is ${namespace}`);
  const id: SpiffeId = {
    trustDomain: values.trustDomain("TRUST_DOMAIN"),
    namespace,
    serviceAccount: values.name("SERVICE_ACCOUNT", isObjectName),
  };
  const labels = values.labels(LABELS);
  const clusterId = values.required("ISTIO_META_CLUSTER_ID");
  const serviceIp = values.address("ISTIO_SVC_IP");
  const ports = values.list("ISTIO_META_POD_PORTS");
  const workloadName = values.optional("ISTIO_META_WORKLOAD_NAME");
  const group = values.optional("ISTIO_META_AUTO_REGISTER_GROUP");
  const metadata = values.metadata();
  const ca = values.target("CA_ADDR") ?? mesh.istiod;
  const roots = readRoots(texts["root-cert.pem"], nameOf("root-cert.pem"), problems);
  const proven = certified?.namespace === id.namespace && certified.serviceAccount === id.serviceAccount;
  const token = readTokenText(texts["istio-token"], id, {
    now,
    proven,
    file: nameOf("istio-token"),
    problems,
  });
  const hosts = readHosts(texts.hosts ?? "", nameOf("hosts"), problems);
  if (problems.length > 0 || !mesh.istiod || !ca) return { problems };

  const name = values.get("POD_NAME");
  return {
    membership: {
      id,
      istiod: mesh.istiod,
      ca,
      hosts,
      roots,
      token,
      clusterId,
      network: values.get(`${META}NETWORK`),
      meshId: values.get(`${META}MESH_ID`),
      labels,
      ...(workloadName ? { workloadName } : {}),
      ...(group ? { autoRegisterGroup: group } : {}),
      ...(serviceIp === undefined ? {} : { serviceIp }),
      ...(ports === undefined ? {} : { ports }),
      ...(mesh.probe === undefined ? {} : { readinessProbe: mesh.probe }),
      probeLocalhost: values.get("REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION") === "true",
      ...(name ? { name } : {}),
      metadata,
    },
  };
}

/** Formats a problem as one line. */
export function formatProblem({ file, field, reason }: Problem): string {
  return field === undefined ? `${file} ${reason}` : `${file}: ${field} ${reason}`;
}

/** Reads fields of cluster.env and collects their problems. */
class Fields {
  readonly #values: ReadonlyMap<string, string>;
  readonly #file: string;
  readonly #problems: Problem[];
  /** A missing file is one problem, not one for each field. */
  readonly #present: boolean;

  constructor(values: ReadonlyMap<string, string>, file: string, problems: Problem[], present: boolean) {
    this.#values = values;
    this.#file = file;
    this.#problems = problems;
    this.#present = present;
  }

  wrong(field: string, reason: string): void {
    if (this.#present) this.#problems.push({ file: this.#file, field, reason });
  }

  get(field: string): string {
    return this.#values.get(field) ?? "";
  }

  required(field: string): string {
    const value = this.get(field);
    if (value === "") this.wrong(field, this.#values.has(field) ? "is empty" : "is missing");
    return value;
  }

  name(field: string, fits: (name: string) => boolean, otherwise?: string): string {
    const value = this.get(field) || (otherwise ?? this.required(field));
    if (value !== "" && !fits(value)) this.wrong(field, `is not a Kubernetes name: "${value}"`);
    return value;
  }

  /** An object's name, or "". */
  optional(field: string): string {
    return this.name(field, isObjectName, "");
  }

  trustDomain(field: string): string {
    const value = this.get(field) || "cluster.local";
    if (!isTrustDomain(value)) this.wrong(field, `is not a trust domain: "${value}"`);
    return value;
  }

  address(field: string): string | undefined {
    const value = this.get(field);
    if (value === "") return undefined;
    const address = canonicalAddress(value);
    if (address === undefined) this.wrong(field, `is not an IP address: "${value}"`);
    return address;
  }

  target(field: string): Target | undefined {
    const value = this.get(field);
    return value === ""
      ? undefined
      : targetOf(value, () => this.wrong(field, `is not HOST:PORT: "${value}"`));
  }

  labels(field: string): Record<string, string> {
    const value = this.get(field);
    if (value === "") return {};
    const labels = jsonOf(value);
    if (isObject(labels) && Object.values(labels).every((each) => typeof each === "string"))
      return Object.fromEntries(Object.entries(labels).map(([key, each]) => [key, String(each)]));
    this.wrong(field, "is not a JSON object of texts");
    return {};
  }

  list(field: string): readonly Json[] | undefined {
    const value = this.get(field);
    if (value === "") return undefined;
    const list = jsonOf(value);
    if (Array.isArray(list)) return list;
    this.wrong(field, "is not a JSON list");
    return undefined;
  }

  metadata(): Record<string, Json> {
    const found: [string, Json][] = [];
    for (const [field, value] of this.#values) {
      if (field.startsWith(META)) found.push([field.slice(META.length), value]);
      else if (field.startsWith(META_JSON) && field !== LABELS) {
        const members = jsonOf(value);
        if (isObject(members)) found.push(...(Object.entries(members) as [string, Json][]));
        else this.wrong(field, "is not a JSON object");
      }
    }
    return Object.fromEntries(found.filter(([key]) => !DECIDED_METADATA.has(key)));
  }
}

interface MeshFile {
  istiod?: Target;
  metadata: Map<string, string>;
  probe?: { readonly [key: string]: Json };
}

function readMesh(text: string | undefined, file: string, problems: Problem[]): MeshFile {
  const result: MeshFile = { metadata: new Map() };
  if (text === undefined) return result;
  let content: unknown;
  try {
    content = parseYaml(text);
  } catch (error) {
    const [line = ""] = reasonOf(error).split("\n");
    problems.push({ file, reason: `is no YAML: ${line.replace(/:$/, "")}` });
    return result;
  }
  const config = isObject(content) ? content.defaultConfig : undefined;
  if (!isObject(config)) {
    problems.push({ file, field: "defaultConfig", reason: "is missing" });
    return result;
  }
  const { discoveryAddress: address, proxyMetadata: metadata, readinessProbe: probe } = config;
  const field = "defaultConfig.discoveryAddress";
  if (typeof address !== "string") problems.push({ file, field, reason: "is missing" });
  else {
    const istiod = targetOf(address, () =>
      problems.push({ file, field, reason: `is not HOST:PORT: "${address}"` }),
    );
    if (istiod) result.istiod = istiod;
  }
  if (isObject(metadata)) {
    for (const [key, value] of Object.entries(metadata)) {
      if (typeof value === "string") result.metadata.set(key, value);
      else
        problems.push({
          file,
          field: `defaultConfig.proxyMetadata.${key}`,
          reason: "is not a text: quote it",
        });
    }
  } else if (metadata !== undefined && metadata !== null)
    problems.push({ file, field: "defaultConfig.proxyMetadata", reason: "is no mapping of keys to values" });
  if (probe !== undefined && probe !== null) {
    const reason = faultOfProbe(probe);
    if (reason === undefined) result.probe = probe as { readonly [key: string]: Json };
    else problems.push({ file, field: "defaultConfig.readinessProbe", reason });
  }
  return result;
}

function readRoots(text: string | undefined, file: string, problems: Problem[]): string {
  if (text === undefined) return "";
  const reason = faultOfRoots(text);
  if (reason !== undefined) problems.push({ file, reason });
  // Only the certificates are kept: the file may also hold a private key.
  return pemBlocks(text)
    .map((block) => `${block}\n`)
    .join("");
}

/**
 * Why a text is no list of root certificates, as the end of a sentence that begins with the file's name; undefined
 * when it is one.
 */
export function faultOfRoots(text: string): string | undefined {
  const blocks = pemBlocks(text);
  if (blocks.length === 0) return "holds no PEM certificate";
  for (const [i, block] of blocks.entries()) {
    try {
      new X509Certificate(block);
    } catch {
      return `holds a certificate that can't be read (number ${i + 1})`;
    }
  }
  return undefined;
}

/** The token, or "". */
function readTokenText(
  text: string | undefined,
  id: SpiffeId,
  at: { now: number; proven: boolean; file: string; problems: Problem[] },
): string {
  const { now, proven, file, problems } = at;
  const known = id.namespace !== "" && id.serviceAccount !== "";
  const next = known ? `: ${freshTokenCommand(id, file)} writes a fresh one` : "";
  if (text === undefined) {
    if (!proven)
      problems.push({ file, reason: `is missing${next || ": copy it from where istioctl wrote it"}` });
    return "";
  }
  const token = text.trim();
  if (proven && (token === "" || isExpired(token, now))) return "";
  // Without namespace and service account the owner can't be checked. Their absence is reported elsewhere.
  const fault = token === "" ? "it is empty" : known ? faultOfToken(token, id, now) : undefined;
  if (fault !== undefined) problems.push({ file, reason: `can't be used, for ${fault}${next}` });
  return token;
}

function readHosts(text: string, file: string, problems: Problem[]): Map<string, string[]> {
  const hosts = new Map<string, string[]>();
  for (const [i, line] of text.split(/\r?\n/).entries()) {
    const [address = "", ...names] = line.replace(/#.*/, "").trim().split(/\s+/);
    if (address === "") continue;
    // istioctl writes the DNS name of a gateway whose load balancer has no address.
    const canonical = parseDialled(address);
    if (canonical === undefined || names.length === 0) {
      problems.push({ file, field: `line ${i + 1}`, reason: "is not ADDRESS NAME" });
      continue;
    }
    for (const name of names) {
      const list = [...new Set([...(hosts.get(name) ?? []), canonical])];
      if (isDialledList(list)) hosts.set(name, list);
      else problems.push({ file, field: `line ${i + 1}`, reason: `gives ${name} a DNS name beside others` });
    }
  }
  return hosts;
}

function targetOf(text: string, wrong: () => void): Target | undefined {
  try {
    return parseTarget(text);
  } catch {
    wrong();
    return undefined;
  }
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
