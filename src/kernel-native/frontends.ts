/**
 * Compiles listeners, routes and names into frontends, which are what apps connect to. All frontends are compiled at
 * once, since one route configuration holds thousands of services. The changes are found by comparison.
 */
import type { Prefix } from "../mesh/address.ts";
import { formatMatch } from "../mesh/frontend.ts";
import type { Frontend, Match, Note, Pending, Split, Target } from "../mesh/model.ts";
import { isAutomatic } from "./automatic.ts";
import { clustersOf, familyOf, fittingChains, isRouted, routesName, serviceOfAction } from "./chains.ts";
import { Claims, RANK, takenBy } from "./claims.ts";
import { Decider, type Decision } from "./decision.ts";
import type { Action, Chain, ListenerRecord } from "./resources/listener.ts";
import { hostsOf } from "./resources/names.ts";
import { type Notes, note, sortedNotes } from "./resources/note.ts";
import type { VirtualHostRecord } from "./resources/route.ts";
import { BLACK_HOLE, ownCluster, type ServiceId, serviceId } from "./resources/service.ts";
import type { Store } from "./store.ts";
import { type Excluded, unreachable } from "./unreachable.ts";

export interface CompiledFrontends {
  frontends: Map<string, Frontend>;
  splits: Map<string, Split>;
  /** The services of the frontends. */
  services: Map<string, ServiceId>;
  /** Notes by service, also of services without a frontend. */
  serviceNotes: Map<string, Notes>;
  /** Clusters with a route that hashes the source address. */
  sourceHashed: Set<string>;
  /** EDS names whose endpoints become frontends (headless services without addresses in the name table). */
  headless: Set<string>;
  fallback: Target;
  notes: Notes;
  /** Absent when everything is known. */
  pending?: Pending;
}

/**
 * Compiles all listeners, routes and names of the store. Frontends within `excluded` get a note that they are never
 * reached.
 */
export function compileFrontends(store: Store, excluded: readonly Excluded[] = []): CompiledFrontends {
  return new Builder(store, excluded).build();
}

class Builder {
  readonly #store: Store;
  readonly #excluded: readonly Excluded[];
  readonly #claims = new Claims();
  readonly #decider: Decider;
  readonly #services = new Map<string, ServiceId>();
  readonly #notes = new Map<string, Note[]>();
  readonly #meshNotes: Note[] = [];
  readonly #sourceHashed = new Set<string>();
  readonly #headless = new Set<string>();
  /** Hosts whose connections connect() can't distinguish from others, by port. */
  readonly #undecidable = new Map<number, Set<string>>();
  /** Ports with a frontend for every address. */
  readonly #portWide = new Set<number>();

  constructor(store: Store, excluded: readonly Excluded[]) {
    this.#store = store;
    this.#excluded = excluded;
    this.#decider = new Decider(store);
  }

