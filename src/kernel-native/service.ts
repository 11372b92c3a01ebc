/** How istiod names clusters, and the service (`host:port`) that a cluster or virtual host belongs to. */

/** What `outbound|80|v1|reviews.shop.svc.cluster.local` says. */
export interface ClusterName {
  direction: string;
  port: number;
  subset: string;
  host: string;
}

export const PASSTHROUGH = "PassthroughCluster";
export const BLACK_HOLE = "BlackHoleCluster";

/** Takes istiod's cluster names apart; undefined for all others. */
export function parseClusterName(name: string): ClusterName | undefined {
  const first = name.indexOf("|");
  if (first < 0) return undefined;
  const second = name.indexOf("|", first + 1);
  const third = second < 0 ? -1 : name.indexOf("|", second + 1);
  if (third < 0) return undefined;
  const port = Number(name.slice(first + 1, second));
  if (!Number.isInteger(port) || port < 0 || port > 65535) return undefined;
  return {
    direction: name.slice(0, first),
    port,
    subset: name.slice(second + 1, third),
    host: name.slice(third + 1),
  };
}

/** The cluster of all endpoints of a service. */
export function ownCluster(host: string, port: number): string {
  return `outbound|${port}||${host}`;
}

/** A service's identity. `name` is `host:port`, or the cluster's name where that tells neither. */
export interface ServiceId {
  name: string;
  host: string;
  port: number;
}

export function serviceId(host: string, port: number): ServiceId {
  return { name: `${host}:${port}`, host, port };
}

/** The service of a cluster. */
export function serviceOfCluster(cluster: string): ServiceId {
  const parsed = parseClusterName(cluster);
  if (parsed === undefined || parsed.host === "") return { name: cluster, host: cluster, port: 0 };
  return serviceId(parsed.host, parsed.port);
}

/** Takes `host:port` apart, as virtual hosts are named; the port is 0 when the name has none. */
export function parseHostPort(name: string): { host: string; port: number } {
  const colon = name.lastIndexOf(":");
  const digits = colon < 0 ? "" : name.slice(colon + 1);
  if (!/^\d{1,5}$/.test(digits) || Number(digits) > 65535) return { host: name, port: 0 };
  return { host: name.slice(0, colon), port: Number(digits) };
}
