/** The mesh of the embedded control plane as the workload API has it: one Service a host, one Workload an endpoint. */
import { workload } from "../dual-engine/records/workload.gen.js";
import { parseLocality } from "../istiod/node.ts";
import { parseSpiffe } from "../istiod/spiffe.ts";
import { parseAddress, parsePrefix } from "../mesh/address.ts";
import type { DemoEndpoint, DemoService } from "./services.ts";

export const NAMESPACE = "demo";
export const CLUSTER = "Kubernetes";
/** A share of a split, spread over its endpoints as whole numbers. */
const SHARE = 1_000;
/** TunnelProtocol */
const HBONE = 1;

export type Resource = [name: string, bytes: Uint8Array];

/** Resources of hosts with one port. Kept as long as the service object lives. */
const known = new WeakMap<DemoService, Resource[]>();

/** The Address resources of all services. A service with the same object is not encoded again. */
export function* addressesOf(services: readonly DemoService[]): Generator<Resource> {
  const hosts = new Map<string, DemoService[]>();
  for (const service of services) {
    const list = hosts.get(service.host);
    if (list) list.push(service);
    else hosts.set(service.host, [service]);
  }
  for (const [host, list] of hosts) {
    const [only] = list;
    if (only === undefined) continue;
    let resources = list.length === 1 ? known.get(only) : undefined;
    if (!resources) {
      resources = encodeHost(host, list);
      if (list.length === 1) known.set(only, resources);
    }
    yield* resources;
  }
}

function encodeHost(host: string, services: readonly DemoService[]): Resource[] {
  const key = `${NAMESPACE}/${host}`;
  const addresses = [...new Set(services.flatMap((service) => service.addresses))];
  const service: workload.Service.$Properties = {
    name: host.split(".")[0] ?? host,
    namespace: NAMESPACE,
    hostname: host,
    addresses: addresses.map(networkAddress),
    ports: services.map(({ port, endpoints }) => ({
      servicePort: port,
      targetPort: endpoints[0]?.port ?? port,
    })),
    canonical: true,
  };
  const workloads = new Map<string, workload.Workload.$Properties>();
  for (const each of services) {
    const { port, endpoints } = each;
    for (const endpoint of endpoints) {
      const uid = `${CLUSTER}/networking.istio.io/ServiceEntry/${key}/${endpoint.address}`;
      const made = workloads.get(uid) ?? workloadOf(uid, endpoint, each);
      made.services?.[key]?.ports?.push({ servicePort: port, targetPort: endpoint.port });
      workloads.set(uid, made);
    }
  }
  return [
    [key, workload.Address.encode({ service }).finish()],
    ...[...workloads].map(
      ([uid, message]): Resource => [uid, workload.Address.encode({ workload: message }).finish()],
    ),
  ];
}

function workloadOf(
  uid: string,
  endpoint: DemoEndpoint,
  { host, endpoints: all, split, mtls, sans = [] }: DemoService,
): workload.Workload.$Properties {
  const { address, locality, healthy = true, weight = 1, subset } = endpoint;
  const name = endpoint.workload ?? `${host.split(".")[0]}-${subset ?? address}`;
  const message: workload.Workload.$Properties = {
    uid,
    name,
    namespace: NAMESPACE,
    addresses: [bytesOf(address)],
    clusterId: CLUSTER,
    canonicalName: host.split(".")[0] ?? host,
    canonicalRevision: subset ?? "latest",
    workloadName: name,
    services: { [`${NAMESPACE}/${host}`]: { ports: [] } },
  };
  // The workload API knows HBONE alone, and one identity for each workload.
  if (mtls) message.tunnelProtocol = HBONE;
  const identity = parseSpiffe(sans[0] ?? "");
  if (identity) Object.assign(message, identity);
  if (locality !== undefined) message.locality = parseLocality(locality);
  // The workload API knows no subsets: a share becomes the weight of its workloads.
  const siblings = all.filter((each) => each.subset === subset).length;
  const share = split === undefined ? weight : Math.round(((split[subset ?? ""] ?? 0) * SHARE) / siblings);
  if (!healthy || share === 0) message.status = 1;
  else if (share !== 1) message.capacity = { value: share };
  return message;
}

function networkAddress(text: string): workload.NetworkAddress.$Properties {
  const prefix = parsePrefix(text);
  const address = bytesOf(prefix?.address ?? text);
  return text.includes("/") && prefix ? { address, length: prefix.length } : { address };
}

/** 4 or 16 bytes in network order. */
export function bytesOf(address: string): Uint8Array {
  const bytes = parseAddress(address) ?? new Uint8Array(16);
  return address.includes(":") ? bytes : bytes.slice(12);
}
