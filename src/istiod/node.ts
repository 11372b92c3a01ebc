/**
 * The node id and metadata that kmesh sends to istiod. The value types are istiod's (pkg/model/node.go): lists are
 * joined by commas, booleans are the strings "true" and "false". A bare boolean makes istiod close the stream.
 */
import { canonicalAddress } from "../mesh/address.ts";
import type { discovery } from "./discovery.gen.js";

/** The istiod that kmesh is tested against. Without a version istiod assumes the newest. */
const ISTIO_VERSION = "1.32.0";

/** Metadata keys that have their own setting or that kmesh decides. `metadata` can't set them. */
export const DECIDED_METADATA: ReadonlySet<string> = new Set([
  "AUTO_REGISTER_GROUP",
  "CLUSTER_ID",
  "DISABLE_HBONE_SEND",
  "DNS_CAPTURE",
  "ENABLE_HBONE",
  "GENERATOR",
  "INSTANCE_IPS",
  "INTERCEPTION_MODE",
  "ISTIO_VERSION",
  "LABELS",
  "MESH_ID",
  "NAME",
  "NAMESPACE",
  "NETWORK",
  "POD_PORTS",
  "PROXY_CONFIG",
  "SERVICE_ACCOUNT",
  "WORKLOAD_ENTRY",
  "WORKLOAD_NAME",
]);

/** In which ways peers can reach this machine through the tunnel. */
export interface TunnelReach {
  /** HBONE, at port 15008. */
  hbone: boolean;
  /** A sidecar's mutual TLS, at the ports of the services. */
  mtls: boolean;
}

export const UNREACHED: TunnelReach = { hbone: false, mtls: false };

export function isSameReach(one: TunnelReach, other: TunnelReach): boolean {
  return one.hbone === other.hbone && one.mtls === other.mtls;
}

/**
 * Whether sidecars send mutual TLS or plaintext to a WorkloadEntry. Without this label istiod marks the endpoints of entries
 * with a service account as mTLS, and all entries that istiod makes have one.
 */
export const TLS_LABEL = "security.istio.io/tlsMode";
/** Peers send HBONE to a WorkloadEntry whose label has the value `http`. istiod sets it for a node with ENABLE_HBONE. */
export const TUNNEL_LABEL = "networking.istio.io/tunnel";

export interface Locality {
  region: string;
  zone: string;
  subzone: string;
}

/** A JSON value. */
export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };

export interface Identity {
  /** The machine's addresses, the main one first. Only those that usableAddresses keeps are sent to istiod. */
  ips: readonly string[];
  name: string;
  namespace: string;
  serviceAccount?: string;
  workloadName?: string;
  labels?: Readonly<Record<string, string>>;
  clusterId?: string;
  network?: string;
  meshId?: string;
  /** The WorkloadGroup with which istiod registers this machine while it is connected. */
  autoRegisterGroup?: string;
  /** The existing WorkloadEntry of this machine. */
  workloadEntry?: string;
  /** The ports of the workload, as JSON text: istiod expects a string. */
  podPorts?: string;
  /** The part of the proxy's configuration that istiod reads. */
  proxyConfig?: Json;
  locality?: Locality;
  /** The tunnel reaches peers by HBONE. */
  sendsHbone?: boolean;
  /** How peers may reach this machine through the tunnel; absent: not at all. */
  reach?: TunnelReach;
  /** The version of kmesh. */
  version?: string;
  /** Further metadata. The fields above win over it. */
  metadata?: Readonly<Record<string, Json>>;
}

/** `sidecar~IP~NAME.NAMESPACE~NAMESPACE.svc.cluster.local` */
export function nodeId(identity: Identity): string {
  const { name, namespace } = identity;
  return `sidecar~${usableAddresses(identity.ips)[0] ?? ""}~${name}.${namespace}~${namespace}.svc.cluster.local`;
}

/**
 * The Node message (envoy.config.core.v3.Node). Throws an Error with the next step when the identity has no usable
 * address, or no usable name or namespace.
 */
