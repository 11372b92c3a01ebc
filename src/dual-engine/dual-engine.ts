/**
 * Dual-engine mode: compiles services, workloads and policies of istiod's workload API into the mesh that the data path
 * publishes.
 */
import type { ResourceSink, ResourceType } from "../istiod/stream/sink.ts";
import { type Lookup, Resolver } from "../kernel-native/resolver.ts";
import type { Excluded } from "../kernel-native/unreachable.ts";
import type { Changes, Mesh } from "../mesh/model.ts";
import type { WorkloadIndex } from "../mesh/workload.ts";
import { Compiler, type CompilerOptions } from "./compile.ts";
import type { CompiledInbound } from "./inbound.ts";
import type { WorkloadRecord } from "./records/records.ts";
import { waypointsOf } from "./records/waypoints.ts";
import { Store } from "./store/store.ts";

export interface DualEngineOptions extends CompilerOptions {
  /**
   * The machine's addresses, canonical; the name of its WorkloadEntry when istiod registers it; whether that entry has labels.
   */
  self: { addresses: readonly string[]; entry?: string; labelled?: boolean };
  /**
   * Called with the mesh after each change, and the difference. The mesh is one object, changed in place: copy what
   * must outlive the call.
   */
  publish(mesh: Mesh, changes: Changes): void;
  /** istiod has no ambient mode; called after each push until it has. */
  lacking?(): void;
  /** Destinations that the operator excludes. Frontends there get a note. */
  excluded?: readonly Excluded[];
  /** Records the workload of each endpoint. */
  workloads?: WorkloadIndex;
  /** Looks up names of workloads without addresses; `systemLookup` by default. */
  lookup?: Lookup;
}

/** The engine in numbers. */
export interface DualEngineStatus {
  services: number;
  workloads: number;
  /** Waypoints that services go through. */
  waypoints: { name: string; services: number }[];
  policies: number;
  /** istiod answered without any service or workload: it runs without PILOT_ENABLE_AMBIENT. */
  ambientLacking: boolean;
  /** The uid of this machine's own workload. */
  own?: string;
  /** Policies that it names and istiod has not sent. */
  unknownPolicies: readonly string[];
  /** Policies of dry run that would govern it. */
  dryRun: readonly string[];
}

/** The sink of the istiod stream in dual-engine mode. Owns the resolver; `close` stops it. */
export class DualEngine implements ResourceSink {
  readonly #store: Store;
  readonly #compiler: Compiler;
  readonly #resolver: Resolver;
  readonly #publish: DualEngineOptions["publish"];
  readonly #tell: (() => void) | undefined;
  #published = false;
  #lacking = false;