  build(): CompiledFrontends {
    const listeners = [...this.#store.listeners.values()];
    listeners.sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
    for (const listener of listeners) {
      if (listener.kind === "catch-all") this.#decider.fallback = this.#fallbackOf(listener);
      this.#meshNotes.push(...listener.notes);
    }
    for (const listener of listeners) if (listener.kind === "outbound") this.#addListener(listener);
    const pending = this.#findUnknown();
    this.#passUndecidable();
    const frontends = this.#claims.resolve((service, remark) => this.#note(service, remark));
    for (const { match, service } of frontends.values()) {
      const why = unreachable(match, this.#excluded);
      if (why !== undefined) this.#note(service, note("not-enforced", why));
    }
    const serviceNotes = new Map<string, Notes>();
    for (const [service, notes] of this.#notes) serviceNotes.set(service, sortedNotes(notes));
    return {
      frontends,
      splits: this.#decider.usedSplits(frontends),
      services: this.#services,
      serviceNotes,
      sourceHashed: this.#sourceHashed,
      headless: this.#headless,
      fallback: this.#decider.fallback,
      notes: sortedNotes([...this.#meshNotes, ...this.#store.names.notes]),
      ...(pending ? { pending } : {}),
    };
  }

  /** The ports for which routes are missing, or resources are malformed without an earlier version. */
  #findUnknown(): Pending | undefined {
    const { lost } = this.#store;
    let all = lost.names.size > 0;
    let fallback = false;
    for (const name of lost.listener) {
      const port = /_(\d{1,5})$/.exec(name)?.[1];
      if (name === "virtualOutbound") fallback = true;
      else if (port !== undefined) this.#decider.unknownPorts.add(Number(port));
      else if (name !== "virtualInbound") all = true;
    }
    if (!all && !fallback && this.#decider.unknownPorts.size === 0) return undefined;
    const ports = [...this.#decider.unknownPorts].sort((a, b) => a - b);
    const what = all
      ? "all ports"
      : ports.length > 0
        ? `port ${ports.join(", ")}`
        : "connections to no service";
    const text = `istiod's configuration for ${what} has not come, or is malformed: what the kernel had before stays`;
    this.#meshNotes.push(note("not-enforced", text));
    return { ports: all ? "all" : this.#decider.unknownPorts, fallback };
  }

  /** The action of virtualOutbound's chain for all connections. Its other chain guards Envoy's own port. */
  #fallbackOf(listener: ListenerRecord): Target {
    const chain = listener.chains.find(({ port, prefixes }) => port === 0 && prefixes.length === 0);
    const action = chain?.action ?? listener.otherwise;
    if (action === undefined) return { kind: "passthrough" };
    if (action.kind !== "tcp") {
      this.#meshNotes.push(note("not-enforced", `listener ${listener.name}: only TCP is understood`));
      return { kind: "passthrough" };
    }
    const { destination } = action;
    if (destination.kind === "cluster" && destination.cluster === BLACK_HOLE) {
      return { kind: "refuse", reason: "not-in-registry" };
    }
    return this.#decider.target(destination, listener.name);
  }

  #addListener(listener: ListenerRecord): void {
    for (const { address, port } of listener.addresses) {
      if (address === "0.0.0.0" || address === "::") this.#addWildcard(listener, port);
      else this.#addExact(listener, address, port);
    }
  }

  /** A listener for all addresses of a port: HTTP services, address blocks, and services without an address. */
  #addWildcard(listener: ListenerRecord, port: number): void {
    let everything: Action | undefined;
    const blocks: Chain[] = [];
    for (const chain of listener.chains) {
      if (chain.port !== 0 && chain.port !== port) continue;
      const { action } = chain;
      if (this.#decider.isUnknown(action, port)) continue;
      const routes = this.#decider.routesOf(action);
      if (routes !== undefined)
        for (const host of routes.hosts) this.#addHost(host, port, routesName(listener, action));
      if (routes !== undefined || isRouted(action)) continue;
      if (chain.prefixes.length > 0) blocks.push(chain);
      else if (chain.serverNames.length > 0) {
        for (const name of chain.serverNames)
          this.#addUndecidable(port, name, serviceOfAction(action), NO_ADDRESS);
      } else everything ??= action;
    }
    this.#addBlocks(listener, blocks, port);
    everything ??= this.#decider.otherwise(listener);
    if (everything === undefined || this.#portWide.has(port)) return;
    this.#portWide.add(port);
    const decision = this.#decider.decisionOf(everything, listener.name);
    const only = familyOf(listener, port);
    if (only !== undefined) {
      const text = `istiod's listener takes ${only} connections to every address of port ${port}: those of the other family are taken along`;
      decision.notes = [...decision.notes, note("not-enforced", text)];
    }
    this.#claim(
      { kind: "port", port },
      RANK.listener,
      decision,
      this.#decider.identify(undefined, port, decision),
    );
  }

  /** Chains for address blocks. Chains of the same block differ only in matches that are evaluated after connect(). */
  #addBlocks(listener: ListenerRecord, chains: readonly Chain[], port: number): void {
    const blocks = new Map<string, { block: Prefix; chains: Chain[] }>();
    for (const chain of chains) {
      for (const block of chain.prefixes) {
        const key = `${block.address}/${block.length}`;
        const known = blocks.get(key);
        if (known === undefined) blocks.set(key, { block, chains: [chain] });
        else known.chains.push(chain);
      }
    }
    for (const [key, { block, chains: fitting }] of blocks) {
      const splitName = `${listener.name} ${key}`;
      const plain = fitting.find(({ serverNames }) => serverNames.length === 0)?.action;
      const named = fitting.filter(({ serverNames }) => serverNames.length > 0);
      const decision =
        plain === undefined
          ? this.#decider.decideNamed(named, splitName, undefined, port)
          : this.#decider.decidePlain(plain, named, splitName);
      const service = this.#decider.identify(undefined, port, decision);
      this.#claim(matchOf(block.address, block.length, port), RANK.listener, decision, service);
    }
  }

  /** Adds a virtual host of a listener for all addresses of a port. */
  #addHost(host: VirtualHostRecord, port: number, routes: string): void {
    if (host.everything) return;
    // istiod names a virtual host like its service.
    const service =
      host.port === 0 ? serviceId(host.host, port) : { name: host.name, host: host.host, port: host.port };
    const decision: Decision = {
      destination: host.destination,
      target: this.#decider.target(host.destination, routes, host.name),
      hashesSource: host.hashesSource,
      notes: host.notes,
      host: host.host,
    };
    const known = this.#store.names.addresses.get(host.host) ?? [];
    for (const address of host.addresses) {
      this.#claim({ kind: "address", address, port }, RANK.address, decision, service);
    }
    for (const { address, length } of host.prefixes) {
      this.#claim(matchOf(address, length, port), RANK.address, decision, service);
      this.#note(service.name, ONE_BLOCK);
    }
    for (const address of known) {
      if (host.addresses.includes(address)) continue;
      this.#claim({ kind: "address", address, port }, RANK.address, decision, service);
    }
    if (host.addresses.length + host.prefixes.length + known.length > 0) {
      if (host.prefixes.length === 0 && [...host.addresses, ...known].every(isAutomatic)) {
        this.#addUndecidable(port, host.host, service, AUTOMATIC_ADDRESS);
      }
      return;
    }
    if (host.headless && this.#addHeadless(host, port, decision, service)) return;
    this.#addUndecidable(port, host.host, service, NO_ADDRESS);
    for (const one of host.notes) this.#note(service.name, one);
  }

  /** Adds the endpoints' addresses of a headless service as frontends. Gives whether there are any. */
  #addHeadless(host: VirtualHostRecord, port: number, decision: Decision, service: ServiceId): boolean {
    const endpointsName = ownCluster(host.host, service.port);
    this.#headless.add(endpointsName);
    let any = false;
    for (const { endpoints } of this.#store.endpoints.get(endpointsName)?.localities ?? []) {
      for (const { address } of endpoints) {
        any = true;
        this.#claim({ kind: "address", address, port }, RANK.endpoints, decision, service);
      }
    }
    return any;
  }

  /** A listener for one address: a TCP service, or a service whose protocol Envoy detects from the first bytes. */
  #addExact(listener: ListenerRecord, address: string, port: number): void {
    const chains = fittingChains(listener, address, port);
    const decision = this.#decider.decideExact(listener, chains, address, port);
    if (decision === undefined) return;
    const service = this.#decider.identify(address, port, decision);
    this.#claim({ kind: "address", address, port }, RANK.listener, decision, service);
    if (isAutomatic(address) && (this.#store.names.addresses.get(service.host) ?? []).every(isAutomatic)) {
      this.#addUndecidable(port, service.host, service, AUTOMATIC_ADDRESS);
    }
    // When services share an address, istiod makes a listener for the first one only.
    for (const host of hostsOf(this.#store.names, address)) {
      if (host === service.host || host.endsWith(`.${service.host}`)) continue;
      this.#note(
        serviceId(host, port).name,
        takenBy(formatMatch({ kind: "address", address, port }), service.name),
      );
    }
  }

  #claim(match: Match, rank: number, decision: Decision, service: ServiceId): void {
    if (decision.target === undefined) return;
    this.#services.set(service.name, service);
    if (decision.hashesSource) {
      for (const cluster of clustersOf(decision.destination)) this.#sourceHashed.add(cluster);
    }
    for (const one of decision.notes) this.#note(service.name, one);
    this.#claims.add(rank, {
      match,
      protocol: "tcp",
      service: service.name,
      target: decision.target,
      ...(decision.pending ? { pending: true } : {}),
    });
  }

