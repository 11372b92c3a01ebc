/**
 * Listeners, routes and names -> what apps connect to. All of it is compiled at once, since one table of routes
 * holds thousands of services; what differs from before is found by comparing.
 */
import { contains, type Prefix } from "../mesh/address.ts";
import { formatMatch, frontendKey } from "../mesh/frontend.ts";
import type { Frontend, Match, Note, Pending, Split, Target } from "../mesh/model.ts";
import { isAutomatic } from "./automatic.ts";
import type { Action, Chain, ListenerRecord } from "./listener.ts";
import { hostsOf } from "./names.ts";
import { type Notes, note, sortedNotes } from "./note.ts";
import type { Destination, RoutesRecord, VirtualHostRecord } from "./route.ts";
import {
  BLACK_HOLE,
  ownCluster,
  PASSTHROUGH,
  parseClusterName,
  type ServiceId,
  serviceId,
  serviceOfCluster,
} from "./service.ts";
import type { Store } from "./store.ts";
import { type Excluded, unreachable } from "./unreachable.ts";

export interface CompiledFrontends {
  frontends: Map<string, Frontend>;
  splits: Map<string, Split>;
  /** The services of the frontends. */
  services: Map<string, ServiceId>;
  /** By service; services that have no frontend may be among them. */
  serviceNotes: Map<string, Notes>;
  /** Clusters that some route reaches with a hash of the source address. */
  sourceHashed: Set<string>;
  /** Names of endpoints that give frontends (headless services without addresses in the table of names). */
  headless: Set<string>;
  fallback: Target;
  notes: Notes;
  /** Absent when all is known. */
  pending?: Pending;
}

/**
 * What claims a frontend, the strongest first. Of services with the same address istiod lets any have it, another one
 * after each push: so a domain counts no more than the table of names, which has them all, and the name decides.
 */
const RANK = { listener: 0, address: 1, endpoints: 2, port: 3 } as const;

interface Claim {
  rank: number;
  frontend: Frontend;
}

/** Where a connection to one address goes. */
interface Decision {
  destination: Destination | undefined;
  target: Target | undefined;
  hashesSource: boolean;
  notes: Notes;
  /** The host that the configuration itself names. */
  host: string | undefined;
  /** Only until the routes come. */
  pending?: true;
}

/** Compiles everything that listeners, routes and names say. Frontends within `excluded` are listed as never reached. */
export function compileFrontends(store: Store, excluded: readonly Excluded[] = []): CompiledFrontends {
  return new Builder(store, excluded).build();
}

class Builder {
  readonly #store: Store;
  readonly #excluded: readonly Excluded[];
  readonly #claims = new Map<string, Claim | Claim[]>();
  readonly #splits = new Map<string, Split>();
  readonly #services = new Map<string, ServiceId>();
  readonly #notes = new Map<string, Note[]>();
  readonly #meshNotes: Note[] = [];
  readonly #sourceHashed = new Set<string>();
  readonly #headless = new Set<string>();
  /** Hosts whose connections can't be told from others at connect time, by port. */
  readonly #undecidable = new Map<number, Set<string>>();
  /** Ports with a frontend for every address. */
  readonly #portWide = new Set<number>();
  /** Ports whose frontends are not all known. */
  readonly #unknownPorts = new Set<number>();
  #fallback: Target = { kind: "passthrough" };

  constructor(store: Store, excluded: readonly Excluded[]) {
    this.#store = store;
    this.#excluded = excluded;
  }