  constructor(options: DualEngineOptions) {
    const { namespace, here, self, workloads, lookup } = options;
    this.#publish = options.publish;
    this.#tell = options.lacking?.bind(options);
    const entry = self.entry === undefined ? undefined : `/WorkloadEntry/${namespace}/${self.entry}`;
    this.#store = new Store(
      { entry, namespace, network: here.network, addresses: new Set(self.addresses) },
      workloads,
      options.tunnel,
    );
    this.#resolver = new Resolver({
      ...(lookup ? { lookup } : {}),
      changed: (hosts) => this.#resolved(hosts),
    });
    this.#compiler = new Compiler(this.#store, this.#resolver, options);
    this.#compiler.exclude(options.excluded ?? []);
  }

  upsert(type: ResourceType, name: string, bytes: Uint8Array): void {
    this.#store.upsert(type, name, bytes);
  }

  remove(type: ResourceType, name: string): void {
    this.#store.remove(type, name);
  }

  /** Endpoints of services whose peers may have a sidecar, where a tunnel carries its mutual TLS. Of no other type. */
  wanted(type: "endpoints" | "route"): ReadonlySet<string> {
    return (type === "endpoints" && this.#store.sidecars?.wanted()) || NOTHING;
  }

  /** The machine's own workload names other policies than before, and what they say has not come yet. */
  get awaitsPolicies(): boolean {
    return this.#store.awaitsPolicies;
  }

  /**
   * An istiod without ambient answers with nothing at all. That is no mesh without services (there is istiod's own): what the
   * kernel holds stays.
   */
  commit(): void {
    this.#lacking = !this.#published && this.#store.services.size === 0 && this.#store.workloads.size === 0;
    if (this.#lacking) this.#tell?.();
    if (this.#lacking || (this.#published && !this.#store.isDirty)) return;
    this.#compile();
  }

  /** The mesh as it was published last. */
  get mesh(): Mesh {
    return this.#compiler.mesh;
  }

  /** Who may connect to this machine; undefined when istiod has no workload of it. */
  get inbound(): CompiledInbound | undefined {
    return this.#compiler.inbound;
  }

  /** This machine's own workload. */
  get own(): WorkloadRecord | undefined {
    return this.#store.own;
  }

  /**
   * The services (`HOST:PORT`, sorted) that this machine is an endpoint of, by how peers reach it. Whether sidecars send mutual
   * TLS to a workload that takes HBONE or nothing is not known. Undefined while istiod has no workload of this machine.
   */
  get peers(): { plaintext: string[]; mtls?: string[]; hbone: string[] } | undefined {
    const { own } = this.#store;
    if (!own) return undefined;
    const services = own.bindings.flatMap(({ service, ports }) => {
      const host = this.#store.services.get(service)?.host;
      return host === undefined ? [] : ports.map(({ service: port }) => `${host}:${port}`);
    });
    const sorted = [...new Set(services)].sort();
    const { tunnel } = own.profile;
    const of = (fits: boolean) => (fits ? sorted : []);
    return {
      plaintext: of(tunnel === "none"),
      ...(tunnel === "istio" ? { mtls: sorted } : {}),
      hbone: of(tunnel === "hbone"),
    };
  }

  status(): DualEngineStatus {
    const { services, workloads, authorizations, own } = this.#store;
    const waypoints = new Map<string, number>();
    for (const record of services.values()) {
      for (const { gateway } of waypointsOf(record)) {
        const { destination } = gateway;
        const name = typeof destination === "string" ? destination : destination.address;
        waypoints.set(name, (waypoints.get(name) ?? 0) + 1);
      }
    }
    return {
      services: services.size,
      workloads: workloads.size,
      waypoints: [...waypoints].map(([name, count]) => ({ name, services: count })),
      policies: authorizations.size,
      ambientLacking: this.#lacking,
      ...(own ? { own: own.uid } : {}),
      unknownPolicies: this.#compiler.inbound?.unknown ?? [],
      dryRun: this.#compiler.inbound?.dryRun ?? [],
    };
  }

  /** The resources as plain objects, for `kmesh dump`. */
  describe(): Record<string, unknown> {
    const { services, workloads, authorizations, names } = this.#store;
    return {
      services: [...services.values()],
      workloads: Array.from(workloads.values(), (each) => each.copy()),
      authorizations: [...authorizations.values()],
      names: Object.fromEntries(names.addresses),
    };
  }

  /** Sets the excluded destinations, and publishes the notes that change by it. */
  exclude(excluded: readonly Excluded[]): void {
    this.#compiler.exclude(excluded);
    // An incomplete push must not be published: this change goes live with it.
    const isReceiving = this.#store.isDirty;
    this.#store.touchAll();
    if (this.#published && !isReceiving) this.#compile();
  }

  /** Stops looking up names. */
  close(): void {
    this.#resolver.close();
  }

  #resolved(hosts: ReadonlySet<string>): void {
    if (!this.#published) return;
    const isReceiving = this.#store.isDirty;
    this.#store.touch(this.#compiler.servicesResolving(hosts));
    if (!isReceiving && this.#store.isDirty) this.#compile();
  }

  #compile(): void {
    const { changes, whole } = this.#compiler.compile(this.#store.takeDirty());
    const first = !this.#published;
    this.#published = true;
    const { services, frontends, splits, clusters, names } = changes;
    const size = services.size + frontends.size + splits.size + clusters.size + names.size;
    if (!first && !whole && size === 0) return;
    this.#publish(this.#compiler.mesh, first ? { everything: true } : changes);
  }
}

const NOTHING: ReadonlySet<string> = new Set();
