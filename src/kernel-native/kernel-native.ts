/**
 * Kernel-native mode: compiles istiod's listeners, routes, clusters and endpoints into the mesh that the data path
 * publishes.
 */
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
  /** `kmesh tunnel` carries what needs TLS, HBONE or the PROXY protocol. Default false. */
  tunnel?: boolean;
  /** The machine's: services of the same one are known by their short names, too. Default "default". */
  namespace?: string;
  /**
   * Called with the mesh after each change, and the difference. The mesh is one object, changed in place: copy what
   * must outlive the call.
   */
  publish(mesh: Mesh, changes: Changes): void;
  /** Destinations that the operator excludes. Frontends there get a note. */
  excluded?: readonly Excluded[];
  /** Records the workload of each endpoint. */
  workloads?: WorkloadIndex;
  /** Looks up names of DNS clusters; `systemLookup` by default. */
  lookup?: Lookup;
}

/** The sink of the istiod stream in kernel-native mode. Owns the resolver; `close` stops it. */
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
      tunnel: options.tunnel ?? false,
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

  /** The flattened resources as plain objects, for `kmesh dump`. */
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

  /** Sets the excluded destinations, and publishes the notes that change by it. */
  exclude(excluded: readonly Excluded[]): void {
    this.#compiler.exclude(excluded);
    // An incomplete push must not be published: this change goes live with it.
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
    // An incomplete push must not be published: the resolved addresses go live with it.
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
