/** Instances of waypoints and gateways as endpoints. */
import type { Transport } from "../mesh/transport.ts";
import { identityOf, type Surroundings, sansOf } from "./carriage.ts";
import type { ClusterDraft } from "./draft.ts";
import type { ServiceRecord, WorkloadRecord } from "./records/records.ts";

/** Looks names of workloads up, and remembers for what it got no answer. */
export class Names {
  readonly #resolve: Surroundings["resolve"];
  waiting = false;
  unanswered = false;

  constructor({ resolve }: Surroundings) {
    this.#resolve = resolve;
  }

  addressesOf({ hostname, addresses }: WorkloadRecord): readonly string[] {
    if (hostname === "") return addresses;
    const known = this.#resolve(hostname);
    if (known.some(({ tried }) => !tried)) this.waiting = true;
    const found = known.flatMap((each) => each.addresses ?? []);
    if (found.length === 0) this.unanswered = true;
    return found;
  }
}

/** The workload's port behind a port of its service; the same number where neither knows one. */
export function portOn(
  { bindings }: WorkloadRecord,
  service: ServiceRecord | undefined,
  port: number,
): number {
  const own = bindings
    .find((each) => each.service === service?.key)
    ?.ports.find((each) => each.service === port);
  return own?.target || service?.ports.find((each) => each.port === port)?.target || port;
}

/** Adds an instance of a waypoint or gateway to a cluster. */
export function addPeer(
  draft: ClusterDraft,
  peer: WorkloadRecord,
  weight: number,
  priority: number,
  transport: Extract<Transport, { kind: "hbone" }>,
  names: Names,
): void {
  const { port } = transport;
  for (const address of names.addressesOf(peer))
    draft.add(address, { port, weight, healthy: true, priority, place: peer.profile, transport });
}

/** HBONE to an instance of a waypoint or gateway. */
export function hbone(
  authority: string,
  port: number,
  { profile }: WorkloadRecord,
  around: Surroundings,
): Extract<Transport, { kind: "hbone" }> {
  return { kind: "hbone", authority, port, sans: sansOf([identityOf(profile)], around) };
}
