/** The clusters of services and workloads: their endpoints by rank, and what carries connections to each. */
import { isAutomatic } from "../kernel-native/automatic.ts";
import type { Known } from "../kernel-native/resolver.ts";
import { note } from "../kernel-native/resources/note.ts";
import type { Cluster, Note } from "../mesh/model.ts";
import type { Transport } from "../mesh/transport.ts";
import {
  type Carriage,
  carriageOf,
  formatDestination,
  identityOf,
  peersOf,
  type Surroundings,
  sansOf,
} from "./carriage.ts";
import { bareCluster, ClusterDraft, refusing } from "./draft.ts";
import { priorityOf, rankOf } from "./locality.ts";
import type { Gateway, ServiceRecord, WorkloadRecord } from "./records.ts";

/** Gives what is known of a name's addresses, of both families. */
export type Resolve = (host: string) => Known[];

export interface CompiledCluster {
  cluster: Cluster;
  notes: Note[];
}

const PLAINTEXT = note("plaintext", "workloads take a tunnel (HBONE): plaintext is sent (allow-plaintext)");
const UNRESOLVED = note("not-enforced", "some names of endpoints could not be resolved yet");
const ANY_ADDRESS = note(
  "refused",
  "connections go to the address that the app asked for, and istiod made that one up",
);

/** The cluster of one port of a service, without its waypoint. */
export function serviceCluster(
  name: string,
  service: string,
  record: ServiceRecord,
  port: { port: number; target: number },
  around: Surroundings,
  resolve: Resolve,
): CompiledCluster {
  if (record.mode === "passthrough") {
    const madeUp = record.addresses.some(({ address }) => isAutomatic(address));
    if (madeUp) return { cluster: refusing(name, service, "undecidable"), notes: [ANY_ADDRESS] };
    return { cluster: { ...bareCluster(name, service), kind: "passthrough" }, notes: [] };
  }
  const draft = new ClusterDraft();
  const counts = { "no-tunnel": 0, "no-gateway": 0 };
  const gateways = new Map<string, { gateway: Gateway; weight: number; priority: number; sans: string[] }>();
  const names = { waiting: false, unanswered: false };
  for (const member of around.store.membersOf(record.key)) {
    const target = targetOf(member, record.key, port);
    const rank = target === 0 ? undefined : rankOf(record, around.here, member.profile);
    if (rank === undefined) continue;
    const priority = priorityOf(record, rank);
    const healthy = member.healthy || record.allowUnhealthy;
    const sni = `outbound_.${port.port}_._.${record.host}`;
    const sidecar = member.addresses.some((address) =>
      around.store.sidecars?.takesTls(record.host, port.port, address, target),
    );
    const carriage = carriageOf(member, around, record.sans, sni, sidecar);
    if (carriage.kind === "no-tunnel" || carriage.kind === "no-gateway") counts[carriage.kind]++;
    else if (carriage.kind === "gateway") {
      if (healthy) addGateway(gateways, carriage.gateway, member, priority, record.sans);
    } else {
      if (carriage.kind === "plaintext-instead") draft.notes.push(PLAINTEXT);
      for (const address of addressesOf(member, resolve, names))
        draft.add({
          ...{ address, port: target, weight: member.weight, healthy, priority, place: member.profile },
          ...transportIn(carriage),
        });
    }
  }
  for (const { gateway, weight, priority, sans } of gateways.values()) {
    const authority = `${record.host}:${port.port}`;
    const inner = { authority, sans: sansOf(sans) };
    for (const peer of usable(gateway, around))
      addPeer(draft, peer, gateway.port, weight, priority, {
        ...hbone(authority, gateway.port, peer),
        inner,
      });
  }
  const cluster = draft.finish(name, service);
  const empty = cluster.localities.length === 0;
  cluster.pending = empty && (names.waiting || names.unanswered);
  if (names.unanswered && !names.waiting) draft.notes.push(UNRESOLVED);
  const left = counts["no-tunnel"];
  if (left > 0) draft.notes.push(noTunnel(left, empty));
  if (counts["no-gateway"] > 0) draft.notes.push(noGateway(counts["no-gateway"]));
  if (empty && left > 0) return { cluster: refusing(name, service, "tls-required"), notes: draft.notes };
  return { cluster, notes: draft.notes };
}

/**
 * The cluster of a waypoint that connections to `authority` (ADDRESS:PORT) go through. Refuses when the waypoint has no
 * healthy instance or no tunnel runs: connections never go past a waypoint, since it enforces policy.
 */
