/** Compiles services and workloads into the mesh, each alone when it changed, and finds the difference from before. */

import { applyNames, applyTable } from "../kernel-native/resolvable.ts";
import type { Question, Resolver } from "../kernel-native/resolver.ts";
import { NO_NAMES } from "../kernel-native/resources/names.ts";
import { type Notes, note, sortedNotes } from "../kernel-native/resources/note.ts";
import type { ServiceId } from "../kernel-native/resources/service.ts";
import { type Excluded, unreachable } from "../kernel-native/unreachable.ts";
import { formatMatch, frontendKey } from "../mesh/frontend.ts";
import {
  type Cluster,
  emptyDelta,
  emptyMesh,
  type Frontend,
  type Mesh,
  type MeshDelta,
  type Note,
} from "../mesh/model.ts";
import { sameCluster, sameFrontend, sameInbound, sameNotes, sameService, sameSplit } from "../mesh/same.ts";
import type { Surroundings } from "./carriage.ts";
import { Claims } from "./claims.ts";
import { hostnamesOf } from "./gateways.ts";
import { type CompiledInbound, compileInbound } from "./inbound.ts";
import { namesOfServices } from "./names.ts";
import { type Part, partOfService, partOfWorkload } from "./parts.ts";
import type { Place } from "./records/records.ts";
import type { Dirty, Store } from "./store/store.ts";

/** What a compilation changed. `whole`: the notes of the mesh or the inbound part, too, which `changes` does not list. */
export interface Difference {
  changes: MeshDelta;
  whole: boolean;
}

export interface CompilerOptions {
  /** This machine's: services of the same one are known by their short names, too. */
  namespace: string;
  /** Where this machine is, as its settings say. */
  here: Place;
  tunnel: boolean;
  allowPlaintext: boolean;
  /** The mesh's trust domain, and its aliases, which the workload API does not have. */
  trustDomains: readonly [string, ...string[]];
  self: { labelled?: boolean };
}

/** Keys to look at again after the parts of some owners changed. */
interface Touched {
  services: Set<string>;
  frontends: Set<string>;
  clusters: Set<string>;
}

/** Seconds between lookups of a name whose answer has no TTL. */
const REFRESH = 30;
/** Claims of services win over those of workloads: owners are compared as text. */
const SERVICE = "service ";
const WORKLOAD = "workload ";

export class Compiler {
  readonly mesh: Mesh = emptyMesh();
  inbound: CompiledInbound | undefined;
  readonly #store: Store;
  readonly #resolver: Pick<Resolver, "known" | "keep">;
  readonly #options: CompilerOptions;
  readonly #parts = new Map<string, Part>();
  readonly #frontends = new Claims<Frontend>((one, other) => this.#compareOwners(one, other));
  /** Several owners: services that share a host while one of them goes, workloads that share an address. */
  readonly #clusters = new Claims<Cluster>();
  readonly #services = new Claims<{ id: ServiceId; notes: Note[]; owner: string }>();
  /** Names that a service's workloads are known by. */
  readonly #hostnames = new Map<string, ReadonlySet<string>>();
  #excluded: readonly Excluded[] = [];
  #elsewhere = 0;
  #namesFrom = NO_NAMES;

  constructor(store: Store, resolver: Pick<Resolver, "known" | "keep">, options: CompilerOptions) {
    this.#store = store;
    this.#resolver = resolver;
    this.#options = options;
  }

  /** Sets the excluded destinations. The next compilation of everything checks each frontend. */
  exclude(excluded: readonly Excluded[]): void {
    this.#excluded = excluded;
  }

  /** The services with a workload that one of these names stands for. */
  servicesResolving(hosts: ReadonlySet<string>): string[] {
    return [...this.#hostnames].flatMap(([key, names]) =>
      [...names].some((name) => hosts.has(name)) ? [key] : [],
    );
  }

