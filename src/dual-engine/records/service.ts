/** istio.workload.Service, flattened. */
import { MalformedResource } from "../../istiod/stream/sink.ts";
import { checkEnum, shortName } from "../../kernel-native/resources/wire.ts";
import { formatAddress, formatV4, isV4, maskPrefix } from "../../mesh/address.ts";
import { HBONE_PORT } from "../../mesh/tunnel-address.ts";
import { type Gateway, MODES, SCOPES, type ServiceAddress, type ServiceRecord } from "./records.ts";
import { workload } from "./workload.gen.js";

/** One list for all that have none: there are ten thousand services. */
const NONE: readonly never[] = [];

/** Throws MalformedResource; errors of the protobuf reader go through. */
export function readService(resource: string, bytes: Uint8Array): ServiceRecord {
  const message = workload.Service.decode(bytes);
  const { namespace, hostname, loadBalancing } = message;
  const bad = (reason: string) => new MalformedResource(shortName(resource), reason);
  if (hostname === "" || namespace === "") throw bad("it has no hostname or no namespace");
  const key = `${namespace}/${hostname}`;
  if (key !== resource) throw bad(`the message inside is called ${shortName(key)}`);
  checkEnum(resource, "ip_families", message.ipFamilies, 3);
  const mode = loadBalancing?.mode ?? 0;
  checkEnum(resource, "load_balancing.mode", mode, MODES.length - 1);
  const policy = loadBalancing?.healthPolicy ?? 0;
  checkEnum(resource, "load_balancing.health_policy", policy, 1);
  const scopes = (loadBalancing?.routingPreference ?? []).map((scope) => {
    checkEnum(resource, "load_balancing.routing_preference", scope, SCOPES.length - 1);
    return SCOPES[scope] ?? "unspecified";
  });
  const ports = message.ports.map(({ servicePort = 0, targetPort = 0 }) => ({
    port: portOf(resource, "service_port", servicePort ?? 0, 1),
    target: portOf(resource, "target_port", targetPort ?? 0, 0),
  }));
  const weightedWaypoints = message.weightedWaypoints.flatMap(({ destination, weight }) => {
    const gateway = gatewayOf(resource, destination);
    return gateway && weight ? [{ gateway, weight }] : [];
  });
  return {
    key,
    namespace,
    host: hostname.toLowerCase(),
    addresses: message.addresses.map((each) => serviceAddress(resource, each)),
    // A port given twice is one.
    ports: ports.filter(({ port }, i) => ports.findIndex((each) => each.port === port) === i),
    sans: message.subjectAltNames.length > 0 ? message.subjectAltNames : NONE,
    waypoint: gatewayOf(resource, message.waypoint),
    weightedWaypoints: weightedWaypoints.length > 0 ? weightedWaypoints : NONE,
    mode: MODES[mode] ?? "unspecified",
    scopes: scopes.length > 0 ? scopes : NONE,
    allowUnhealthy: policy === 1,
    canonical: message.canonical,
    // An unknown value is taken as PUBLIC, as ztunnel does.
    isPrivate: message.visibility === workload.Visibility.NAMESPACE,
  };
}

function serviceAddress(
  resource: string,
  { network, address, length }: workload.NetworkAddress.$Properties,
): ServiceAddress {
  const text = addressText(resource, address ?? new Uint8Array(0));
  const width = isV4(text) ? 32 : 128;
  if (length !== null && length !== undefined && length > width)
    throw new MalformedResource(shortName(resource), `the prefix ${text}/${length} is beyond its family`);
  if (length === null || length === undefined || length === width)
    return { network: network ?? "", address: text, length: undefined };
  return { network: network ?? "", address: maskPrefix({ address: text, length }).address, length };
}

/** Undefined when the message is absent or has no destination. Throws MalformedResource. */
export function gatewayOf(
  resource: string,
  message: workload.GatewayAddress.$Properties | null | undefined,
): Gateway | undefined {
  if (!message) return undefined;
  const port = portOf(resource, "hbone_mtls_port", message.hboneMtlsPort ?? 0, 0) || HBONE_PORT;
  const { hostname, address } = message;
  if (hostname) return { destination: `${hostname.namespace ?? ""}/${hostname.hostname ?? ""}`, port };
  if (!address) return undefined;
  const text = addressText(resource, address.address ?? new Uint8Array(0));
  return { destination: { network: address.network ?? "", address: text }, port };
}

/** The canonical text of 4 or 16 bytes in network order. Throws MalformedResource for any other number of bytes. */
export function addressText(resource: string, bytes: Uint8Array): string {
  if (bytes.length === 16) return formatAddress(bytes);
  if (bytes.length !== 4)
    throw new MalformedResource(shortName(resource), `an address has ${bytes.length} bytes, not 4 or 16`);
  const [a = 0, b = 0, c = 0, d = 0] = bytes;
  return formatV4(((a << 24) | (b << 16) | (c << 8) | d) >>> 0);
}

/** Throws MalformedResource for a port below `least` or beyond 65535. */
export function portOf(resource: string, field: string, port: number, least: number): number {
  if (port < least || port > 65_535) throw new MalformedResource(shortName(resource), `${field} is ${port}`);
  return port;
}
