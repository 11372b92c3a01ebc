/** How connections to a workload are carried: in plaintext, through its own tunnel, or through a gateway to its network. */
import type { Known } from "../kernel-native/resolver.ts";
import type { SanMatch, Transport } from "../mesh/transport.ts";
import { HBONE_PORT } from "../mesh/tunnel-address.ts";
import { withAliases } from "../policy/trust-domains.ts";
import type { Gateway, Place, Profile, ServiceRecord, WorkloadRecord } from "./records/records.ts";
import type { Store } from "./store/store.ts";

/** Gives what is known of a name's addresses, of both families. */
export type Resolve = (host: string) => Known[];

/** What decides how peers are reached. */
export interface Surroundings {
  store: Store;
  resolve: Resolve;
  /** Where this machine is. */
  here: Place;
  /** A tunnel carries what needs one. */
  tunnel: boolean;
  /** Without a tunnel, send plaintext to workloads that take HBONE. Never past a waypoint. */
  allowPlaintext: boolean;
  /** The mesh's trust domain has these names, too. */
  aliases: readonly string[];
}

export type Carriage =
  | { kind: "plaintext" }
  /** In plaintext, though the workload takes a tunnel. */
  | { kind: "plaintext-instead" }
  | { kind: "transport"; transport: Transport }
  /** Through a gateway, which is the endpoint. */
  | { kind: "gateway"; gateway: Gateway }
  /** It needs a tunnel, and there is none. */
  | { kind: "no-tunnel" }
  /** It is in another network, to which no gateway is known. */
  | { kind: "no-gateway" };

/** `sni` is for a sidecar's mutual TLS, which the workload takes with `sidecar`. */
export function carriageOf(
  { profile }: WorkloadRecord,
  around: Surroundings,
  sans: readonly string[],
  sni: string,
  sidecar = false,
): Carriage {
  const { here, tunnel, allowPlaintext } = around;
  if (profile.network !== here.network) {
    if (!profile.gateway) return { kind: "no-gateway" };
    return tunnel ? { kind: "gateway", gateway: profile.gateway } : { kind: "no-tunnel" };
  }
  const isSidecar = profile.tunnel === "istio" || (profile.tunnel === "none" && sidecar && tunnel);
  if (profile.tunnel === "none" && !isSidecar) return { kind: "plaintext" };
  if (!tunnel) return { kind: allowPlaintext ? "plaintext-instead" : "no-tunnel" };
  const identities = sansOf([identityOf(profile), ...sans], around);
  if (isSidecar) return { kind: "transport", transport: { kind: "istio", sni, sans: identities } };
  return {
    kind: "transport",
    transport: { kind: "hbone", authority: "", port: HBONE_PORT, sans: identities },
  };
}

/** The workloads behind a waypoint or gateway, and the load balancing of their service. */
export function peersOf(
  { destination }: Gateway,
  { store }: Pick<Surroundings, "store">,
): { peers: readonly WorkloadRecord[]; service?: ServiceRecord } {
  const service =
    typeof destination === "string" ? store.services.get(destination) : store.serviceAt(destination);
  if (service) return { peers: store.membersOf(service.key), service };
  const workload = store.workloadAt(destination);
  return { peers: workload ? [workload] : [] };
}

/** The SPIFFE identity of a workload. */
export function identityOf({
  trustDomain,
  namespace,
  serviceAccount,
}: Pick<Profile, "trustDomain" | "namespace" | "serviceAccount">): string {
  return `spiffe://${trustDomain}/ns/${namespace}/sa/${serviceAccount}`;
}

/**
 * The identities of who answers behind a gateway. A workload without an address stands for all of its service there, and istiod
 * gives the service their identities.
 */
export function identitiesBehind(
  { profile, addresses, hostname }: WorkloadRecord,
  sans: readonly string[],
): readonly string[] {
  return addresses.length === 0 && hostname === "" ? sans : [identityOf(profile), ...sans];
}

/** What the certificate of a peer with one of these identities may say. */
export function sansOf(identities: Iterable<string>, { aliases }: Pick<Surroundings, "aliases">): SanMatch[] {
  return withAliases(identities, aliases).map((value) => ({ kind: "exact", value }));
}

/** A destination for people: HOSTNAME.., or ADDRESS. */
export function formatDestination(destination: Gateway["destination"]): string {
  return typeof destination === "string" ? destination : destination.address;
}