export function nodeOf(identity: Identity): discovery.Node.$Properties {
  check(identity);
  const metadata: Record<string, discovery.Value.$Properties> = {
    ...Object.fromEntries(Object.entries(identity.metadata ?? {}).map(([key, json]) => [key, toValue(json)])),
    NAME: text(identity.name),
    NAMESPACE: text(identity.namespace),
    INSTANCE_IPS: text(usableAddresses(identity.ips).join(",")),
    ISTIO_VERSION: text(ISTIO_VERSION),
    // With DNS_CAPTURE istiod gives every service an address, and no listener on the wildcard address for a service
    // without one.
    DNS_CAPTURE: text("true"),
  };
  // Without the tunnel kmesh does not speak HBONE. Without this key istiod sends ambient endpoints without an address.
  if (!identity.sendsHbone) metadata.DISABLE_HBONE_SEND = text("true");
  if (identity.serviceAccount) metadata.SERVICE_ACCOUNT = text(identity.serviceAccount);
  if (identity.workloadName) metadata.WORKLOAD_NAME = text(identity.workloadName);
  if (identity.clusterId) metadata.CLUSTER_ID = text(identity.clusterId);
  if (identity.network) metadata.NETWORK = text(identity.network);
  if (identity.meshId) metadata.MESH_ID = text(identity.meshId);
  const { hbone, mtls } = identity.reach ?? UNREACHED;
  // Peers stop sending plaintext at once.
  if (hbone) metadata.ENABLE_HBONE = text("true");
  // istiod copies these labels to the entry that it makes, and does not change those of one that exists.
  const labels = identity.autoRegisterGroup
    ? { ...identity.labels, [TLS_LABEL]: mtls ? "istio" : "disabled" }
    : identity.labels;
  if (labels) metadata.LABELS = { structValue: { fields: texts(labels) } };
  if (identity.autoRegisterGroup) metadata.AUTO_REGISTER_GROUP = text(identity.autoRegisterGroup);
  if (identity.workloadEntry) metadata.WORKLOAD_ENTRY = text(identity.workloadEntry);
  if (identity.podPorts) metadata.POD_PORTS = text(identity.podPorts);
  if (identity.proxyConfig !== undefined) metadata.PROXY_CONFIG = toValue(identity.proxyConfig);
  const node: discovery.Node.$Properties = {
    id: nodeId(identity),
    cluster: `${identity.workloadName ?? identity.name}.${identity.namespace}`,
    metadata: { fields: metadata },
    userAgentName: "kmesh",
  };
  if (identity.version) node.userAgentVersion = identity.version;
  if (identity.locality) {
    const { region, zone, subzone } = identity.locality;
    node.locality = { region, zone, subZone: subzone };
  }
  return node;
}

/**
 * The addresses that peers can reach, canonical, in the given order, without duplicates. Leaves out loopback,
 * link-local, multicast and unspecified addresses, 240.0.0.0/4, and texts that are no address.
 */
export function usableAddresses(candidates: Iterable<string>): string[] {
  const usable = new Set<string>();
  for (const candidate of candidates) {
    const address = canonicalAddress(candidate);
    if (address !== undefined && isReachable(address)) usable.add(address);
  }
  return [...usable];
}

/**
 * Parses `REGION`, `REGION/ZONE` or `REGION/ZONE/SUBZONE`. Throws an Error with the expected form for any other text.
 */
export function parseLocality(text: string): Locality {
  const [region = "", zone = "", subzone = "", ...rest] = text.split("/");
  if (region === "" || rest.length > 0 || (zone === "" && subzone !== "")) {
    throw new Error(`"${text}" is not a locality: give REGION/ZONE/SUBZONE, the last two may be left out`);
  }
  return { region, zone, subzone };
}

function isReachable(address: string): boolean {
  if (address.includes(":")) return address !== "::" && address !== "::1" && !/^(fe[89ab]|ff)/.test(address);
  const [first = 0, second = 0] = address.split(".").map(Number);
  return first !== 0 && first !== 127 && first < 224 && !(first === 169 && second === 254);
}

function check(identity: Identity): void {
  if (usableAddresses(identity.ips).length === 0) {
    throw new Error("this machine has no address that peers can reach: give one with --ip");
  }
  for (const [what, value] of [
    ["name", identity.name],
    ["namespace", identity.namespace],
  ] as const) {
    if (value === "" || value.includes("~"))
      throw new Error(`"${value}" can't be the ${what} of this machine`);
  }
}

function text(value: string): discovery.Value.$Properties {
  return { stringValue: value };
}

function texts(values: Readonly<Record<string, string>>): Record<string, discovery.Value.$Properties> {
  return Object.fromEntries(Object.entries(values).map(([key, value]) => [key, text(value)]));
}

function toValue(json: Json): discovery.Value.$Properties {
  if (json === null) return { nullValue: 0 };
  if (typeof json === "boolean") return { boolValue: json };
  if (typeof json === "number") return { numberValue: json };
  if (typeof json === "string") return text(json);
  if (isList(json)) return { listValue: { values: json.map(toValue) } };
  return {
    structValue: {
      fields: Object.fromEntries(Object.entries(json).map(([key, each]) => [key, toValue(each)])),
    },
  };
}

function isList(json: readonly Json[] | { readonly [key: string]: Json }): json is readonly Json[] {
  return Array.isArray(json);
}
