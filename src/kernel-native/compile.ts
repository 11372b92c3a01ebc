/** Compiles the store into the mesh, and finds the difference from the last compilation. */

import { type Endpoint, EndpointBuffer, type EndpointList } from "../mesh/endpoint-list.ts";
import type { Inbound } from "../mesh/inbound.ts";
import { compareLocalities } from "../mesh/locality.ts";
import {
  type Cluster,
  emptyDelta,
  emptyMesh,
  type Locality,
  type Mesh,
  type MeshDelta,
  type Note,
  type Service,
} from "../mesh/model.ts";
import {
  sameCluster,
  sameFrontend,
  sameInbound,
  sameNotes,
  samePending,
  sameService,
  sameSplit,
  sameTarget,
} from "../mesh/same.ts";
import type { Transport } from "../mesh/transport.ts";
import { isTunnelEntry } from "../mesh/tunnel-address.ts";
import { type CompiledFrontends, compileFrontends } from "./frontends.ts";
import { applyNames, applyTable, namesOfFrontends } from "./resolvable.ts";
import type { Family, Question, Resolver } from "./resolver.ts";
import type { ClusterRecord } from "./resources/cluster.ts";
import type { Discovery, DnsTarget } from "./resources/discovery.ts";
import { type EndpointsRecord, OVERPROVISIONING } from "./resources/endpoint.ts";
import { type NamesRecord, NO_NAMES } from "./resources/names.ts";
import { NO_NOTES, type Notes, note, sortedNotes } from "./resources/note.ts";
import { type ServiceId, serviceOfCluster } from "./resources/service.ts";
import { type Demands, withHbone } from "./resources/transport-sockets.ts";
import type { Dirty, Store } from "./store.ts";
import type { Excluded } from "./unreachable.ts";

/** What a compilation changed. */
export interface Difference {
  changes: MeshDelta;
  /** The fallback or the notes of the mesh differ, too. `changes` does not list them. */
  whole: boolean;
  /** The set of unknown parts differs: the tables in the kernel must be compared with the whole mesh. */
  pending: boolean;
}

const NO_LOCALITIES: Locality[] = [];
const PREFERS_TLS = note("plaintext", "peers prefer mutual TLS: plaintext is sent");
const ONLY_GATEWAYS = note(
  "refused",
  "all endpoints are in other networks, behind a gateway that speaks only mutual TLS: connections are refused",
);
const RANDOM = note("layer7", "consistent hashing without the source address: random instead");
const UNRESOLVED = note("not-enforced", "a name of its endpoints has not been resolved yet");

/** Keeps the mesh up to date, at a cost that follows the change. The mesh is changed in place. */
export class Compiler {
  readonly mesh: Mesh = emptyMesh();
  readonly #namespace: string;
  /** The table that the mesh's names were made of. */
  #namesFrom: NamesRecord | undefined;
  readonly #store: Store;
  readonly #resolver: Pick<Resolver, "known" | "keep">;
  #excluded: readonly Excluded[] = [];
  /** The last compiled frontends, without the parts that the mesh holds. */
  #compiled: Omit<CompiledFrontends, "frontends" | "splits"> | undefined;
  /** Notes of clusters that have any. */
  readonly #clusterNotes = new Map<string, Notes>();
  /** Clusters by service; often one. */
  readonly #clustersOf = new Map<string, string | readonly string[]>();
  /** Clusters by the names that they resolve. */
  readonly #resolving = new Map<string, Set<string>>();
  /** The DNS questions of each cluster. */
  readonly #questions = new Map<string, Question[]>();
  /** Notes about missing clusters that a service's frontends lead to, by service. */
  #missing = new Map<string, Notes>();

  /** `namespace` is the machine's, whose services have short names. */
  constructor(store: Store, resolver: Pick<Resolver, "known" | "keep">, namespace = "default") {
    this.#namespace = namespace;
    this.#store = store;
    this.#resolver = resolver;
  }

  /** Sets the excluded destinations. The next compilation checks every frontend. */
  exclude(excluded: readonly Excluded[]): void {
    this.#excluded = excluded;
  }

