/** Workloads of other networks, which this machine reaches through a gateway there. */
import { note } from "../kernel-native/resources/note.ts";
import { formatDestination, identitiesBehind, peersOf, type Surroundings, sansOf } from "./carriage.ts";
import type { ClusterDraft } from "./draft.ts";
import { addPeer, hbone, type Names, portOn } from "./peers.ts";
import type { Gateway, WorkloadRecord } from "./records/records.ts";
import { waypointsOf } from "./records/waypoints.ts";

/** What a cluster has in other networks. Workloads behind one gateway are one endpoint: the gateway chooses among them. */
export class Behind {
  readonly #gateways = new Map<
    string,
    { gateway: Gateway; weight: number; priority: number; sans: Set<string> }
  >();

  add(gateway: Gateway, member: WorkloadRecord, priority: number, sans: readonly string[]): void {
    const key = `${JSON.stringify(gateway)} ${priority}`;
    const known = this.#gateways.get(key) ?? { gateway, weight: 0, priority, sans: new Set<string>() };
    known.weight += member.weight;
    for (const identity of identitiesBehind(member, sans)) known.sans.add(identity);
    this.#gateways.set(key, known);
  }

  /** Adds the gateways as endpoints, with HBONE inside HBONE to `authority`. What can't be reached gets a note. */
  fill(draft: ClusterDraft, authority: string, around: Surroundings, names: Names): void {
    for (const { gateway, weight, priority, sans } of this.#gateways.values()) {
      const title = `gateway ${formatDestination(gateway.destination)}`;
      const { peers, service } = peersOf(gateway, around);
      // Its network is the one that it leads to; its address is one of this network.
      const usable = peers.filter(
        (peer) => peer.healthy && (peer.addresses.length > 0 || peer.hostname !== ""),
      );
      if (sans.size === 0)
        draft.notes.push(
          note("not-enforced", `workloads behind ${title} are left out: istiod gives no identity of them`),
        );
      else if (usable.length === 0)
        draft.notes.push(
          note("not-enforced", `workloads behind ${title} are left out: it has no healthy instance`),
        );
      else {
        const inner = { authority, sans: sansOf(sans, around) };
        const share = Math.max(1, Math.round(weight / usable.length));
        for (const peer of usable) {
          const transport = { ...hbone(authority, portOn(peer, service, gateway.port), peer, around), inner };
          addPeer(draft, peer, share, priority, transport, names);
        }
      }
    }
  }
}

/** Names that the workloads of a service, and the gateways to those of other networks, are known by. */
export function hostnamesOf(key: string, { store, here }: Surroundings): Set<string> {
  const names = new Set<string>();
  const addOf = (members: Iterable<WorkloadRecord>) => {
    for (const { hostname, profile } of members) {
      if (hostname !== "") names.add(hostname);
      if (profile.network === here.network || !profile.gateway) continue;
      for (const peer of peersOf(profile.gateway, { store }).peers)
        if (peer.hostname !== "") names.add(peer.hostname);
    }
  };
  addOf(store.membersOf(key));
  const record = store.services.get(key);
  for (const { gateway } of record ? waypointsOf(record) : []) addOf(peersOf(gateway, { store }).peers);
  return names;
}
