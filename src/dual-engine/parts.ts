/** What one service, or one workload that is addressed directly, contributes to the mesh. */
import { type ServiceId, serviceId } from "../kernel-native/resources/service.ts";
import type { Cluster, Frontend, Match, Note, Split, Target } from "../mesh/model.ts";
import type { Surroundings } from "./carriage.ts";
import { formatDestination } from "./carriage.ts";
import {
  authorityOf,
  type CompiledCluster,
  directCluster,
  serviceCluster,
  waypointCluster,
} from "./endpoints.ts";
import type { ServiceRecord, WorkloadRecord } from "./records/records.ts";
import { waypointsOf } from "./records/waypoints.ts";
import { isTunnelled } from "./store/store.ts";

const NONE: readonly never[] = [];

export interface Part {
  services: { id: ServiceId; notes: Note[] }[];
  clusters: Cluster[];
  splits: readonly Split[];
  frontends: Frontend[];
  /** It has addresses, but none in this machine's network. */
  elsewhere: boolean;
  /** Of a service: it goes before others at the same address. */
  canonical: boolean;
}

/**
 * A service's part. Of several services with one host the first of `Store.servicesOfHost` has the host's name; the others'
 * clusters carry their namespace as subset.
 */
export function partOfService(record: ServiceRecord, around: Surroundings): Part {
  const part = emptyPart(record.canonical);
  if (!around.store.sees(record)) return part;
  const [first] = around.store.servicesOfHost(record.host);
  const subset = first === undefined || first === record ? "" : record.namespace;
  const addresses = record.addresses.filter(({ network }) => network === around.here.network);
  part.elsewhere = addresses.length === 0 && record.addresses.length > 0;
  for (const port of record.ports) {
    const id = serviceId(record.host, port.port);
    const notes: Note[] = [];
    const [vip] = addresses;
    const host = `${record.host}:${port.port}`;
    const authority = vip && vip.length === undefined ? authorityOf(vip.address, port.port) : host;
    const guarded = { authority, host };
    const add = ({ cluster, notes: remarks }: CompiledCluster): void => {
      part.clusters.push(cluster);
      notes.push(...remarks);
    };
    const name = (own = subset) => `outbound|${port.port}|${own}|${record.host}`;
    let target: Target = { kind: "cluster", cluster: name() };
    const waypoints = waypointsOf(record);
    const [only] = waypoints;
    if (only === undefined) add(serviceCluster(name(), id.name, record, port, around));
    else if (waypoints.length === 1) add(waypointCluster(name(), id.name, only.gateway, guarded, around));
    else {
      const split: Split = { name: `${record.key} ${port.port}`, shares: [] };
      for (const { gateway, weight } of waypoints) {
        const cluster = name(formatDestination(gateway.destination));
        add(waypointCluster(cluster, id.name, gateway, guarded, around));
        split.shares.push({ cluster, weight });
      }
      part.splits = [...part.splits, split];
      target = { kind: "split", split: split.name };
    }
    for (const { address, length } of addresses) {
      const match: Match =
        length === undefined
          ? { kind: "address", address, port: port.port }
          : { kind: "prefix", address, length, port: port.port };
      part.frontends.push({ match, protocol: "tcp", service: id.name, target });
    }
    part.services.push({ id, notes });
  }
  return part;
}

/**
 * The part of a workload that peers reach only through a tunnel or waypoint: its own addresses at the ports that its services
 * name. Other workloads are reached at the address that the app asked for, without an entry.
 */
export function partOfWorkload(member: WorkloadRecord, around: Surroundings): Part | undefined {
  const { profile, addresses, bindings } = member;
  if (!isTunnelled(profile) || profile.hostNetwork || profile.network !== around.here.network)
    return undefined;
  const part = emptyPart(false);
  const done = new Set<number>();
  for (const { service, ports } of [...bindings].sort((a, b) => (a.service < b.service ? -1 : 1))) {
    const record = around.store.services.get(service);
    if (!record) continue;
    for (const { service: port, target } of ports) {
      if (target === 0 || done.has(target)) continue;
      done.add(target);
      const id = serviceId(record.host, port);
      const notes: Note[] = [];
      for (const address of addresses) {
        const name = `outbound|${target}|${address}|${record.host}`;
        const { cluster, notes: remarks } = directCluster(name, id.name, member, address, target, around);
        part.clusters.push(cluster);
        notes.push(...remarks);
        const match: Match = { kind: "address", address, port: target };
        part.frontends.push({
          match,
          protocol: "tcp",
          service: id.name,
          target: { kind: "cluster", cluster: name },
        });
      }
      part.services.push({ id, notes });
    }
  }
  return part;
}

function emptyPart(canonical: boolean): Part {
  return { services: [], clusters: [], splits: NONE, frontends: [], elsewhere: false, canonical };
}
