import { isIP } from "node:net";

/** Where istiod listens. */
export interface Target {
  /** A name, or an IP address without brackets. */
  host: string;
  port: number;
  /** What is dialled in place of the name; the certificate must still be for the name. */
  address?: string;
}

/** The name in istiod's certificate when it is reached through this machine (a tunnel, a port-forward). */
const IN_CLUSTER_NAME = "istiod.istio-system.svc";

/**
 * Parses `HOST:PORT` (IPv6 in brackets); `hosts` has addresses of names that are not to be looked up. Throws an Error
 * that says what is expected.
 */
export function parseTarget(text: string, hosts: Readonly<Record<string, string>> = {}): Target {
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
  const address = Object.hasOwn(hosts, host) ? hosts[host] : undefined;
  return address === undefined ? { host, port } : { host, port, address };
}

/** The text of a target, as parseTarget reads it. */
export function formatTarget(target: Target): string {
  return target.host.includes(":") ? `[${target.host}]:${target.port}` : `${target.host}:${target.port}`;
}

/** The target for gRPC: the name is looked up unless there is an address for it. */
export function dialled({ host, port, address }: Target): string {
  return `dns:${formatTarget({ host: address ?? host, port })}`;
}

/** The target for people, with the address that was dialled. */
export function describeTarget(target: Target): string {
  return `${formatTarget(target)}${target.address === undefined ? "" : ` (${target.address})`}`;
}

/** The name that istiod's certificate must carry: the host, or istiod's name in the cluster for this machine. */
export function serverName(target: Target): string {
  const local = target.host === "localhost" || target.host === "::1" || target.host.startsWith("127.");
  return local ? IN_CLUSTER_NAME : target.host;
}
