/** The clusters of services and workloads: their endpoints by rank, and what carries connections to each. */
import { isAutomatic } from "../kernel-native/automatic.ts";
import { note } from "../kernel-native/resources/note.ts";
import type { Cluster, Note } from "../mesh/model.ts";
import type { Transport } from "../mesh/transport.ts";
import { type Carriage, carriageOf, formatDestination, peersOf, type Surroundings } from "./carriage.ts";
import { bareCluster, ClusterDraft, refusing } from "./draft.ts";
import { Behind } from "./gateways.ts";
import { priorityOf, rankOf } from "./locality.ts";
import { addPeer, hbone, Names, portOn } from "./peers.ts";
import type { Binding, Gateway, Profile, ServiceRecord, WorkloadRecord } from "./records/records.ts";

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

/** How workloads of a service are reached that have the same profile and the same ports. */
interface Approach {
  profile: Profile;
  bindings: readonly Binding[];
  target: number;
  /** Undefined when they are no endpoints. */
  priority: number | undefined;
  carriage: Carriage;
}

/** The cluster of one port of a service, without its waypoint. */
export function serviceCluster(
  name: string,
  service: string,
  record: ServiceRecord,
  port: { port: number; target: number },
  around: Surroundings,
): CompiledCluster {
  if (record.mode === "passthrough") {
    const madeUp = record.addresses.some(({ address }) => isAutomatic(address));
    if (madeUp) return { cluster: refusing(name, service, "undecidable"), notes: [ANY_ADDRESS] };
    return { cluster: { ...bareCluster(name, service), kind: "passthrough" }, notes: [] };
  }
  const draft = new ClusterDraft();
  let tunnelled = 0;
  /** How many workloads are left out, by network. */
  let apart: Map<string, number> | undefined;
  const behind = new Behind();
  const names = new Names(around);
  const sni = `outbound_.${port.port}_._.${record.host}`;
  let last: Approach | undefined;
  for (const member of around.store.membersOf(record.key)) {
    const { profile, bindings } = member;
    // Most workloads of a service are reached alike.
    if (last?.profile !== profile || last.bindings !== bindings) {
      const target = targetOf(member, record.key, port);
      const rank = target === 0 ? undefined : rankOf(record, around.here, profile);
      const priority = rank === undefined ? undefined : priorityOf(record, rank);
      const carriage = carriageOf(member, around, record.sans, sni);
      last = { profile, bindings, target, priority, carriage };
    }
    const { target, priority } = last;
    if (priority === undefined) continue;
    const isSidecar =
      around.store.sidecars?.knowsAny &&
      member.addresses.some((address) =>
        around.store.sidecars?.takesTls(record.host, port.port, address, target),
      );
    const carriage = isSidecar ? carriageOf(member, around, record.sans, sni, true) : last.carriage;
    const healthy = member.healthy || record.allowUnhealthy;
    if (carriage.kind === "no-tunnel") tunnelled++;
    else if (carriage.kind === "no-gateway") {
      apart ??= new Map();
      apart.set(profile.network, (apart.get(profile.network) ?? 0) + 1);
    } else if (carriage.kind === "gateway") {
      if (healthy) behind.add(carriage.gateway, member, priority, record.sans);
    } else {
      if (carriage.kind === "plaintext-instead") draft.notes.push(PLAINTEXT);
      const endpoint = {
        ...{ port: target, weight: member.weight, healthy, priority, place: profile },
        ...transportIn(carriage),
      };
      const { v4 } = member;
      if (v4 !== undefined) draft.add(v4, endpoint);
      else for (const address of names.addressesOf(member)) draft.add(address, endpoint);
    }
  }
  behind.fill(draft, `${record.host}:${port.port}`, around, names);
  const cluster = draft.finish(name, service);
  const empty = cluster.localities.length === 0;
  cluster.pending = empty && (names.waiting || names.unanswered);
  if (names.unanswered && !names.waiting) draft.notes.push(UNRESOLVED);
  if (tunnelled > 0) draft.notes.push(noTunnel(tunnelled, empty));
  for (const [network, count] of apart ?? [])
    draft.notes.push(noGateway(network, count, around.here.network, empty));
  if (empty && tunnelled > 0) return { cluster: refusing(name, service, "tls-required"), notes: draft.notes };
  return { cluster, notes: draft.notes };
}