  /** The clusters with an endpoint of one of these names. */
  clustersResolving(hosts: Iterable<string>): Set<string> {
    const clusters = new Set<string>();
    for (const host of hosts) for (const cluster of this.#resolving.get(host) ?? []) clusters.add(cluster);
    return clusters;
  }

  /** Brings the mesh up to date with the store. `dirty` names the changes since the last call. */
  compile(dirty: Dirty): Difference {
    const changes = emptyDelta();
    /** Services to compile again. */
    const services = new Set<string>();
    const clusters = new Set(dirty.clusters);
    let frontends = dirty.frontends || this.#compiled === undefined;
    for (const name of dirty.endpoints) {
      for (const user of this.#store.usersOf(name)) clusters.add(user);
      if (this.#compiled?.headless.has(name)) frontends = true;
    }
    let whole = false;
    const before = this.mesh.pending;
    if (frontends) whole = this.#compileFrontends(changes, services, clusters);
    let comings = false;
    let asked = false;
    for (const name of clusters) {
      const record = this.#store.clusters.get(name);
      if (this.#ask(name, record)) asked = true;
      if (this.#compileCluster(name, record, changes, services)) comings = true;
    }
    if (asked) this.#resolver.keep([...this.#questions.values()].flat());
    if (frontends || comings) this.#findMissing(services);
    for (const name of services) this.#compileService(name, changes);
    return { changes, whole, pending: !samePending(before, this.mesh.pending) };
  }

  #compileFrontends(changes: MeshDelta, services: Set<string>, clusters: Set<string>): boolean {
    const before = this.#compiled;
    const { frontends, splits, ...now } = compileFrontends(this.#store, this.#excluded);
    this.#compiled = now;
    const { mesh } = this;
    update(mesh.frontends, frontends, sameFrontend, changes.frontends);
    update(mesh.splits, splits, sameSplit, changes.splits);
    this.#compileNames(changes);
    for (const name of now.services.keys()) if (!before?.services.has(name)) services.add(name);
    for (const name of before?.services.keys() ?? []) if (!now.services.has(name)) services.add(name);
    for (const [name, notes] of now.serviceNotes) {
      if (!sameNotes(notes, before?.serviceNotes.get(name) ?? NO_NOTES)) services.add(name);
    }
    for (const name of before?.serviceNotes.keys() ?? []) if (!now.serviceNotes.has(name)) services.add(name);
    // Whether a cluster hashes depends on the routes that lead to it.
    for (const name of now.sourceHashed) if (!before?.sourceHashed.has(name)) clusters.add(name);
    for (const name of before?.sourceHashed ?? []) if (!now.sourceHashed.has(name)) clusters.add(name);
    const inbound = this.#inbound();
    const same =
      sameTarget(mesh.fallback, now.fallback) &&
      sameNotes(mesh.notes, now.notes) &&
      sameInbound(mesh.inbound, inbound);
    // An equal one stays the same object: nobody has to compare it again.
    if (inbound && !sameInbound(mesh.inbound, inbound)) mesh.inbound = inbound;
    mesh.fallback = now.fallback;
    mesh.notes = now.notes;
    if (now.pending) mesh.pending = now.pending;
    else delete mesh.pending;
    return !same;
  }

  /** Who may connect to this machine; undefined while istiod has not said it. */
  #inbound(): Inbound | undefined {
    for (const { inbound } of this.#store.listeners.values()) if (inbound) return inbound;
    return this.mesh.inbound;
  }

  #compileNames(changes: MeshDelta): void {
    const { names } = this.#store;
    // istiod's table replaces what the frontends say; unchanged it is the same object.
    if (names !== NO_NAMES && names === this.#namesFrom) return;
    const before = this.#namesFrom;
    this.#namesFrom = names;
    if (names === NO_NAMES) {
      const found = namesOfFrontends(this.mesh.frontends.values(), this.#namespace);
      applyNames(this.mesh.names, found, changes.names);
    } else applyTable(this.mesh.names, names, before, this.#namespace, changes.names);
  }

  /** Gives whether the cluster is new or removed. */
  #compileCluster(
    name: string,
    record: ClusterRecord | undefined,
    changes: MeshDelta,
    services: Set<string>,
  ): boolean {
    const { clusters } = this.mesh;
    const before = clusters.get(name);
    if (record === undefined) {
      if (before === undefined) return false;
      clusters.delete(name);
      changes.clusters.add(name);
      this.#clusterNotes.delete(name);
      this.#leave(before.service, name);
      services.add(before.service);
      return true;
    }
    const { cluster, notes } = this.#clusterOf(record);
    if (before === undefined) {
      this.#join(cluster.service, name);
      services.add(cluster.service);
    }
    if (before === undefined || !sameCluster(before, cluster)) {
      clusters.set(name, cluster);
      changes.clusters.add(name);
    }
    if (!sameNotes(notes, this.#clusterNotes.get(name) ?? NO_NOTES)) services.add(cluster.service);
    if (notes.length === 0) this.#clusterNotes.delete(name);
    else this.#clusterNotes.set(name, notes);
    return before === undefined;
  }

  #clusterOf(record: ClusterRecord): { cluster: Cluster; notes: Notes } {
    const { name, service, discovery, policy } = record;
    const notes: Note[] = [];
    const hashing = policy.balance.policy === "ring-hash" || policy.balance.policy === "maglev";
    const hashes = hashing && this.#compiled?.sourceHashed.has(name) === true;
    if (hashing && !hashes) notes.push(RANDOM);
    const cluster: Cluster = {
      name,
      service,
      kind: "endpoints",
      reason: "none",
      port: 0,
      balance: hashing && !hashes ? { policy: "random" } : policy.balance,
      localities: NO_LOCALITIES,
      localityWeighted: policy.localityWeighted,
      overprovisioning: OVERPROVISIONING,
      panicThreshold: policy.panicThreshold,
      maxConnections: policy.maxConnections,
      ejection: policy.ejection,
      transports: [],
      pending: false,
    };
    if (discovery.kind === "passthrough") cluster.kind = "passthrough";
    else if (discovery.kind === "port-override") {
      cluster.kind = "port-override";
      cluster.port = discovery.port;
    } else if (discovery.kind === "unknown") cluster.pending = true;
    else if (discovery.kind === "refuse") {
      cluster.kind = "refuse";
      cluster.reason = discovery.reason;
    } else if (discovery.kind === "dns") this.#resolve(cluster, discovery, notes);
    else {
      const endpoints =
        discovery.kind === "static"
          ? discovery.endpoints
          : this.#store.endpoints.get(discovery.endpointsName);
      if (endpoints === undefined) cluster.pending = true;
      else fill(cluster, endpoints, policy.autoTls && !record.demands, notes);
    }
    if (record.demands && cluster.kind === "endpoints")
      carry(cluster, withHbone(record.demands, this.#store.hboneSans), notes);
    return { cluster, notes: notes.length === 0 ? policy.notes : sortedNotes([...policy.notes, ...notes]) };
  }

  /** Fills in the resolved addresses of a DNS cluster. */
  #resolve(cluster: Cluster, discovery: Extract<Discovery, { kind: "dns" }>, notes: Note[]): void {
    const localities: Resolved[] = [];
    const seen = new Set<string>();
    let waiting = false;
    let unanswered = false;
    for (const target of discovery.targets) {
      let addresses: readonly string[] = [target.host];
      if (!target.literal) {
        const known = familiesOf(discovery.family).map((family) => this.#resolver.known(target.host, family));
        if (known.some(({ tried }) => !tried)) waiting = true;
        if (known.some((one) => one.addresses === undefined)) unanswered = true;
        addresses = choose(discovery.family, known[0]?.addresses ?? [], known[1]?.addresses ?? []);
      }
      if (discovery.logical) addresses = addresses.slice(0, 1);
      for (const address of addresses) {
        const id = `${address} ${target.port}`;
        if (seen.has(id)) continue;
        seen.add(id);
        localityFor(localities, target).endpoints.push(endpointOf(address, target));
      }
      if (discovery.logical && seen.size > 0) break;
    }
    cluster.localities = localities.map(({ endpoints, ...locality }) => ({
      ...locality,
      endpoints: sortedEndpoints(endpoints),
    }));
    cluster.overprovisioning = discovery.overprovisioning;
    // Until each name was looked up once, the endpoints in the kernel are better than a part of the new ones.
    cluster.pending = waiting || (unanswered && seen.size === 0);
    notes.push(...discovery.notes);
    if (!waiting && unanswered) notes.push(UNRESOLVED);
  }

  /** Records the DNS questions of a cluster. Gives whether they may have changed. */
  #ask(name: string, record: ClusterRecord | undefined): boolean {
    const before = this.#questions.get(name);
    const discovery = record?.discovery;
    if (before === undefined && discovery?.kind !== "dns") return false;
    const now = discovery?.kind === "dns" ? questionsOf(discovery) : [];
    for (const { host } of before ?? []) {
      const clusters = this.#resolving.get(host);
      clusters?.delete(name);
      if (clusters?.size === 0) this.#resolving.delete(host);
    }
    for (const { host } of now) {
      const clusters = this.#resolving.get(host);
      if (clusters === undefined) this.#resolving.set(host, new Set([name]));
      else clusters.add(name);
    }
    if (now.length === 0) this.#questions.delete(name);
    else this.#questions.set(name, now);
    return true;
  }

  /** Finds frontends that lead to clusters which istiod never sent. */
  #findMissing(services: Set<string>): void {
    const missing = new Map<string, Set<string>>();
    const look = (service: string, cluster: string) => {
      if (this.mesh.clusters.has(cluster)) return;
      const names = missing.get(service);
      if (names === undefined) missing.set(service, new Set([cluster]));
      else names.add(cluster);
    };
    for (const { service, target } of this.mesh.frontends.values()) {
      if (target.kind === "cluster") look(service, target.cluster);
      else if (target.kind === "split") {
        for (const { cluster } of this.mesh.splits.get(target.split)?.shares ?? []) look(service, cluster);
      }
    }
    const now = new Map<string, Notes>();
    for (const [service, names] of missing) {
      const notes = [...names].map((name) =>
        note("refused", `cluster ${name} does not exist: its share is refused`),
      );
      now.set(service, sortedNotes(notes));
    }
    for (const [service, notes] of now) {
      if (!sameNotes(notes, this.#missing.get(service) ?? NO_NOTES)) services.add(service);
    }
    for (const service of this.#missing.keys()) if (!now.has(service)) services.add(service);
    this.#missing = now;
  }

  #compileService(name: string, changes: MeshDelta): void {
    const { services } = this.mesh;
    const clusters = this.#clusters(name);
    const [first] = clusters;
    const id: ServiceId | undefined =
      this.#compiled?.services.get(name) ?? (first === undefined ? undefined : serviceOfCluster(first));
    const before = services.get(name);
    if (id === undefined) {
      if (services.delete(name)) changes.services.add(name);
      return;
    }
    const notes = sortedNotes([
      ...(this.#compiled?.serviceNotes.get(name) ?? []),
      ...(this.#missing.get(name) ?? []),
      ...clusters.flatMap((cluster) => this.#clusterNotes.get(cluster) ?? []),
    ]);
    const service: Service = { name, host: id.host, port: id.port, notes };
    if (before !== undefined && sameService(before, service)) return;
    services.set(name, service);
    changes.services.add(name);
  }

  #clusters(service: string): readonly string[] {
    const clusters = this.#clustersOf.get(service);
    if (clusters === undefined) return [];
    return typeof clusters === "string" ? [clusters] : clusters;
  }

  #join(service: string, cluster: string): void {
    const clusters = this.#clusters(service);
    this.#clustersOf.set(service, clusters.length === 0 ? cluster : [...clusters, cluster]);
  }

  #leave(service: string, cluster: string): void {
    const clusters = this.#clusters(service).filter((one) => one !== cluster);
    if (clusters.length === 0) this.#clustersOf.delete(service);
    else this.#clustersOf.set(service, clusters);
  }
}

/** Makes `map` equal to `now` and adds the changed keys to `changed`. Equal values stay the same objects. */
function update<T>(
  map: Map<string, T>,
  now: ReadonlyMap<string, T>,
  same: (a: T, b: T) => boolean,
  changed: Set<string>,
): void {
  for (const key of map.keys()) {
    if (now.has(key)) continue;
    map.delete(key);
    changed.add(key);
  }
  for (const [key, value] of now) {
    const before = map.get(key);
    if (before !== undefined && same(before, value)) continue;
    map.set(key, value);
    changed.add(key);
  }
}

function fill(cluster: Cluster, endpoints: EndpointsRecord, autoTls: boolean, notes: Note[]): void {
  cluster.overprovisioning = endpoints.overprovisioning;
  if (endpoints.onlyGateways) {
    cluster.kind = "refuse";
    cluster.reason = "tls-required";
    notes.push(ONLY_GATEWAYS);
    return;
  }
  cluster.localities = endpoints.localities;
  if (autoTls && endpoints.prefersTls) notes.push(PREFERS_TLS);
  notes.push(...endpoints.notes);
}

/**
 * Gives the endpoints their transports by the class of their metadata. Those that need what kmesh does not speak are left
 * out, and when no others are left the cluster is refused.
 */
function carry(cluster: Cluster, demands: Demands, notes: Note[]): void {
  const used = new Set<number>();
  for (const { endpoints } of cluster.localities)
    for (let i = 0; i < endpoints.length; i++) used.add(endpoints.transport(i));
  const transports: Transport[] = [];
  /** By class: the transport's number, or why there is none. */
  const numbers = demands.map((demand, metadata) => {
    if (demand.kind === "plaintext" || !used.has(metadata)) return 0;
    return demand.kind === "unknown" ? demand.what : transports.push(demand.transport);
  });
  const unknown = [...used].filter((metadata) => typeof numbers[metadata] === "string");
  for (const metadata of unknown) {
    const text = `${numbers[metadata]} is demanded, which kmesh does not speak: `;
    const rest = unknown.length < used.size ? "such endpoints are left out" : "connections are refused";
    notes.push(note("refused", text + rest));
  }
  if (unknown.length > 0 && unknown.length === used.size) {
    cluster.kind = "refuse";
    cluster.reason = "tls-required";
    cluster.localities = NO_LOCALITIES;
    return;
  }
  cluster.transports = transports;
  const isKept = (metadata: number) => typeof numbers[metadata] === "number";
  if ([...used].every((metadata) => numbers[metadata] === metadata)) return;
  cluster.localities = cluster.localities.map((locality) => {
    const kept = locality.endpoints.renumbered((metadata) =>
      isKept(metadata) ? Number(numbers[metadata]) : undefined,
    );
    return { ...locality, endpoints: kept };
  });
}

/** The address families to look up, the preferred one first. */
function familiesOf(family: number): Family[] {
  if (family === 1) return [4];
  if (family === 2) return [6];
  return family === 0 ? [6, 4] : [4, 6];
}

/** AUTO and V4_PREFERRED use the second family only when the first has no address; ALL uses both. */
function choose(family: number, first: readonly string[], second: readonly string[]): readonly string[] {
  if (family === 4) return [...first, ...second];
  return first.length > 0 ? first : second;
}

function questionsOf(discovery: Extract<Discovery, { kind: "dns" }>): Question[] {
  const questions: Question[] = [];
  for (const { host, literal } of discovery.targets) {
    if (literal) continue;
    for (const family of familiesOf(discovery.family)) {
      questions.push({ host, family, refresh: discovery.refresh, respectTtl: discovery.respectTtl });
    }
  }
  return questions;
}

/** A locality while its names are being resolved. */
type Resolved = Omit<Locality, "endpoints"> & { endpoints: Endpoint[] };

/** The targets are sorted by locality, so only the last locality can match. */
function localityFor(localities: Resolved[], target: DnsTarget): Resolved {
  const last = localities.at(-1);
  if (last !== undefined && compareLocalities(last, target) === 0) return last;
  const { region, zone, subzone, priority } = target;
  const fresh = { region, zone, subzone, priority, weight: target.localityWeight, endpoints: [] };
  localities.push(fresh);
  return fresh;
}

function endpointOf(address: string, { port, weight, healthy, metadata }: DnsTarget): Endpoint {
  return { address, port, weight, healthy, transport: metadata };
}

function sortedEndpoints(endpoints: readonly Endpoint[]): EndpointList {
  const buffer = new EndpointBuffer();
  const own = endpoints.filter(({ address, port }) => !isTunnelEntry(address, port));
  for (const { address, port, weight, healthy, transport } of own)
    buffer.push(address, port, weight, healthy, false, transport);
  return buffer.pick(own.map((_, i) => i).sort((a, b) => buffer.compare(a, b)));
}