  /** Brings the mesh up to date with the store. `dirty` names the changes since the last call. */
  compile(dirty: Dirty): Difference {
    const changes = emptyDelta();
    const touched: Touched = { services: new Set(), frontends: new Set(), clusters: new Set() };
    const around = this.#surroundings();
    this.#ask(dirty.services, around);
    for (const key of dirty.services) {
      const record = this.#store.services.get(key);
      this.#replace(SERVICE + key, record && partOfService(record, around), changes, touched);
    }
    for (const uid of dirty.direct) {
      const record = this.#store.workloads.get(uid);
      this.#replace(WORKLOAD + uid, record && partOfWorkload(record, around), changes, touched);
    }
    for (const name of touched.clusters) this.#compileCluster(name, changes);
    for (const key of touched.frontends) this.#compileFrontend(key, changes, touched.services);
    for (const name of touched.services) this.#compileService(name, changes);
    this.#compileNames(dirty.names, this.#changesNames(dirty), changes);
    const notes = this.#meshNotes();
    let whole = !sameNotes(notes, this.mesh.notes);
    this.mesh.notes = notes;
    if (dirty.inbound && this.#compileInbound()) whole = true;
    return { changes, whole };
  }

  #surroundings(): Surroundings {
    const { here, tunnel, allowPlaintext, trustDomains } = this.#options;
    const own = this.#store.own?.profile;
    // istiod gives the workload the locality of its entry, where the settings have none.
    const place = own ? { ...own, network: here.network } : here;
    const resolve = (host: string) => ([4, 6] as const).map((family) => this.#resolver.known(host, family));
    const [, ...aliases] = trustDomains;
    return { store: this.#store, resolve, here: place, tunnel, allowPlaintext, aliases };
  }

  /** Which of two owners gets an address that both claim: a service before a workload. */
  #compareOwners(one: string, other: string): number {
    const [a, b] = [one, other].map((owner) => this.#store.services.get(owner.slice(SERVICE.length)));
    if (a && b) return this.#store.compareServices(a, b);
    return one < other ? -1 : 1;
  }

  #replace(owner: string, part: Part | undefined, changes: MeshDelta, touched: Touched): void {
    const { splits } = this.mesh;
    const before = this.#parts.get(owner);
    if (part === undefined) this.#parts.delete(owner);
    else this.#parts.set(owner, part);
    this.#elsewhere += (part?.elsewhere ? 1 : 0) - (before?.elsewhere ? 1 : 0);

    const kept = new Set(part?.clusters.map(({ name }) => name));
    for (const { name } of before?.clusters ?? []) {
      if (kept.has(name)) continue;
      this.#clusters.drop(name, owner);
      touched.clusters.add(name);
    }
    for (const cluster of part?.clusters ?? []) {
      this.#clusters.put(cluster.name, owner, cluster);
      touched.clusters.add(cluster.name);
    }
    const keptSplits = new Set(part?.splits.map(({ name }) => name));
    for (const { name } of before?.splits ?? [])
      if (!keptSplits.has(name) && splits.delete(name)) changes.splits.add(name);
    for (const split of part?.splits ?? []) {
      const known = splits.get(split.name);
      if (known !== undefined && sameSplit(known, split)) continue;
      splits.set(split.name, split);
      changes.splits.add(split.name);
    }
    const keys = new Map((part?.frontends ?? []).map((frontend) => [frontendKey(frontend), frontend]));
    for (const frontend of before?.frontends ?? []) {
      const key = frontendKey(frontend);
      if (keys.has(key)) continue;
      this.#frontends.drop(key, owner);
      touched.frontends.add(key);
    }
    const old = new Map((before?.frontends ?? []).map((frontend) => [frontendKey(frontend), frontend]));
    for (const [key, frontend] of keys) {
      if (before?.canonical !== part?.canonical) touched.frontends.add(key);
      const known = old.get(key);
      if (known !== undefined && sameFrontend(known, frontend)) continue;
      this.#frontends.put(key, owner, frontend);
      touched.frontends.add(key);
    }
    const names = new Set(part?.services.map(({ id }) => id.name));
    for (const { id } of before?.services ?? []) {
      if (names.has(id.name)) continue;
      this.#services.drop(id.name, owner);
      touched.services.add(id.name);
    }
    for (const service of part?.services ?? []) {
      this.#services.put(service.id.name, owner, { ...service, owner });
      touched.services.add(service.id.name);
    }
  }

  #compileCluster(name: string, changes: MeshDelta): void {
    const { clusters } = this.mesh;
    const before = clusters.get(name);
    const [now] = this.#clusters.get(name);
    if (before !== undefined && now !== undefined && sameCluster(before, now)) return;
    if (now === undefined) {
      if (!clusters.delete(name)) return;
    } else clusters.set(name, now);
    changes.clusters.add(name);
  }

