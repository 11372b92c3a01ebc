import type { ResourceType } from "./sink.ts";

/** Every type, in the order in which a push is applied. */
export const TYPES: readonly ResourceType[] = ["cluster", "endpoints", "listener", "route", "names"];

/** The type URL of each type. */
export const TYPE_URL: Readonly<Record<ResourceType, string>> = {
  cluster: "type.googleapis.com/envoy.config.cluster.v3.Cluster",
  endpoints: "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
  listener: "type.googleapis.com/envoy.config.listener.v3.Listener",
  route: "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
  names: "type.googleapis.com/istio.networking.nds.v1.NameTable",
};

/** Types of which istiod sends all resources. The others are subscribed to by name. */
export type WildcardType = "cluster" | "listener" | "names";

/** Whether istiod sends all resources of this type without a subscription by name. */
export function isWildcard(type: ResourceType): type is WildcardType {
  return type !== "endpoints" && type !== "route";
}

const BY_URL = new Map(TYPES.map((type) => [TYPE_URL[type], type]));

/** The type of a URL; undefined when kmesh does not subscribe to that type. */
export function typeOfUrl(url: string): ResourceType | undefined {
  return BY_URL.get(url);
}
