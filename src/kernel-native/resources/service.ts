/** istiod's cluster names, and the service (`host:port`) of a cluster or virtual host. */

/** The parts of a name such as `outbound|80|v1|reviews.shop.svc.cluster.local`. */
export interface ClusterName {
  direction: string;
  port: number;
  subset: string;
  host: string;
}

export const PASSTHROUGH = "PassthroughCluster";
export const BLACK_HOLE = "BlackHoleCluster";

/** Parses istiod's cluster names; undefined for others. */
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

/** A service's identity. `name` is `host:port`, or the cluster's name when that has neither. */
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

/** Parses `host:port`, the form of virtual hosts' names; the port is 0 when the name has none. */
export function parseHostPort(name: string): { host: string; port: number } {
  const colon = name.lastIndexOf(":");
  const digits = colon < 0 ? "" : name.slice(colon + 1);
  if (!/^\d{1,5}$/.test(digits) || Number(digits) > 65535) return { host: name, port: 0 };
  return { host: name.slice(0, colon), port: Number(digits) };
}
