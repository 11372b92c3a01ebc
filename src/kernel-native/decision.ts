/** The destination of a connection, as far as connect() can decide it: from filter chains, routes and names. */
import type { Frontend, Split, Target } from "../mesh/model.ts";
import {
  clustersOf,
  destinationOf,
  isRouted,
  leadsOn,
  namesOf,
  routesName,
  sameDestination,
} from "./chains.ts";
import type { Action, Chain, ListenerRecord } from "./resources/listener.ts";
import { hostsOf } from "./resources/names.ts";
import { type Notes, note } from "./resources/note.ts";
import type { Destination, RoutesRecord } from "./resources/route.ts";
import {
  BLACK_HOLE,
  ownCluster,
  PASSTHROUGH,
  parseClusterName,
  type ServiceId,
  serviceId,
  serviceOfCluster,
} from "./resources/service.ts";
import type { Store } from "./store.ts";

/** The destination of connections to one address. */
export interface Decision {
  destination: Destination | undefined;
  target: Target | undefined;
  hashesSource: boolean;
  notes: Notes;
  /** The host that the routes name. */
  host: string | undefined;
  /** Valid only until the routes arrive. */
  pending?: true;
}

/**
 * Decides destinations from one state of the store. Collects the splits that the decisions use, and the ports that
 * can't be decided yet.
 */
export class Decider {
  readonly #store: Store;
  readonly #splits = new Map<string, Split>();
  /** Ports with frontends that are not known yet. */
  readonly unknownPorts = new Set<number>();
  /** The target of connections that match no frontend. */
  fallback: Target = { kind: "passthrough" };

  constructor(store: Store) {
    this.#store = store;
  }

