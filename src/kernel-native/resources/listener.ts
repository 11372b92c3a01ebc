/** LDS: one listener, flattened to its addresses, and the destination of each filter chain. */
import { MalformedResource } from "../../istiod/stream/sink.ts";
import { canonicalAddress, type Prefix, parsePrefix } from "../../mesh/address.ts";
import type { Inbound } from "../../mesh/inbound.ts";
import type { Note, Reason } from "../../mesh/model.ts";
import { envoy } from "./envoy.gen.js";
import { inboundOf } from "./inbound.ts";
import { NO_NOTES, type Notes, note, sortedNotes } from "./note.ts";
import { type Destination, flattenInlineRoutes, type RoutesRecord, sharesOf } from "./route.ts";
import { checkEnum, checkName, decode, decodeAny, guarded, messageName, seconds, shortName } from "./wire.ts";

/** What a filter chain does with a connection. */
export type Action =
  | { kind: "tcp"; destination: Destination; hashesSource: boolean; notes: Notes }
  /** HTTP with routes from RDS. */
  | { kind: "routes"; routes: string }
  | { kind: "inline-routes"; routes: RoutesRecord }
  | { kind: "refuse"; reason: Reason; notes: Notes };

/** A filter chain and its match, as far as connect() can evaluate it. */
export interface Chain {
  /** Empty = every address of the listener. */
  prefixes: readonly Prefix[];
  /** 0 = every port. */
  port: number;
  /** Matches only TLS with one of these server names; empty = no condition. */
  serverNames: readonly string[];
  /** Matches only some transport or application protocols, which Envoy detects from the first bytes. */
  sniffed: boolean;
  action: Action;
}

export interface ListenerAddress {
  /** Canonical. */
  address: string;
  port: number;
}

export interface ListenerRecord {
  name: string;
  /** `catch-all`: for connections that match no other listener. `inbound`: for connections to this machine. */
  kind: "outbound" | "catch-all" | "inbound" | "ignored";
  addresses: readonly ListenerAddress[];
  chains: readonly Chain[];
  /** The default filter chain, for connections that match no other chain. */
  otherwise: Action | undefined;
  /** RDS names to subscribe to. */
  routes: readonly string[];
  /** Of the whole mesh, not of a service. */
  notes: Notes;
  /** Who may connect to this machine; of kind `inbound` alone. */
  inbound?: Inbound;
}

const NOTHING: readonly never[] = [];
const TRAFFIC_DIRECTION_MAX = 2;
const INBOUND = 1;

/** Flattens one listener. Throws MalformedResource. */
export function flattenListener(resource: string, bytes: Uint8Array): ListenerRecord {
  const listener = decode(envoy.Listener, resource, bytes);
  checkName(resource, listener.name);
  checkEnum(resource, "traffic_direction", listener.trafficDirection, TRAFFIC_DIRECTION_MAX);
  return guarded(resource, () => flatten(resource, listener));
}

function flatten(resource: string, listener: envoy.Listener): ListenerRecord {
  const record: ListenerRecord = {
    name: resource,
    kind: "ignored",
    addresses: NOTHING,
    chains: NOTHING,
    otherwise: undefined,
    routes: NOTHING,
    notes: NO_NOTES,
  };
  if (listener.trafficDirection === INBOUND) {
    if (listener.filterChains.length === 0) return { ...record, kind: "inbound" };
    const { inbound, notes } = inboundOf(resource, listener);
    return { ...record, kind: "inbound", inbound, notes: sortedNotes(notes) };
  }
  const socket = listener.address?.socketAddress;
  const addresses: ListenerAddress[] = [];
  let udp = false;
  for (const given of [listener.address, ...listener.additionalAddresses.map(({ address }) => address)]) {
    if (!given?.socketAddress) continue;
    const protocol = given.socketAddress.protocol ?? 0;
    checkEnum(resource, "the protocol of an address", protocol, 1);
    if (protocol === 1) udp = true;
    else addresses.push(addressOf(resource, given.socketAddress));
  }
  if (udp) return { ...record, notes: ignoredNote(resource, "UDP is not handled yet") };
  if (!socket || addresses.length === 0) {
    // Listeners inside Envoy (connect_originate) have no address and concern no connection of apps.
    const pipe = listener.address?.pipe?.path;
    if (!pipe) return record;
    return { ...record, notes: ignoredNote(resource, `it listens on the unix socket ${shortName(pipe)}`) };
  }
  const catchAll = resource === "virtualOutbound" || Boolean(listener.useOriginalDst?.value);
  const chains: Chain[] = [];
  const lost: Note[] = [];
  for (const chain of listener.filterChains) {
    const match = chain.filterChainMatch;
    if ((match?.sourcePrefixRanges?.length ?? 0) + (match?.sourcePorts?.length ?? 0) > 0) {
      lost.push(
        note("not-enforced", `listener ${resource}: a filter chain that looks at the source is left out`),
      );
      continue;
    }
    const action = actionOf(resource, chain);
    if (action === undefined) {
      lost.push(
        note("not-enforced", `listener ${resource}: a filter chain without tcp_proxy or HTTP is left out`),
      );
      continue;
    }
    chains.push({
      prefixes: (match?.prefixRanges ?? []).map((range) => prefixOf(resource, range)),
      port: match?.destinationPort?.value ?? 0,
      serverNames: match?.serverNames?.length ? match.serverNames : NOTHING,
      sniffed: Boolean(match?.transportProtocol) || (match?.applicationProtocols?.length ?? 0) > 0,
      action,
    });
  }
  const otherwise = listener.defaultFilterChain ? actionOf(resource, listener.defaultFilterChain) : undefined;
  const routes = new Set<string>();
  for (const { action } of chains) if (action.kind === "routes") routes.add(action.routes);
  if (otherwise?.kind === "routes") routes.add(otherwise.routes);
  return {
    name: resource,
    kind: catchAll ? "catch-all" : "outbound",
    addresses,
    chains,
    otherwise,
    routes: catchAll ? NOTHING : [...routes],
    notes: sortedNotes(lost),
  };
}

