/** Kernel-native mode: istiod's listeners, routes, clusters and endpoints become the mesh that the data path holds. */
import type { ResourceSink, ResourceType } from "../istiod/stream/sink.ts";
import type { Changes, Mesh } from "../mesh/model.ts";
import type { WorkloadIndex } from "../mesh/workload.ts";
import { Compiler } from "./compile.ts";
import { type Lookup, Resolver } from "./resolver.ts";
import { Store } from "./store.ts";
import type { Excluded } from "./unreachable.ts";

export interface KernelNativeOptions {
  /** Send plaintext where the configuration demands TLS, instead of refusing. */
  allowPlaintext: boolean;
  /** The machine's: services of the same one are known by their short names, too. Default "default". */
  namespace?: string;
  /**
   * Gets the mesh whenever it differs, and what of it does. It is one object for the life of this, changed in
   * place: what has to outlive the call must be copied.
   */
  publish(mesh: Mesh, changes: Changes): void;
  /** Destinations that are never governed by the operator's will: frontends there are listed. */
  excluded?: readonly Excluded[];
  /** Is told which workload each endpoint is one of. */
  workloads?: WorkloadIndex;
  /** How names of DNS clusters are looked up; the machine's way by default. */
  lookup?: Lookup;
}

export class KernelNative implements ResourceSink {
  readonly #store: Store;
  readonly #compiler: Compiler;
  readonly #resolver: Resolver;
  readonly #publish: KernelNativeOptions["publish"];
  #published = false;

  constructor(options: KernelNativeOptions) {
    this.#publish = options.publish;
    this.#store = new Store({
      allowPlaintext: options.allowPlaintext,
      ...(options.workloads ? { workloads: options.workloads } : {}),
    });
    this.#resolver = new Resolver({
      ...(options.lookup ? { lookup: options.lookup } : {}),
      changed: (hosts) => this.#resolved(hosts),
    });
    this.#compiler = new Compiler(this.#store, this.#resolver, options.namespace);
    this.#compiler.exclude(options.excluded ?? []);
  }

  upsert(type: ResourceType, name: string, bytes: Uint8Array): void {
    this.#store.upsert(type, name, bytes);
  }

  remove(type: ResourceType, name: string): void {
    this.#store.remove(type, name);
  }

  wanted(type: "endpoints" | "route"): ReadonlySet<string> {
    return this.#store.wanted(type);
  }

  commit(): void {
    if (this.#published && !this.#store.isDirty) return;
    this.#compile();
  }

  /** The mesh as it was published last. */
  get mesh(): Mesh {
    return this.#compiler.mesh;
  }

  /** What istiod sent, flattened, for people: plain objects. */
  describe(): Record<string, unknown> {
    const { clusters, endpoints, listeners, routes, names } = this.#store;
    return {
      listeners: [...listeners.values()],
      routes: Object.fromEntries([...routes].map(([name, { hosts }]) => [name, hosts])),
      clusters: [...clusters.values()],
      endpoints: Object.fromEntries(endpoints),
      names: Object.fromEntries(names.addresses),
    };
  }

  /** Other destinations are excluded from now on: publishes what differs by it, remarks alone. */
  exclude(excluded: readonly Excluded[]): void {
    this.#compiler.exclude(excluded);
    // Half a push must not be seen: it goes live with the rest.
    const isReceiving = this.#store.isDirty;
    this.#store.touchFrontends();
    if (this.#published && !isReceiving) this.#compile();
  }

  /** Stops looking up names. */
  close(): void {
    this.#resolver.close();
  }

  #resolved(hosts: ReadonlySet<string>): void {
    if (!this.#published) return;
    const clusters = this.#compiler.clustersResolving(hosts);
    if (clusters.size === 0) return;
    // Half a push must not be seen: what names gave goes live with the rest of it.
    if (this.#store.isDirty) this.#store.touch(clusters);
    else this.#compile(clusters);
  }

  #compile(resolved: ReadonlySet<string> = new Set()): void {
    const dirty = this.#store.takeDirty();
    for (const cluster of resolved) dirty.clusters.add(cluster);
    const { changes, whole, pending } = this.#compiler.compile(dirty);
    const first = !this.#published;
    this.#published = true;
    const { services, frontends, splits, clusters, names } = changes;
    if (
      !first &&
      !whole &&
      !pending &&
      services.size + frontends.size + splits.size + clusters.size + names.size === 0
    )
      return;
    this.#publish(this.#compiler.mesh, first || pending ? { everything: true } : changes);
  }
}
