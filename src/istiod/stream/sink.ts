/** Short names of the types, in the order in which one push is applied. */
export type ResourceType = "cluster" | "endpoints" | "listener" | "route" | "names";

/** What receives istiod's resources. The stream knows nothing of their content; this knows nothing of streams. */
export interface ResourceSink {
  /**
   * Decodes and stores one new or changed resource (the bytes of Any.value). `bytes` is only valid during the
   * call: keep nothing of it. Throws MalformedResource when it can't be decoded or breaks its own rules: the
   * stream NACKs with that name and reason, and the resource stored before stays.
   */
  upsert(type: ResourceType, name: string, bytes: Uint8Array): void;
  /**
   * istiod removed it, or no longer has it at the end of a reconnect's first complete response, or (endpoints and
   * routes) it left `wanted` and is no longer subscribed to.
   */
  remove(type: ResourceType, name: string): void;
  /**
   * The names to subscribe to, by type, after what was stored so far: endpoints = service names of EDS clusters
   * (eds_cluster_config.service_name or the cluster's name), route = RDS names of listeners.
   */
  wanted(type: "endpoints" | "route"): ReadonlySet<string>;
  /**
   * One push is complete: everything stored since the last commit becomes visible at once. `first` marks the first
   * complete snapshot of this process.
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
