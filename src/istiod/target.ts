import { isIP } from "node:net";

/** Where istiod listens. */
export interface Target {
  /** A name, or an IP address without brackets. */
  host: string;
  port: number;
}

/** The name in istiod's certificate when it is reached through this machine (a tunnel, a port-forward). */
const IN_CLUSTER_NAME = "istiod.istio-system.svc";

/** Parses `HOST:PORT` (IPv6 in brackets). Throws an Error that says what is expected. */
export function parseTarget(text: string): Target {
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
  return { host, port };
}

/** The text of a target, as parseTarget reads it. */
export function formatTarget(target: Target): string {
  return target.host.includes(":") ? `[${target.host}]:${target.port}` : `${target.host}:${target.port}`;
}

/** The name that istiod's certificate must carry: the host, or istiod's name in the cluster for this machine. */
export function serverName(target: Target): string {
  const local = target.host === "localhost" || target.host === "::1" || target.host.startsWith("127.");
  return local ? IN_CLUSTER_NAME : target.host;
}
