import { isIP } from "node:net";
import { canonicalAddress, isV4 } from "../mesh/address.ts";

/** istiod's address. */
export interface Target {
  /** A name, or an IP address without brackets. */
  host: string;
  port: number;
  /**
   * The addresses to dial instead of `host`: IP addresses in this order, or one DNS name (of a load balancer), which
   * is looked up for each connection. istiod's certificate must still be for `host`.
   */
  addresses?: readonly string[];
}

/**
 * For each name the addresses to dial: canonical IP addresses, at least one, or a single DNS name. See
 * `parseDialled`.
 */
export type Hosts = Readonly<Record<string, readonly string[]>>;

/**
 * Parses an address to dial instead of a name. Gives the canonical IP address, or the DNS name in lower case;
 * undefined for any other text. A DNS name needs a dot (RFC 1123 labels, underscores allowed), so that a mistyped
 * address or a word is not accepted.
 */
export function parseDialled(text: string): string | undefined {
  const address = canonicalAddress(text);
  if (address !== undefined) return address;
  const labels = text.toLowerCase().replace(/\.$/, "").split(".");
  const label = /^[a-z0-9_]([-a-z0-9_]{0,61}[a-z0-9_])?$/;
  const isName = labels.length > 1 && text.length <= 254 && labels.every((each) => label.test(each));
  // A name whose last label is a number is a mistyped address.
  return isName && !/^\d+$/.test(labels.at(-1) ?? "") ? labels.join(".") : undefined;
}

/** Whether the list is valid: one entry, or several IP addresses. */
export function isDialledList(list: readonly string[]): boolean {
  return list.length === 1 || (list.length > 1 && list.every((each) => isIP(each) !== 0));
}

/**
 * The name to expect in istiod's certificate when istiod is reached through this machine (a tunnel, a port-forward).
 */
const IN_CLUSTER_NAME = "istiod.istio-system.svc";

/**
 * Parses `HOST:PORT` (IPv6 in brackets). `hosts` holds addresses to use instead of a DNS lookup. Throws an Error with
 * the expected form.
 */
export function parseTarget(text: string, hosts: Hosts = {}): Target {
  const match = /^(?:\[([^\]]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(text.trim());
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]);
  if (host === undefined || port < 1 || port > 65_535) {
    throw new Error(
      `"${text}" is not an address of istiod: give HOST:PORT, such as istiod.istio-system.svc:15012`,
    );
  }
  if (match?.[1] !== undefined && isIP(host) !== 6) {
    throw new Error(`"${text}" is not an address of istiod: the text in [ ] must be an IPv6 address`);
  }
  const addresses = Object.hasOwn(hosts, host) ? hosts[host] : undefined;
  return addresses === undefined ? { host, port } : { host, port, addresses };
}

/** Formats a target as parseTarget reads it. */
export function formatTarget(target: Target): string {
  return target.host.includes(":") ? `[${target.host}]:${target.port}` : `${target.host}:${target.port}`;
}

/**
 * The target URI for gRPC. A name is looked up for each connection, and all its addresses are tried. Given addresses
 * are tried in their order; a given DNS name is looked up instead of the host. A gRPC URI takes several addresses of
 * one family only (https://github.com/grpc/grpc/blob/master/doc/naming.md), so IPv4 addresses are mapped to IPv6 in a
 * mixed list.
 */
export function dialled({ host, port, addresses = [] }: Target): string {
  if (addresses.length < 2) return `dns:${formatTarget({ host: addresses[0] ?? host, port })}`;
  const v4 = addresses.every(isV4);
  const places = addresses.map((each) =>
    formatTarget({ host: v4 || !isV4(each) ? each : `::ffff:${each}`, port }),
  );
  return `${v4 ? "ipv4" : "ipv6"}:${places.join(",")}`;
}

/** Formats a target for people, with the addresses to dial. */
export function describeTarget(target: Target): string {
  return `${formatTarget(target)}${target.addresses === undefined ? "" : ` (${target.addresses.join(", ")})`}`;
}

/**
 * The name that istiod's certificate must be for: the host, or istiod's name in the cluster when the host is this
 * machine.
 */
export function serverName(target: Target): string {
  const local = target.host === "localhost" || target.host === "::1" || target.host.startsWith("127.");
  return local ? IN_CLUSTER_NAME : target.host;
}