export function waypointCluster(
  name: string,
  service: string,
  gateway: Gateway,
  authority: string,
  around: Surroundings,
): CompiledCluster {
  const title = `waypoint ${formatDestination(gateway.destination)}`;
  if (!around.tunnel) {
    const text = `${title} takes only connections through a tunnel (HBONE), and none runs on this machine`;
    return { cluster: refusing(name, service, "tls-required"), notes: [note("refused", text)] };
  }
  const draft = new ClusterDraft();
  const { service: own } = peersOf(gateway, around);
  for (const peer of usable(gateway, around)) {
    const rank = own ? rankOf(own, around.here, peer.profile) : 0;
    if (rank === undefined) continue;
    addPeer(
      draft,
      peer,
      gateway.port,
      peer.weight,
      own ? priorityOf(own, rank) : 0,
      hbone(authority, gateway.port, peer),
    );
  }
  const cluster = draft.finish(name, service);
  if (cluster.localities.length > 0) return { cluster, notes: [] };
  return {
    cluster: refusing(name, service, "no-endpoint"),
    notes: [note("refused", `${title} has no healthy instance in this network`)],
  };
}

/** The cluster of one workload that apps address by its own address, in the same network. */
export function directCluster(
  name: string,
  service: string,
  member: WorkloadRecord,
  address: string,
  port: number,
  around: Surroundings,
): CompiledCluster {
  const { waypoint } = member.profile;
  const through = waypoint && !isBehind(waypoint, member, around) ? waypoint : undefined;
  if (through) return waypointCluster(name, service, through, authorityOf(address, port), around);
  const carriage = carriageOf(member, around, [], "");
  const draft = new ClusterDraft();
  if (carriage.kind === "no-tunnel" || carriage.kind === "no-gateway" || carriage.kind === "gateway")
    return { cluster: refusing(name, service, "tls-required"), notes: [noTunnel(1, true)] };
  if (carriage.kind === "plaintext-instead") draft.notes.push(PLAINTEXT);
  draft.add({
    ...{ address, port, weight: 1, healthy: true, priority: 0, place: member.profile },
    ...transportIn(carriage),
  });
  return { cluster: draft.finish(name, service), notes: draft.notes };
}

/** `ADDRESS:PORT`, brackets around IPv6. */
export function authorityOf(address: string, port: number): string {
  return address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
}

/** Whether the workload is an instance of this waypoint itself. */
export function isBehind(gateway: Gateway, member: WorkloadRecord, around: Surroundings): boolean {
  return peersOf(gateway, around).peers.includes(member);
}

/**
 * The workload's port, which it says itself: a service whose targetPort has a name knows no number. 0 when the workload is no
 * endpoint of this port.
 */
function targetOf(
  { bindings }: WorkloadRecord,
  key: string,
  { port, target }: { port: number; target: number },
): number {
  for (const { service, ports } of bindings) {
    if (service !== key) continue;
    const own = ports.find((each) => each.service === port);
    return own === undefined ? target : own.target || target || port;
  }
  return 0;
}

function addressesOf(
  member: WorkloadRecord,
  resolve: Resolve,
  names: { waiting: boolean; unanswered: boolean },
): readonly string[] {
  if (member.hostname === "") return member.addresses;
  const known = resolve(member.hostname);
  if (known.some(({ tried }) => !tried)) names.waiting = true;
  const addresses = known.flatMap((each) => each.addresses ?? []);
  if (addresses.length === 0) names.unanswered = true;
  return addresses;
}

/** Workloads behind one gateway are one endpoint: the gateway chooses among them. */
function addGateway(
  gateways: Map<string, { gateway: Gateway; weight: number; priority: number; sans: string[] }>,
  gateway: Gateway,
  member: WorkloadRecord,
  priority: number,
  sans: readonly string[],
): void {
  const key = `${JSON.stringify(gateway)} ${priority}`;
  const known = gateways.get(key);
  const identity = identityOf(member.profile);
  if (known) {
    known.weight += member.weight;
    known.sans.push(identity);
  } else gateways.set(key, { gateway, weight: member.weight, priority, sans: [identity, ...sans] });
}

/** Healthy instances of a waypoint or gateway that can be reached directly. */
function usable(gateway: Gateway, around: Surroundings): WorkloadRecord[] {
  const { here } = around;
  return peersOf(gateway, around).peers.filter(
    ({ healthy, profile, addresses }) => healthy && profile.network === here.network && addresses.length > 0,
  );
}

function addPeer(
  draft: ClusterDraft,
  peer: WorkloadRecord,
  port: number,
  weight: number,
  priority: number,
  transport: Transport,
): void {
  for (const address of peer.addresses)
    draft.add({ address, port, weight, healthy: true, priority, place: peer.profile, transport });
}

function hbone(
  authority: string,
  port: number,
  { profile }: WorkloadRecord,
): Extract<Transport, { kind: "hbone" }> {
  return { kind: "hbone", authority, port, sans: sansOf([identityOf(profile)]) };
}

function transportIn(carriage: Carriage): { transport?: Transport } {
  return carriage.kind === "transport" ? { transport: carriage.transport } : {};
}

function noTunnel(count: number, all: boolean): Note {
  const who = count === 1 ? "1 workload takes" : `${count} workloads take`;
  const text = `${who} only connections through a tunnel (HBONE), and none runs on this machine`;
  return note("refused", all ? text : `${text}: left out`);
}

function noGateway(count: number): Note {
  const who = count === 1 ? "1 workload of another network is" : `${count} workloads of other networks are`;
  return note("not-enforced", `${who} left out: no gateway there is known`);
}