function ignoredNote(resource: string, why: string): Notes {
  return [note("not-enforced", `listener ${shortName(resource)} is not applied: ${why}`)];
}

function addressOf(resource: string, socket: envoy.SocketAddress.$Properties): ListenerAddress {
  const address = canonicalAddress(socket.address ?? "");
  if (address === undefined) {
    throw new MalformedResource(
      resource,
      `it listens on ${JSON.stringify(socket.address ?? "")}, which is not an IP address`,
    );
  }
  const port = socket.portValue ?? 0;
  if (port === 0 || port > 65535) throw new MalformedResource(resource, `it listens on the port ${port}`);
  return { address, port };
}

function prefixOf(resource: string, range: envoy.CidrRange.$Properties): Prefix {
  const text = `${range.addressPrefix ?? ""}/${range.prefixLen?.value ?? 0}`;
  const prefix = parsePrefix(text);
  if (prefix === undefined)
    throw new MalformedResource(resource, `prefix_ranges has ${text}, which is not an address block`);
  return prefix;
}

/**
 * The first terminal filter decides. Filters before it (metadata, statistics, Mongo) are ignored. undefined when
 * there is none.
 */
function actionOf(resource: string, chain: envoy.FilterChain.$Properties): Action | undefined {
  for (const filter of chain.filters ?? []) {
    const config = filter.typedConfig;
    if (!config) continue;
    const message = messageName(config);
    if (message === "TcpProxy") return tcpAction(resource, decodeAny(envoy.TcpProxy, config));
    if (message === "HttpConnectionManager") {
      const http = decodeAny(envoy.HttpConnectionManager, config);
      if (http.rds?.routeConfigName) return { kind: "routes", routes: http.rds.routeConfigName };
      if (http.routeConfig) {
        return { kind: "inline-routes", routes: flattenInlineRoutes(resource, http.routeConfig) };
      }
      return undefined;
    }
  }
  return undefined;
}

function tcpAction(resource: string, proxy: envoy.TcpProxy): Action {
  const notes: Note[] = [];
  const idle = seconds(proxy.idleTimeout);
  if (idle > 0) notes.push(note("not-enforced", `idle timeout ${idle} s`));
  const age = seconds(proxy.maxDownstreamConnectionDuration);
  if (age > 0) notes.push(note("not-enforced", `max connection duration ${age} s`));
  if (proxy.maxConnectAttempts > 1)
    notes.push(note("not-enforced", `connect attempts ${proxy.maxConnectAttempts}`));
  if (proxy.tunnelingConfig) {
    notes.push(
      note("refused", "an HTTP tunnel is demanded, which kmesh does not speak: connections are refused"),
    );
    return { kind: "refuse", reason: "undecidable", notes: sortedNotes(notes) };
  }
  const weighted = proxy.weightedClusters?.clusters ?? [];
  let destination: Destination | undefined;
  if (weighted.length > 0) {
    const shares = weighted.map(({ name, weight }) => ({ cluster: name ?? "", weight: weight ?? 0 }));
    if (shares.some(({ weight }) => weight === 0)) {
      throw new MalformedResource(resource, "a weighted cluster has the weight 0");
    }
    destination = sharesOf(resource, shares);
  } else if (proxy.cluster) destination = { kind: "cluster", cluster: proxy.cluster };
  if (destination === undefined) throw new MalformedResource(resource, "a tcp_proxy names no cluster");
  return {
    kind: "tcp",
    destination,
    hashesSource: proxy.hashPolicy.some(({ sourceIp }) => Boolean(sourceIp)),
    notes: notes.length === 0 ? NO_NOTES : sortedNotes(notes),
  };
}