  build(): CompiledFrontends {
    const listeners = [...this.#store.listeners.values()];
    listeners.sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
    for (const listener of listeners) {
      if (listener.kind === "catch-all") this.#fallback = this.#fallbackOf(listener);
      this.#meshNotes.push(...listener.notes);
    }
    for (const listener of listeners) if (listener.kind === "outbound") this.#addListener(listener);
    const pending = this.#findUnknown();
    this.#passUndecidable();
    const frontends = this.#resolveClaims();
    for (const { match, service } of frontends.values()) {
      const why = unreachable(match, this.#excluded);
      if (why !== undefined) this.#note(service, note("not-enforced", why));
    }
    const serviceNotes = new Map<string, Notes>();
    for (const [service, notes] of this.#notes) serviceNotes.set(service, sortedNotes(notes));
    return {
      frontends,
      splits: this.#usedSplits(frontends),
      services: this.#services,
      serviceNotes,
      sourceHashed: this.#sourceHashed,
      headless: this.#headless,
      fallback: this.#fallback,
      notes: sortedNotes([...this.#meshNotes, ...this.#store.names.notes]),
      ...(pending ? { pending } : {}),
    };
  }

  /** What routes that did not come, and malformed resources without an earlier form, would say. */
  #findUnknown(): Pending | undefined {
    const { lost } = this.#store;
    let all = lost.names.size > 0;
    let fallback = false;
    for (const name of lost.listener) {
      const port = /_(\d{1,5})$/.exec(name)?.[1];
      if (name === "virtualOutbound") fallback = true;
      else if (port !== undefined) this.#unknownPorts.add(Number(port));
      else if (name !== "virtualInbound") all = true;
    }
    if (!all && !fallback && this.#unknownPorts.size === 0) return undefined;
    const ports = [...this.#unknownPorts].sort((a, b) => a - b);
    const what = all
      ? "all ports"
      : ports.length > 0
        ? `port ${ports.join(", ")}`
        : "connections to no service";
    const text = `istiod's configuration for ${what} has not come, or is malformed: what the kernel had before stays`;
    this.#meshNotes.push(note("not-enforced", text));
    return { ports: all ? "all" : this.#unknownPorts, fallback };
  }

  /** Whether an action leads to routes that istiod has not sent yet. Notes the port. */
  #isUnknown(action: Action, port: number): boolean {
    if (action.kind !== "routes" || !this.#store.awaits(action.routes)) return false;
    this.#unknownPorts.add(port);
    return true;
  }

  /** The chain of virtualOutbound that takes everything; the other one guards Envoy's own port. */
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
    return this.#target(destination, listener.name);
  }

  #addListener(listener: ListenerRecord): void {
    for (const { address, port } of listener.addresses) {
      if (address === "0.0.0.0" || address === "::") this.#addWildcard(listener, port);
      else this.#addExact(listener, address, port);
    }
  }

  /** A listener for every address of a port: HTTP services, address blocks, and what has no address at all. */
  #addWildcard(listener: ListenerRecord, port: number): void {
    let everything: Action | undefined;
    const blocks: Chain[] = [];
    for (const chain of listener.chains) {
      if (chain.port !== 0 && chain.port !== port) continue;
      const { action } = chain;
      if (this.#isUnknown(action, port)) continue;
      const routes = this.#routesOf(action);
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
    everything ??= this.#otherwise(listener);
    if (everything === undefined || this.#portWide.has(port)) return;
    this.#portWide.add(port);
    const decision = this.#decisionOf(everything, listener.name);
    const only = familyOf(listener, port);
    if (only !== undefined) {
      const text = `istiod's listener takes ${only} connections to every address of port ${port}: those of the other family are taken along`;
      decision.notes = [...decision.notes, note("not-enforced", text)];
    }
    this.#claim({ kind: "port", port }, RANK.listener, decision, this.#identify(undefined, port, decision));
  }

  /** The default chain, unless it only says what the mesh's own fallback says. */
  #otherwise(listener: ListenerRecord): Action | undefined {
    const action = listener.otherwise;
    if (action?.kind !== "tcp") return action?.kind === "refuse" ? action : undefined;
    const { destination } = action;
    if (destination.kind === "cluster") {
      const { cluster } = destination;
      const fallback = this.#fallback;
      if (cluster === PASSTHROUGH && fallback.kind === "passthrough") return undefined;
      if (cluster === BLACK_HOLE && fallback.kind === "refuse") return undefined;
      if (fallback.kind === "cluster" && fallback.cluster === cluster) return undefined;
    }
    return action;
  }

  /** Chains for address blocks: those for the same block are told apart by what is seen after connect(). */
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
          ? this.#decideNamed(named, splitName, undefined, port)
          : this.#decidePlain(plain, named, splitName);
      const service = this.#identify(undefined, port, decision);
      this.#claim(matchOf(block.address, block.length, port), RANK.listener, decision, service);
    }
  }

  /** A virtual host behind the listener of a whole port. */
  #addHost(host: VirtualHostRecord, port: number, routes: string): void {
    if (host.everything) return;
    // istiod's name of a virtual host is its service's.
    const service =
      host.port === 0 ? serviceId(host.host, port) : { name: host.name, host: host.host, port: host.port };
    const decision: Decision = {
      destination: host.destination,
      target: this.#target(host.destination, routes, host.name),
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

  /** The addresses of a headless service are those of its endpoints. Gives whether it has any. */
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

  /** A listener for one address: a TCP service, or one whose protocol is found out from its first bytes. */
  #addExact(listener: ListenerRecord, address: string, port: number): void {
    const chains = fittingChains(listener, address, port);
    const decision = this.#decideExact(listener, chains, address, port);
    if (decision === undefined) return;
    const service = this.#identify(address, port, decision);
    this.#claim({ kind: "address", address, port }, RANK.listener, decision, service);
    if (isAutomatic(address) && (this.#store.names.addresses.get(service.host) ?? []).every(isAutomatic)) {
      this.#addUndecidable(port, service.host, service, AUTOMATIC_ADDRESS);
    }
    // Of services with the same address istiod makes a listener for the first one alone.
    for (const host of hostsOf(this.#store.names, address)) {
      if (host === service.host || host.endsWith(`.${service.host}`)) continue;
      this.#note(
        serviceId(host, port).name,
        takenBy(formatMatch({ kind: "address", address, port }), service.name),
      );
    }
  }

  /** Gives undefined when that is not known yet. */
  #decideExact(
    listener: ListenerRecord,
    chains: readonly Chain[],
    address: string,
    port: number,
  ): Decision | undefined {
    const isPlain = ({ action, serverNames }: Chain) => !isRouted(action) && serverNames.length === 0;
    const otherwise = listener.otherwise;
    const beyond = this.#otherwise(listener);
    const plain = chains.find(isPlain)?.action ?? (leadsOn(beyond) ? beyond : undefined);
    const http = chains.find(({ action }) => isRouted(action))?.action;
    const named = chains.filter(({ action, serverNames }) => !isRouted(action) && serverNames.length > 0);
    const isUnknown = http !== undefined && this.#isUnknown(http, port);
    if (isUnknown && plain === undefined) return undefined;
    if (isUnknown && plain !== undefined) {
      return { ...this.#decidePlain(plain, named, listener.name), pending: true };
    }
    if (http !== undefined) {
      const routed = this.#decideRouted(listener, http, address, port);
      if (routed !== undefined) {
        return plain === undefined ? routed : this.#decideSniffed(listener, plain, routed, port);
      }
    }
    if (plain !== undefined) return this.#decidePlain(plain, named, listener.name);
    if (named.length > 0) return this.#decideNamed(named, listener.name, address, port);
    if (otherwise !== undefined && !isRouted(otherwise)) return this.#decisionOf(otherwise, listener.name);
    // Envoy closes what no chain takes.
    return this.#decision(undefined, { kind: "refuse", reason: "policy" }, []);
  }

  /** The chain that asks for no server name takes those that do along. */
  #decidePlain(plain: Action, named: readonly Chain[], splitName: string): Decision {
    const decision = this.#decisionOf(plain, splitName);
    const others = named.filter(
      ({ action }) => !sameDestination(destinationOf(action), decision.destination),
    );
    if (others.length > 0) {
      const text = `routes by TLS server name (${namesOf(others)}): the name is not looked at, these connections go where those with any other name do`;
      decision.notes = [...decision.notes, note("layer7", text)];
    }
    return decision;
  }

  /** Only TLS with certain server names is taken, and connect() sees no name: one way for all, the service's own cluster at best. */
  #decideNamed(
    named: readonly Chain[],
    splitName: string,
    address: string | undefined,
    port: number,
  ): Decision {
    const [first] = named;
    if (first === undefined) return this.#decision(undefined, undefined, []);
    const decision = this.#decisionOf(first.action, splitName);
    const names = namesOf(named);
    if (named.every(({ action }) => sameDestination(destinationOf(action), decision.destination))) {
      const text = `taken for the TLS server name ${names} alone: the name is not looked at, connections with another one, or without TLS, go the same way`;
      decision.notes = [...decision.notes, note("layer7", text)];
      return decision;
    }
    const service = this.#identify(address, port, decision);
    const destination: Destination = { kind: "cluster", cluster: ownCluster(service.host, service.port) };
    const text = `routes by TLS server name (${names}) lead to different clusters: the name is not looked at, all connections go to ${destination.cluster}`;
    return {
      ...decision,
      destination,
      target: this.#target(destination, splitName),
      hashesSource: false,
      notes: [...decision.notes, note("layer7", text)],
    };
  }

  /** The virtual host of an address; undefined when its routes are not known (yet). */
  #decideRouted(
    listener: ListenerRecord,
    action: Action,
    address: string,
    port: number,
  ): Decision | undefined {
    const hosts = this.#routesOf(action)?.hosts;
    if (hosts === undefined || hosts.length === 0) return undefined;
    const names = hostsOf(this.#store.names, address);
    const host =
      hosts.find(({ addresses }) => addresses.includes(address)) ??
      hosts.find((one) => names.includes(one.host) && (one.port === 0 || one.port === port)) ??
      hosts.find(({ everything, name }) => everything && name !== "allow_any" && name !== "block_all") ??
      (hosts.length === 1 ? hosts[0] : undefined);
    if (host === undefined) return undefined;
    return {
      destination: host.destination,
      target: this.#target(host.destination, routesName(listener, action), host.name),
      hashesSource: host.hashesSource,
      notes: host.notes,
      host: host.port === 0 ? undefined : host.host,
    };
  }

  /** HTTP or not is seen in the first bytes, after connect(): whoever configured one of the two meant that one. */
  #decideSniffed(listener: ListenerRecord, plain: Action, routed: Decision, port: number): Decision {
    const tcp = this.#decisionOf(plain, listener.name);
    if (sameDestination(tcp.destination, routed.destination)) {
      return {
        ...routed,
        hashesSource: routed.hashesSource || tcp.hashesSource,
        notes: [...routed.notes, ...tcp.notes],
      };
    }
    const own = routed.host === undefined ? undefined : ownCluster(routed.host, port);
    const { destination } = tcp;
    if (destination?.kind === "cluster" && destination.cluster === own) {
      const text = "its protocol is found out from the first bytes: the HTTP route takes all connections";
      return { ...routed, notes: [...routed.notes, ...tcp.notes, note("layer7", text)] };
    }
    const text = "its protocol is found out from the first bytes: the TCP route takes all connections";
    return { ...tcp, host: routed.host, notes: [...tcp.notes, note("layer7", text)] };
  }

  #decisionOf(action: Action, splitName: string): Decision {
    if (action.kind === "tcp") {
      const target = this.#target(action.destination, splitName);
      return {
        ...this.#decision(action.destination, target, action.notes),
        hashesSource: action.hashesSource,
      };
    }
    if (action.kind === "refuse") {
      return this.#decision(undefined, { kind: "refuse", reason: action.reason }, action.notes);
    }
    return this.#decision(undefined, undefined, []);
  }

  #decision(destination: Destination | undefined, target: Target | undefined, notes: Notes): Decision {
    return { destination, target, hashesSource: false, notes, host: undefined };
  }

