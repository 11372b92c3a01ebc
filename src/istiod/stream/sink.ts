/** Short names of the resource types. */
export type ResourceType =
  | "cluster"
  | "endpoints"
  | "listener"
  | "route"
  | "names"
  /** istio.workload.Address: a service or a workload. */
  | "address"
  /** istio.security.Authorization */
  | "authorization";

/** The receiver of istiod's resources. The stream does not know their content; the sink does not know the stream. */
export interface ResourceSink {
  /**
   * Decodes and stores one new or changed resource (the bytes of Any.value). `bytes` is valid during the call only.
   * Throws MalformedResource when the resource can't be decoded or contradicts itself. The stream then sends a NACK
   * with that name and reason, and the resource stored before stays.
   */
  upsert(type: ResourceType, name: string, bytes: Uint8Array): void;
  /**
   * Removes a resource: istiod removed it, the first complete response of a new stream lacks it, or (endpoints and
   * routes) it is no longer in `wanted` and kmesh has unsubscribed from it.
   */
  remove(type: ResourceType, name: string): void;
  /**
   * The names to subscribe to, given the resources stored so far. endpoints: service names of EDS clusters
   * (eds_cluster_config.service_name or the cluster's name). route: RDS names of listeners.
   */
  wanted(type: "endpoints" | "route"): ReadonlySet<string>;
  /**
   * Whether what is stored refers to policies of which this push has more to say: istiod sends the workload before the policies
   * that it names. The push then waits for a response with policies, for some seconds.
   */
  readonly awaitsPolicies?: boolean;
  /**
   * A push is complete: publish all changes since the last commit at once. `first` marks the first complete snapshot
   * of this process.
   */
  commit(push: { version: string; first: boolean }): void;
}

/** A resource that can't be decoded or contradicts itself. Becomes a NACK. */
export class MalformedResource extends Error {
  readonly resource: string;
  readonly reason: string;

  constructor(resource: string, reason: string) {
    super(`${resource}: ${reason}`);
    this.name = "MalformedResource";
    this.resource = resource;
    this.reason = reason;
  }
}