  #compileFrontend(key: string, changes: MeshDelta, services: Set<string>): void {
    const { frontends } = this.mesh;
    const claims = this.#frontends.get(key);
    // Who loses it says so, and who gets it no longer does.
    for (const { service } of claims) services.add(service);
    const before = frontends.get(key);
    const [now] = claims;
    if (before !== undefined && now !== undefined && sameFrontend(before, now)) return;
    if (now === undefined) {
      if (!frontends.delete(key)) return;
    } else frontends.set(key, now);
    changes.frontends.add(key);
  }

  #compileService(name: string, changes: MeshDelta): void {
    const { services, frontends } = this.mesh;
    const claims = this.#services.get(name);
    const [first] = claims;
    if (first === undefined) {
      if (services.delete(name)) changes.services.add(name);
      return;
    }
    const notes = claims.flatMap(({ notes: own }) => own);
    for (const { owner } of claims) {
      for (const frontend of this.#parts.get(owner)?.frontends ?? []) {
        if (frontend.service !== name) continue;
        const winner = frontends.get(frontendKey(frontend))?.service;
        if (winner !== undefined && winner !== name)
          notes.push(note("conflict", `${formatMatch(frontend.match)} belongs to ${winner}`));
        const why = unreachable(frontend.match, this.#excluded);
        if (why !== undefined) notes.push(note("not-enforced", why));
      }
    }
    const service = { ...first.id, notes: sortedNotes(notes) };
    const before = services.get(name);
    if (before !== undefined && sameService(before, service)) return;
    services.set(name, service);
    changes.services.add(name);
  }

  /** Without a table: a service changed, or workloads of a headless one. */
  #changesNames({ services, records }: Dirty): boolean {
    if (this.#store.names !== NO_NAMES || records) return records;
    for (const key of services) if (this.#store.services.get(key)?.addresses.length === 0) return true;
    return false;
  }

  #compileNames(changed: boolean, services: boolean, changes: MeshDelta): void {
    const { names: table } = this.#store;
    const { namespace } = this.#options;
    if (table !== NO_NAMES) {
      if (!changed && this.#namesFrom === table) return;
      const before = this.#namesFrom;
      this.#namesFrom = table;
      applyTable(this.mesh.names, table, before, namespace, changes.names);
      return;
    }
    if (!changed && !services) return;
    this.#namesFrom = NO_NAMES;
    const found = namesOfServices(this.#store, this.#options.here.network, namespace);
    applyNames(this.mesh.names, found, changes.names);
  }

  /**
   * Gives whether who may connect changed. While istiod has no workload of this machine, what was known stays: it may only
   * have been away for a moment.
   */
  #compileInbound(): boolean {
    const now = compileInbound(this.#store, this.#options.trustDomains);
    this.inbound = now;
    if (!now || sameInbound(this.mesh.inbound, now.inbound)) return false;
    this.mesh.inbound = now.inbound;
    return true;
  }

  #meshNotes(): Notes {
    const notes: Note[] = [...this.#store.names.notes];
    if (this.#elsewhere > 0) {
      const { network } = this.#options.here;
      const own =
        network === "" ? "this machine has no network (setting network)" : `this machine is in ${network}`;
      const services = this.#elsewhere === 1 ? "1 service has" : `${this.#elsewhere} services have`;
      notes.push(note("not-enforced", `${services} addresses only in other networks: ${own}`));
    }
    // A nil label map turns istiod's selector off.
    const selecting = this.#store.own?.profile.policies.filter((name) => !/\/(istio_)?converted_/.test(name));
    if (this.#options.self.labelled === false && selecting && selecting.length > 0) {
      const text = `the settings have no labels; when this machine's WorkloadEntry has none either, istiod gives it every policy with a selector, as here: ${selecting.join(", ")}`;
      notes.push(note("conflict", text));
    }
    return sortedNotes(notes);
  }

  /** Has the names of changed services' workloads looked up. */
  #ask(services: Iterable<string>, around: Surroundings): void {
    let changed = false;
    for (const key of services) {
      const names = hostnamesOf(key, around);
      if (names.size === 0 && !this.#hostnames.has(key)) continue;
      changed = true;
      if (names.size === 0) this.#hostnames.delete(key);
      else this.#hostnames.set(key, names);
    }
    if (!changed) return;
    const questions: Question[] = [];
    for (const host of new Set([...this.#hostnames.values()].flatMap((names) => [...names])))
      for (const family of [4, 6] as const)
        questions.push({ host, family, refresh: REFRESH, respectTtl: true });
    this.#resolver.keep(questions);
  }
}
