/** Compares parts of the model. Parts that differ are published. */
import type { Inbound } from "./inbound.ts";
import { inboundText } from "./inbound-text.ts";
import type {
  Balance,
  Cluster,
  Ejection,
  Frontend,
  Locality,
  Match,
  Name,
  Note,
  Pending,
  Service,
  Split,
  Target,
} from "./model.ts";
import type { SanMatch, Transport } from "./transport.ts";

export function sameTarget(a: Target, b: Target): boolean {
  if (a.kind === "cluster") return b.kind === "cluster" && a.cluster === b.cluster;
  if (a.kind === "split") return b.kind === "split" && a.split === b.split;
  if (a.kind === "refuse") return b.kind === "refuse" && a.reason === b.reason;
  return b.kind === "passthrough";
}

export function samePending(a: Pending | undefined, b: Pending | undefined): boolean {
  if (a === undefined || b === undefined) return a === b;
  if (a.fallback !== b.fallback) return false;
  if (a.ports === "all" || b.ports === "all") return a.ports === b.ports;
  const { ports } = b;
  return a.ports.size === ports.size && [...a.ports].every((port) => ports.has(port));
}

export function sameMatch(a: Match, b: Match): boolean {
  if (a.port !== b.port) return false;
  if (a.kind === "address") return b.kind === "address" && a.address === b.address;
  if (a.kind === "prefix") return b.kind === "prefix" && a.address === b.address && a.length === b.length;
  return b.kind === "port";
}

export function sameFrontend(a: Frontend, b: Frontend): boolean {
  return (
    a.service === b.service &&
    a.protocol === b.protocol &&
    a.pending === b.pending &&
    sameMatch(a.match, b.match) &&
    sameTarget(a.target, b.target)
  );
}

export function sameNotes(a: readonly Note[], b: readonly Note[]): boolean {
  if (a === b) return true;
  return a.length === b.length && a.every((note, i) => note.kind === b[i]?.kind && note.text === b[i]?.text);
}

export function sameService(a: Service, b: Service): boolean {
  return a.name === b.name && a.host === b.host && a.port === b.port && sameNotes(a.notes, b.notes);
}

export function sameSplit(a: Split, b: Split): boolean {
  if (a.name !== b.name || a.shares.length !== b.shares.length) return false;
  return a.shares.every((share, i) => {
    const other = b.shares[i];
    return share.cluster === other?.cluster && share.weight === other.weight;
  });
}

export function sameCluster(a: Cluster, b: Cluster): boolean {
  return (
    a.name === b.name &&
    a.service === b.service &&
    a.kind === b.kind &&
    a.reason === b.reason &&
    a.port === b.port &&
    a.localityWeighted === b.localityWeighted &&
    a.overprovisioning === b.overprovisioning &&
    a.panicThreshold === b.panicThreshold &&
    a.maxConnections === b.maxConnections &&
    a.pending === b.pending &&
    sameEjection(a.ejection, b.ejection) &&
    sameBalance(a.balance, b.balance) &&
    sameTransports(a.transports, b.transports) &&
    sameLocalities(a.localities, b.localities)
  );
}

function sameEjection(a: Ejection, b: Ejection): boolean {
  return (
    a.after === b.after &&
    a.base === b.base &&
    a.longest === b.longest &&
    a.percent === b.percent &&
    a.enforcing === b.enforcing
  );
}

function sameTransports(a: readonly Transport[], b: readonly Transport[]): boolean {
  return a === b || (a.length === b.length && a.every((one, i) => sameTransport(one, b[i])));
}

export function sameTransport(a: Transport, b: Transport | undefined): boolean {
  if (a === b) return true;
  if (a.kind !== b?.kind) return false;
  if (a.kind === "istio") return b?.kind === "istio" && a.sni === b.sni && sameSans(a.sans, b.sans);
  if (a.kind === "proxy-protocol") {
    if (b?.kind !== "proxy-protocol" || a.version !== b.version) return false;
    return a.over === undefined ? b.over === undefined : sameTransport(a.over, b.over);
  }
  if (a.kind === "tls") {
    return (
      b?.kind === "tls" &&
      a.sni === b.sni &&
      a.roots === b.roots &&
      a.certificate === b.certificate &&
      a.key === b.key &&
      sameTexts(a.alpn, b.alpn) &&
      sameSans(a.sans, b.sans)
    );
  }
  if (b?.kind !== "hbone" || a.authority !== b.authority || a.port !== b.port) return false;
  if (!sameSans(a.sans, b.sans)) return false;
  if (a.inner === undefined || b.inner === undefined) return a.inner === b.inner;
  return a.inner.authority === b.inner.authority && sameSans(a.inner.sans, b.inner.sans);
}

function sameSans(a: readonly SanMatch[], b: readonly SanMatch[]): boolean {
  if (a === b) return true;
  return (
    a.length === b.length && a.every(({ kind, value }, i) => kind === b[i]?.kind && value === b[i]?.value)
  );
}

function sameBalance(a: Balance, b: Balance): boolean {
  const size = (balance: Balance) => ("tableSize" in balance ? balance.tableSize : 0);
  return a.policy === b.policy && size(a) === size(b);
}

export function sameLocalities(a: readonly Locality[], b: readonly Locality[]): boolean {
  if (a === b) return true;
  return a.length === b.length && a.every((locality, i) => sameLocality(locality, b[i]));
}

function sameLocality(a: Locality, b: Locality | undefined): boolean {
  if (b === undefined) return false;
  if (a.region !== b.region || a.zone !== b.zone || a.subzone !== b.subzone) return false;
  return a.priority === b.priority && a.weight === b.weight && a.endpoints.equals(b.endpoints);
}

export function sameName(a: Name, b: Name): boolean {
  if (a === b) return true;
  return a.host === b.host && sameTexts(a.addresses, b.addresses) && sameTexts(a.aliases, b.aliases);
}

function sameTexts(a: readonly string[], b: readonly string[]): boolean {
  return a === b || (a.length === b.length && a.every((text, i) => text === b[i]));
}

/** Whether both say the same, in the same order. */
export function sameInbound(a: Inbound | undefined, b: Inbound | undefined): boolean {
  if (a === b) return true;
  return a !== undefined && b !== undefined && inboundText(a) === inboundText(b);
}