  /** The service that a frontend counts for: the one whose address it is, else the one that it leads to. */
  #identify(address: string | undefined, port: number, decision: Decision): ServiceId {
    const hosts = address === undefined ? [] : hostsOf(this.#store.names, address);
    const led = clustersOf(decision.destination).map(parseClusterName);
    const named = decision.host;
    if (named !== undefined && (hosts.length === 0 || hosts.includes(named))) return serviceId(named, port);
    for (const cluster of led) {
      if (cluster !== undefined && cluster.port === port && hosts.includes(cluster.host)) {
        return serviceId(cluster.host, port);
      }
    }
    for (const cluster of led) {
      if (cluster !== undefined && hosts.includes(cluster.host)) return serviceId(cluster.host, port);
    }
    const [host] = hosts;
    if (host !== undefined) return serviceId(host, port);
    const [first] = led;
    if (first !== undefined && first.host !== "") return serviceId(first.host, port);
    const [cluster] = clustersOf(decision.destination);
    return cluster === undefined || cluster === PASSTHROUGH || cluster === BLACK_HOLE
      ? serviceId(address ?? "*", port)
      : serviceOfCluster(cluster);
  }

  /** `names`, joined, call a split: where it is configured, so that new weights keep the name. */
  #target(destination: Destination, ...names: readonly string[]): Target {
    if (destination.kind === "cluster") {
      const { cluster } = destination;
      if (cluster === PASSTHROUGH) return { kind: "passthrough" };
      if (cluster === BLACK_HOLE) return { kind: "refuse", reason: "policy" };
      return { kind: "cluster", cluster };
    }
    const splitName = names.join(" ");
    this.#splits.set(splitName, { name: splitName, shares: [...destination.shares] });
    return { kind: "split", split: splitName };
  }

  #routesOf(action: Action): RoutesRecord | undefined {
    if (action.kind === "inline-routes") return action.routes;
    return action.kind === "routes" ? this.#store.routes.get(action.routes) : undefined;
  }

  #claim(match: Match, rank: number, decision: Decision, service: ServiceId): void {
    if (decision.target === undefined) return;
    this.#services.set(service.name, service);
    if (decision.hashesSource) {
      for (const cluster of clustersOf(decision.destination)) this.#sourceHashed.add(cluster);
    }
    for (const one of decision.notes) this.#note(service.name, one);
    const frontend: Frontend = {
      match,
      protocol: "tcp",
      service: service.name,
      target: decision.target,
      ...(decision.pending ? { pending: true } : {}),
    };
    const key = frontendKey(frontend);
    const claim = { rank, frontend };
    const known = this.#claims.get(key);
    if (known === undefined) this.#claims.set(key, claim);
    else if (Array.isArray(known)) known.push(claim);
    else this.#claims.set(key, [known, claim]);
  }

  #resolveClaims(): Map<string, Frontend> {
    const frontends = new Map<string, Frontend>();
    for (const [key, claims] of this.#claims) {
      if (!Array.isArray(claims)) {
        frontends.set(key, claims.frontend);
        continue;
      }
      claims.sort(compareClaims);
      const [winner, ...losers] = claims;
      if (winner === undefined) continue;
      frontends.set(key, winner.frontend);
      for (const { frontend } of losers) {
        if (frontend.service === winner.frontend.service) continue;
        this.#note(frontend.service, takenBy(formatMatch(frontend.match), winner.frontend.service));
      }
    }
    return frontends;
  }

  /** Without those of routes that were not taken. */
  #usedSplits(frontends: Map<string, Frontend>): Map<string, Split> {
    const used = new Map<string, Split>();
    const use = (target: Target) => {
      const split = target.kind === "split" ? this.#splits.get(target.split) : undefined;
      if (split !== undefined) used.set(split.name, split);
    };
    use(this.#fallback);
    for (const { target } of frontends.values()) use(target);
    return used;
  }

  /** `why` is the remark beside the service. */
  #addUndecidable(port: number, host: string, service: ServiceId, why: Note): void {
    const hosts = this.#undecidable.get(port);
    if (hosts === undefined) this.#undecidable.set(port, new Set([host]));
    else hosts.add(host);
    this.#note(service.name, why);
  }

  /** In a closed mesh, a port with such hosts stays open: refusing them would cut what the mesh allows. */
  #passUndecidable(): void {
    if (this.#fallback.kind !== "refuse") return;
    for (const [port, hosts] of this.#undecidable) {
      if (this.#portWide.has(port)) continue;
      const names = [...hosts].sort();
      const some = names.slice(0, 3).join(", ");
      const list = names.length > 3 ? `${some} and ${names.length - 3} more` : some;
      const text = `port ${port} is open to every address that is no service: ${list} can't be told apart at connect time`;
      this.#meshNotes.push(note("not-enforced", text));
      const decision = this.#decision(undefined, { kind: "passthrough" }, []);
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

/** Seen: the first of several, another one after a restart of istiod; the table of names leaves blocks out. */
const ONE_BLOCK = note(
  "not-enforced",
  "istiod names one address block of an HTTP service: if it has more, connections to the others are not governed",
);
const AUTOMATIC_ADDRESS = note(
  "layer7",
  "istiod allocated its only address: connections to a real address of it go there as they are, without balancing or failover",
);

/** The server names of chains, the first three of them. */
function namesOf(chains: readonly Chain[]): string {
  const names = [...new Set(chains.flatMap(({ serverNames }) => serverNames))].sort();
  const some = names.slice(0, 3).join(", ");
  return names.length > 3 ? `${some} and ${names.length - 3} more` : some;
}

function takenBy(match: string, service: string): Note {
  return note("conflict", `${match} belongs to ${service}`);
}

function matchOf(address: string, length: number, port: number): Match {
  const whole = address.includes(":") ? 128 : 32;
  return length === whole ? { kind: "address", address, port } : { kind: "prefix", address, length, port };
}

/** The chains that take connections to an address: those whose prefixes fit best. */
function fittingChains(listener: ListenerRecord, address: string, port: number): readonly Chain[] {
  const [only] = listener.chains;
  if (listener.chains.length === 1 && only?.port === 0 && only.prefixes.length === 0) return listener.chains;
  const fitting = listener.chains.filter(
    (chain) => (chain.port === 0 || chain.port === port) && specificity(chain, address) >= 0,
  );
  const best = Math.max(...fitting.map((chain) => specificity(chain, address)));
  return fitting.filter((chain) => specificity(chain, address) === best);
}

/** How well a chain's prefixes fit an address: their length, 0 when it has none, -1 when they don't. */
function specificity(chain: Chain, address: string): number {
  if (chain.prefixes.length === 0) return 0;
  let best = -1;
  for (const prefix of chain.prefixes) {
    // A default route (length 0) still is more specific than no prefix at all.
    if (contains(prefix, address)) best = Math.max(best, prefix.length + 1);
  }
  return best;
}

/** The one family whose addresses a wildcard listener takes on a port; undefined when it takes both. */
function familyOf(listener: ListenerRecord, port: number): "IPv4" | "IPv6" | undefined {
  const addresses = listener.addresses.filter((one) => one.port === port).map(({ address }) => address);
  if (addresses.includes("0.0.0.0") && addresses.includes("::")) return undefined;
  return addresses.includes("::") ? "IPv6" : "IPv4";
}

function isRouted(action: Action): boolean {
  return action.kind === "routes" || action.kind === "inline-routes";
}

function routesName(listener: ListenerRecord, action: Action): string {
  return action.kind === "routes" ? action.routes : listener.name;
}

function destinationOf(action: Action | undefined): Destination | undefined {
  return action?.kind === "tcp" ? action.destination : undefined;
}

/** Whether an action leads into the mesh: not just out of it, and not into the void. */
function leadsOn(action: Action | undefined): boolean {
  if (action?.kind === "refuse") return true;
  const destination = destinationOf(action);
  if (destination === undefined) return false;
  return (
    destination.kind === "shares" ||
    (destination.cluster !== PASSTHROUGH && destination.cluster !== BLACK_HOLE)
  );
}

function serviceOfAction(action: Action): ServiceId {
  const [cluster] = clustersOf(destinationOf(action));
  return serviceOfCluster(cluster ?? "*");
}

function clustersOf(destination: Destination | undefined): string[] {
  if (destination === undefined) return [];
  if (destination.kind === "cluster") return [destination.cluster];
  return destination.shares.map(({ cluster }) => cluster);
}

function sameDestination(a: Destination | undefined, b: Destination | undefined): boolean {
  if (a === undefined || b === undefined) return a === b;
  if (a.kind === "cluster" || b.kind === "cluster") {
    return a.kind === "cluster" && b.kind === "cluster" && a.cluster === b.cluster;
  }
  return (
    a.shares.length === b.shares.length &&
    a.shares.every((share, i) => {
      const other = b.shares[i];
      return share.cluster === other?.cluster && share.weight === other.weight;
    })
  );
}

function compareClaims(a: Claim, b: Claim): number {
  return (
    a.rank - b.rank ||
    compareText(a.frontend.service, b.frontend.service) ||
    compareText(JSON.stringify(a.frontend.target), JSON.stringify(b.frontend.target))
  );
}

function compareText(a: string, b: string): number {
  return a === b ? 0 : a < b ? -1 : 1;
}
