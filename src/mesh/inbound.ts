/**
 * Who may connect to this machine's services: ports, mutual TLS, and authorization policies. Pure data, the same for both
 * modes; src/policy decides by it.
 */

/** A workload's identity in the mesh, from the URI SAN of its certificate (spiffe://TRUST-DOMAIN/ns/NS/sa/ACCOUNT). */
export interface Identity {
  trustDomain: string;
  namespace: string;
  serviceAccount: string;
}

/** PeerAuthentication: plaintext only, both, mutual TLS only. */
export const MTLS_MODES = ["disable", "permissive", "strict"] as const;
export type MtlsMode = (typeof MTLS_MODES)[number];

export type TextMatch = { kind: "exact" | "prefix" | "suffix"; value: string } | { kind: "presence" };

/** What a rule asks of a connection. */
export type Condition =
  /** All of them; true when empty. */
  | { kind: "all"; of: readonly Condition[] }
  /** One of them; false when empty. */
  | { kind: "any"; of: readonly Condition[] }
  | { kind: "not"; of: Condition }
  /** The address of the immediate peer, or this machine's, lies in one of the prefixes (canonical, ADDRESS/LENGTH). */
  | { kind: "source" | "destination"; prefixes: readonly string[] }
  /** The port of this machine, `from` to `to` inclusive. */
  | { kind: "port"; ranges: readonly { from: number; to: number }[] }
  /** The identity as TRUST-DOMAIN/ns/NS/sa/ACCOUNT. Without an identity nothing matches. */
  | { kind: "principal"; match: readonly TextMatch[] }
  | { kind: "namespace"; match: readonly TextMatch[] }
  | { kind: "service-account"; accounts: readonly { namespace: string; name: string }[] }
  /**
   * What can't be evaluated for a connection: layer 7, dynamic metadata. It matches in a DENY and does not match in an
   * ALLOW, so that it never lets in whom it may have meant to refuse.
   */
  | { kind: "unknown"; text: string };

export interface Policy {
  /** NAMESPACE/NAME */
  name: string;
  action: "allow" | "deny";
  /** It governs these ports alone; absent: all. */
  ports?: readonly number[];
  /** The policy matches if one of them does. */
  rules: readonly { name: string; when: Condition }[];
}

export interface Inbound {
  /** This machine's service ports, ascending. Other ports are not governed. */
  ports: readonly number[];
  mtls: { default: MtlsMode; ports: readonly { port: number; mode: MtlsMode }[] };
  /** Each name and action may occur several times. The order has no meaning. */
  policies: readonly Policy[];
  /** Trust domains whose workloads may call by mutual TLS beside those of this machine's own, ascending; absent: none. */
  trustDomains?: readonly string[];
}

/** The mode of a port. */
export function mtlsOf({ mtls }: Inbound, port: number): MtlsMode {
  return mtls.ports.find((each) => each.port === port)?.mode ?? mtls.default;
}

/** The identity as policies name it: TRUST-DOMAIN/ns/NS/sa/ACCOUNT. */
export function principalOf({ trustDomain, namespace, serviceAccount }: Identity): string {
  return `${trustDomain}/ns/${namespace}/sa/${serviceAccount}`;
}
