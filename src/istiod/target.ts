import { isIP } from "node:net";
import { canonicalAddress, isV4 } from "../mesh/address.ts";

/** Where istiod listens. */
export interface Target {
  /** A name, or an IP address without brackets. */
  host: string;
  port: number;
  /**
   * What is dialled in place of the name: IP addresses, in this order, or one DNS name (a load balancer's), which is looked
   * up anew for each connection. The certificate must still be for the name.
   */
  addresses?: readonly string[];
}

/** By name what is dialled for it: canonical IP addresses, at least one, or a single DNS name. See `parseDialled`. */
export type Hosts = Readonly<Record<string, readonly string[]>>;

/**
 * What may be dialled in place of a name: gives the canonical IP address or the DNS name in lower case; undefined for all
 * else. A DNS name has a dot (RFC 1123 labels, underscores too), so that a mistyped address or word is none.
 */
export function parseDialled(text: string): string | undefined {
  const address = canonicalAddress(text);
  if (address !== undefined) return address;
  const labels = text.toLowerCase().replace(/\.$/, "").split(".");
  const label = /^[a-z0-9_]([-a-z0-9_]{0,61}[a-z0-9_])?$/;
  const isName = labels.length > 1 && text.length <= 254 && labels.every((each) => label.test(each));
  // Four numbers that are no address are no name either.
  return isName && !/^\d+$/.test(labels.at(-1) ?? "") ? labels.join(".") : undefined;
}

/** Whether these can be dialled together: addresses, or a single name. */
export function isDialledList(list: readonly string[]): boolean {
  return list.length === 1 || (list.length > 1 && list.every((each) => isIP(each) !== 0));
}

/** The name in istiod's certificate when it is reached through this machine (a tunnel, a port-forward). */
const IN_CLUSTER_NAME = "istiod.istio-system.svc";

/**
 * Parses `HOST:PORT` (IPv6 in brackets); `hosts` has addresses of names that are not to be looked up. Throws an Error
 * that says what is expected.
 */
export function parseTarget(text: string, hosts: Hosts = {}): Target {
  const match = /^(?:\[([^\]]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(text.trim());
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]);
  if (host === undefined || port < 1 || port > 65_535) {
    throw new Error(
      `"${text}" is no address of istiod: give HOST:PORT, such as istiod.istio-system.svc:15012`,
    );
  }
  if (match?.[1] !== undefined && isIP(host) !== 6) {
    throw new Error(`"${text}" is no address of istiod: what stands in [ ] must be an IPv6 address`);
  }
  const addresses = Object.hasOwn(hosts, host) ? hosts[host] : undefined;
  return addresses === undefined ? { host, port } : { host, port, addresses };
}

/** The text of a target, as parseTarget reads it. */
export function formatTarget(target: Target): string {
  return target.host.includes(":") ? `[${target.host}]:${target.port}` : `${target.host}:${target.port}`;
}

/**
 * The target for gRPC: the name is looked up (all its addresses are tried, at each connection anew) unless there are addresses
 * for it, which are tried in their order, or another name, which is looked up in its place. gRPC takes several of one family only (https://github.com/grpc/grpc/blob/master/doc/naming.md), so IPv4 is mapped among IPv6.
 */
export function dialled({ host, port, addresses = [] }: Target): string {
  if (addresses.length < 2) return `dns:${formatTarget({ host: addresses[0] ?? host, port })}`;
  const v4 = addresses.every(isV4);
  const places = addresses.map((each) =>
    formatTarget({ host: v4 || !isV4(each) ? each : `::ffff:${each}`, port }),
  );
  return `${v4 ? "ipv4" : "ipv6"}:${places.join(",")}`;
}

/** The target for people, with the addresses that are dialled. */
export function describeTarget(target: Target): string {
  return `${formatTarget(target)}${target.addresses === undefined ? "" : ` (${target.addresses.join(", ")})`}`;
}

/** The name that istiod's certificate must carry: the host, or istiod's name in the cluster for this machine. */
export function serverName(target: Target): string {
  const local = target.host === "localhost" || target.host === "::1" || target.host.startsWith("127.");
  return local ? IN_CLUSTER_NAME : target.host;
}
