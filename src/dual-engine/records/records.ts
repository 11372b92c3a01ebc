/** Services and workloads of the workload API as the store holds them: flat, checked, and shared where many are equal. */

/** An address in one network. Networks may use the same addresses. */
export interface NetworkAddress {
  network: string;
  /** Canonical. */
  address: string;
}

/** A waypoint, or a gateway to another network. */
export interface Gateway {
  /** The resource name of its service, NAMESPACE/HOSTNAME; or its address. */
  destination: string | NetworkAddress;
  /** The TCP port on which it speaks HBONE. */
  port: number;
}

/** How peers carry connections to a workload. */
export const TUNNELS = ["none", "hbone", "istio"] as const;
export type Tunnel = (typeof TUNNELS)[number];

export const SCOPES = ["unspecified", "region", "zone", "subzone", "node", "cluster", "network"] as const;
export type Scope = (typeof SCOPES)[number];

export const MODES = ["unspecified", "strict", "failover", "passthrough"] as const;
export type LoadBalancingMode = (typeof MODES)[number];

/** Where something runs. */
export interface Place {
  network: string;
  region: string;
  zone: string;
  subzone: string;
  node: string;
  cluster: string;
}

/** What the workloads of a deployment have in common: one object for thousands of them. */
export interface Profile extends Place {
  namespace: string;
  trustDomain: string;
  serviceAccount: string;
  tunnel: Tunnel;
  waypoint: Gateway | undefined;
  /** The gateway of the workload's network. */
  gateway: Gateway | undefined;
  hostNetwork: boolean;
  /** Names of the policies that select it, besides those of its namespace and the mesh. */
  policies: readonly string[];
}

/** A workload's ports in one service. Shared by the workloads with the same ports there. */
export interface Binding {
  /** The service's resource name. */
  service: string;
  /** By the service's port, the workload's. */
  ports: readonly { service: number; target: number }[];
}

export interface WorkloadRecord {
  readonly uid: string;
  /** Canonical. */
  readonly addresses: readonly string[];
  /** Resolved when there is no address; else "". */
  readonly hostname: string;
  readonly healthy: boolean;
  /** 1 unless the resource says otherwise. */
  readonly weight: number;
  readonly profile: Profile;
  readonly bindings: readonly Binding[];
}

/** A service's address: one, or a block when `length` is present (bits of its own family). */
export interface ServiceAddress extends NetworkAddress {
  length: number | undefined;
}

export interface ServiceRecord {
  /** The resource name, NAMESPACE/HOSTNAME. */
  key: string;
  namespace: string;
  host: string;
  addresses: readonly ServiceAddress[];
  /** `target` is 0 when only each workload knows it. */
  ports: readonly { port: number; target: number }[];
  /** Identities that its peers may have besides their own. */
  sans: readonly string[];
  waypoint: Gateway | undefined;
  weightedWaypoints: readonly { gateway: Gateway; weight: number }[];
  mode: LoadBalancingMode;
  scopes: readonly Scope[];
  /** Unhealthy workloads are endpoints, too. */
  allowUnhealthy: boolean;
  canonical: boolean;
  /** Machines of other namespaces don't see it. */
  isPrivate: boolean;
}

/** A text that is equal for equal destinations: the key of what depends on a gateway. */
export function destinationKey(destination: Gateway["destination"]): string {
  return typeof destination === "string" ? destination : addressKey(destination);
}

export function addressKey({ network, address }: NetworkAddress): string {
  return `${network} ${address}`;
}
