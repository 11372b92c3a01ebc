import type { ResourceType } from "./sink.ts";

/** What kmesh subscribes to. */
export type Mode = "kernel-native" | "dual-engine";
export const MODES: readonly Mode[] = ["kernel-native", "dual-engine"];

/** The types of each mode, in the order in which they are subscribed to. The first one announces the node. */
export const SUBSCRIBED: Readonly<Record<Mode, readonly ResourceType[]>> = {
  "kernel-native": ["cluster", "endpoints", "listener", "route", "names"],
  "dual-engine": ["authorization", "address", "endpoints", "names"],
};

/** The types without which the first push of a process is not complete: it replaces what an earlier process left. */
export const REQUIRED: Readonly<Record<Mode, readonly ResourceType[]>> = {
  "kernel-native": ["cluster", "listener"],
  "dual-engine": ["authorization", "address"],
};

/** Every type. */
export const TYPES: readonly ResourceType[] = [
  "cluster",
  "endpoints",
  "listener",
  "route",
  "names",
  "authorization",
  "address",
];

/** The type URL of each type. */
export const TYPE_URL: Readonly<Record<ResourceType, string>> = {
  cluster: "type.googleapis.com/envoy.config.cluster.v3.Cluster",
  endpoints: "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
  listener: "type.googleapis.com/envoy.config.listener.v3.Listener",
  route: "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
  names: "type.googleapis.com/istio.networking.nds.v1.NameTable",
  address: "type.googleapis.com/istio.workload.Address",
  authorization: "type.googleapis.com/istio.security.Authorization",
};

/** Types of which istiod sends all resources. The others are subscribed to by name. */
export type WildcardType = Exclude<ResourceType, "endpoints" | "route">;

/** Whether istiod sends all resources of this type without a subscription by name. */
export function isWildcard(type: ResourceType): type is WildcardType {
  return type !== "endpoints" && type !== "route";
}

const BY_URL = new Map(TYPES.map((type) => [TYPE_URL[type], type]));

/** The type of a URL; undefined when kmesh does not subscribe to that type. */
export function typeOfUrl(url: string): ResourceType | undefined {
  return BY_URL.get(url);
}