/** What connections go through a waypoint for. */
export interface Guarded {
  /** ADDRESS:PORT that the waypoint is told. */
  authority: string;
  /** HOST:PORT of the service, which a waypoint in another network is told; absent for a workload: it has none there. */
  host?: string;
}

/**
 * The cluster of a waypoint. Refuses when the waypoint has no healthy instance or no tunnel runs: connections never go past a
 * waypoint, since it enforces policy.
 */
export function waypointCluster(
  name: string,
  service: string,
  gateway: Gateway,
  { authority, host }: Guarded,
  around: Surroundings,
): CompiledCluster {
  const title = `waypoint ${formatDestination(gateway.destination)}`;
  if (!around.tunnel) {
    const text = `${title} takes only connections through a tunnel (HBONE), and none runs on this machine`;
    return { cluster: refusing(name, service, "tls-required"), notes: [note("refused", text)] };
  }
  const draft = new ClusterDraft();
  const behind = new Behind();
  const names = new Names(around);
  const { peers, service: own } = peersOf(gateway, around);
  for (const peer of peers) {
    const rank = own ? rankOf(own, around.here, peer.profile) : 0;
    if (rank === undefined || !peer.healthy) continue;
    const priority = own ? priorityOf(own, rank) : 0;
    if (peer.profile.network === around.here.network)
      addPeer(
        draft,
        peer,
        peer.weight,
        priority,
        hbone(authority, portOn(peer, own, gateway.port), peer, around),
        names,
      );
    else if (host !== undefined && peer.profile.gateway)
      behind.add(peer.profile.gateway, peer, priority, own?.sans ?? []);
  }
  if (host !== undefined) behind.fill(draft, host, around, names);
  const cluster = draft.finish(name, service);
  if (cluster.localities.length > 0) return { cluster, notes: draft.notes };
  cluster.pending = names.waiting;
  if (cluster.pending) return { cluster, notes: draft.notes };
  draft.notes.push(note("refused", `${title} has no healthy instance that this machine can reach`));
  return { cluster: refusing(name, service, "no-endpoint"), notes: draft.notes };
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
  if (through)
    return waypointCluster(name, service, through, { authority: authorityOf(address, port) }, around);
  const carriage = carriageOf(member, around, [], "");
  const draft = new ClusterDraft();
  if (carriage.kind === "no-tunnel" || carriage.kind === "no-gateway" || carriage.kind === "gateway")
    return { cluster: refusing(name, service, "tls-required"), notes: [noTunnel(1, true)] };
  if (carriage.kind === "plaintext-instead") draft.notes.push(PLAINTEXT);
  draft.add(address, {
    ...{ port, weight: 1, healthy: true, priority: 0, place: member.profile },
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
  return peersOf(gateway, around).peers.some(({ uid }) => uid === member.uid);
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

function transportIn(carriage: Carriage): { transport?: Transport } {
  return carriage.kind === "transport" ? { transport: carriage.transport } : {};
}

function noTunnel(count: number, all: boolean): Note {
  const who = count === 1 ? "1 workload takes" : `${count} workloads take`;
  const text = `${who} only connections through a tunnel (HBONE), and none runs on this machine`;
  return note("refused", all ? text : `${text}: left out`);
}

/** Gateways come from objects Gateway, with or without istiod's AMBIENT_ENABLE_MULTI_NETWORK. */
function noGateway(network: string, count: number, here: string, all: boolean): Note {
  const where = network === "" ? "no network" : `network ${network}`;
  const who = `${count === 1 ? "1 workload" : `${count} workloads`} of ${where} can't be reached`;
  const own = here === "" ? "this machine has no network (setting network)" : `this machine is in ${here}`;
  const next =
    network === ""
      ? ""
      : `, and istiod knows no gateway to ${network} (a Gateway with the label topology.istio.io/network: ${network} and a listener of protocol HBONE)`;
  return note(all ? "refused" : "not-enforced", `${who}: ${own}${next}`);
}