  /** Records a host that connect() can't distinguish. `why` is the note for its service. */
  #addUndecidable(port: number, host: string, service: ServiceId, why: Note): void {
    const hosts = this.#undecidable.get(port);
    if (hosts === undefined) this.#undecidable.set(port, new Set([host]));
    else hosts.add(host);
    this.#note(service.name, why);
  }

  /**
   * With REGISTRY_ONLY, a port with such hosts stays open: refusing them would cut connections that the mesh allows.
   */
  #passUndecidable(): void {
    if (this.#decider.fallback.kind !== "refuse") return;
    for (const [port, hosts] of this.#undecidable) {
      if (this.#portWide.has(port)) continue;
      const names = [...hosts].sort();
      const some = names.slice(0, 3).join(", ");
      const list = names.length > 3 ? `${some} and ${names.length - 3} more` : some;
      const text = `port ${port} is open to every address that is no service: ${list} can't be told apart at connect time`;
      this.#meshNotes.push(note("not-enforced", text));
      const decision = this.#decider.decision(undefined, { kind: "passthrough" }, []);
      this.#claim({ kind: "port", port }, RANK.port, decision, serviceId("*", port));
    }
  }

  #note(service: string, one: Note): void {
    const notes = this.#notes.get(service);
    if (notes === undefined) this.#notes.set(service, [one]);
    else if (!notes.includes(one)) notes.push(one);
  }
}

const NO_ADDRESS = note(
  "layer7",
  "it has no address of its own: its connections can't be told from others at connect time",
);

/**
 * Observed: istiod gives the first of several blocks, another one after a restart; the name table leaves blocks out.
 */
const ONE_BLOCK = note(
  "not-enforced",
  "istiod names one address block of an HTTP service: if it has more, connections to the others are not governed",
);
const AUTOMATIC_ADDRESS = note(
  "layer7",
  "istiod allocated its only address: connections to a real address of it go there as they are, without balancing or failover",
);

function matchOf(address: string, length: number, port: number): Match {
  const whole = address.includes(":") ? 128 : 32;
  return length === whole ? { kind: "address", address, port } : { kind: "prefix", address, length, port };
}