  /** Whether istiod has not sent the routes of an action yet. Records the port if so. */
  isUnknown(action: Action, port: number): boolean {
    if (action.kind !== "routes" || !this.#store.awaits(action.routes)) return false;
    this.unknownPorts.add(port);
    return true;
  }

  /** The default chain, unless it does the same as the mesh's fallback. */
  otherwise(listener: ListenerRecord): Action | undefined {
    const action = listener.otherwise;
    if (action?.kind !== "tcp") return action?.kind === "refuse" ? action : undefined;
    const { destination } = action;
    if (destination.kind === "cluster") {
      const { cluster } = destination;
      const fallback = this.fallback;
      if (cluster === PASSTHROUGH && fallback.kind === "passthrough") return undefined;
      if (cluster === BLACK_HOLE && fallback.kind === "refuse") return undefined;
      if (fallback.kind === "cluster" && fallback.cluster === cluster) return undefined;
    }
    return action;
  }

  /** The decision for one address and port of a listener; undefined when it is not known yet. */
  decideExact(
    listener: ListenerRecord,
    chains: readonly Chain[],
    address: string,
    port: number,
  ): Decision | undefined {
    const isPlain = ({ action, serverNames }: Chain) => !isRouted(action) && serverNames.length === 0;
    const otherwise = listener.otherwise;
    const beyond = this.otherwise(listener);
    const plain = chains.find(isPlain)?.action ?? (leadsOn(beyond) ? beyond : undefined);
    const http = chains.find(({ action }) => isRouted(action))?.action;
    const named = chains.filter(({ action, serverNames }) => !isRouted(action) && serverNames.length > 0);
    const isUnknown = http !== undefined && this.isUnknown(http, port);
    if (isUnknown && plain === undefined) return undefined;
    if (isUnknown && plain !== undefined) {
      return { ...this.decidePlain(plain, named, listener.name), pending: true };
    }
    if (http !== undefined) {
      const routed = this.#decideRouted(listener, http, address, port);
      if (routed !== undefined) {
        return plain === undefined ? routed : this.#decideSniffed(listener, plain, routed, port);
      }
    }
    if (plain !== undefined) return this.decidePlain(plain, named, listener.name);
    if (named.length > 0) return this.decideNamed(named, listener.name, address, port);
    if (otherwise !== undefined && !isRouted(otherwise)) return this.decisionOf(otherwise, listener.name);
    // Envoy closes connections that match no chain.
    return this.decision(undefined, { kind: "refuse", reason: "policy" }, []);
  }

  /**
   * The decision of a chain without server names. It also governs connections that chains with server names would
   * match.
   */
  decidePlain(plain: Action, named: readonly Chain[], splitName: string): Decision {
    const decision = this.decisionOf(plain, splitName);
    const others = named.filter(
      ({ action }) => !sameDestination(destinationOf(action), decision.destination),
    );
    if (others.length > 0) {
      const text = `routes by TLS server name (${namesOf(others)}): the name is not looked at, these connections go where those with any other name do`;
      decision.notes = [...decision.notes, note("layer7", text)];
    }
    return decision;
  }

  /**
   * All chains match TLS server names, which connect() can't see. All connections get one destination: the common
   * one, else the service's own cluster.
   */
  decideNamed(
    named: readonly Chain[],
    splitName: string,
    address: string | undefined,
    port: number,
  ): Decision {
    const [first] = named;
    if (first === undefined) return this.decision(undefined, undefined, []);
    const decision = this.decisionOf(first.action, splitName);
    const names = namesOf(named);
    if (named.every(({ action }) => sameDestination(destinationOf(action), decision.destination))) {
      const text = `taken for the TLS server name ${names} alone: the name is not looked at, connections with another one, or without TLS, go the same way`;
      decision.notes = [...decision.notes, note("layer7", text)];
      return decision;
    }
    const service = this.identify(address, port, decision);
    const destination: Destination = { kind: "cluster", cluster: ownCluster(service.host, service.port) };
    const text = `routes by TLS server name (${names}) lead to different clusters: the name is not looked at, all connections go to ${destination.cluster}`;
    return {
      ...decision,
      destination,
      target: this.target(destination, splitName),
      hashesSource: false,
      notes: [...decision.notes, note("layer7", text)],
    };
  }

  /** The decision of the virtual host of an address; undefined when its routes are unknown. */
  #decideRouted(
    listener: ListenerRecord,
    action: Action,
    address: string,
    port: number,
  ): Decision | undefined {
    const hosts = this.routesOf(action)?.hosts;
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
      target: this.target(host.destination, routesName(listener, action), host.name),
      hashesSource: host.hashesSource,
      notes: host.notes,
      host: host.port === 0 ? undefined : host.host,
    };
  }

  /**
   * Envoy detects HTTP from the first bytes, after connect(). The route wins that an operator configured; the default
   * route to the service's own cluster loses.
   */
  #decideSniffed(listener: ListenerRecord, plain: Action, routed: Decision, port: number): Decision {
    const tcp = this.decisionOf(plain, listener.name);
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

  /** The decision of an action. `splitName` names its split if it has weights. */
  decisionOf(action: Action, splitName: string): Decision {
    if (action.kind === "tcp") {
      const target = this.target(action.destination, splitName);
      return {
        ...this.decision(action.destination, target, action.notes),
        hashesSource: action.hashesSource,
      };
    }
    if (action.kind === "refuse") {
      return this.decision(undefined, { kind: "refuse", reason: action.reason }, action.notes);
    }
    return this.decision(undefined, undefined, []);
  }

  /** A decision with a target and without a host. */
  decision(destination: Destination | undefined, target: Target | undefined, notes: Notes): Decision {
    return { destination, target, hashesSource: false, notes, host: undefined };
  }

  /** The service to which a frontend belongs: the service with that address, else the service of its destination. */
  identify(address: string | undefined, port: number, decision: Decision): ServiceId {
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

  /**
   * The target of a destination. `names`, joined, name the split. They say where it is configured, so that new
   * weights keep the name.
   */
  target(destination: Destination, ...names: readonly string[]): Target {
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

  /** The routes of an action; undefined when it has none, or they have not arrived. */
  routesOf(action: Action): RoutesRecord | undefined {
    if (action.kind === "inline-routes") return action.routes;
    return action.kind === "routes" ? this.#store.routes.get(action.routes) : undefined;
  }

  /** The splits that these frontends and the fallback use. */
  usedSplits(frontends: ReadonlyMap<string, Frontend>): Map<string, Split> {
    const used = new Map<string, Split>();
    const use = (target: Target) => {
      const split = target.kind === "split" ? this.#splits.get(target.split) : undefined;
      if (split !== undefined) used.set(split.name, split);
    };
    use(this.fallback);
    for (const { target } of frontends.values()) use(target);
    return used;
  }
}
