/**
 * How a connection to an endpoint is carried when it does not go in plaintext: the tunnel (`kmesh tunnel`) speaks it for
 * the app. Pure data. The pair (cluster, endpoint) decides: see Cluster.transports and EndpointList.
 */

/** A peer's identity is accepted if one of its URI SANs (or DNS SANs, for `tls`) is matched by one of these. */
export interface SanMatch {
  kind: "exact" | "prefix" | "suffix";
  value: string;
}

export type Transport =
  /** A sidecar's mutual TLS: the mesh's certificate, ALPN `istio`, TLS 1.2 or 1.3. */
  | { kind: "istio"; sni: string; sans: readonly SanMatch[] }
  /** HTTP/2 CONNECT inside the mesh's mutual TLS (TLS 1.3, ALPN `h2`). */
  | {
      kind: "hbone";
      /** `:authority` of the CONNECT, host:port or ip:port. Empty: the endpoint's own address and port. */
      authority: string;
      /** TCP port of the peer that speaks HBONE, 15008 as a rule. */
      port: number;
      sans: readonly SanMatch[];
      /** The second CONNECT inside the first one, at an east-west gateway (double HBONE). */
      inner?: { authority: string; sans: readonly SanMatch[] };
    }
  /** TLS of a DestinationRule (SIMPLE or MUTUAL) to a peer outside of the mesh. */
  | {
      kind: "tls";
      /** Empty: none is sent. */
      sni: string;
      sans: readonly SanMatch[];
      /** File of root certificates; "system" for the machine's own; empty: the peer is not verified. */
      roots: string;
      /** Files of the client's certificate and key; empty for SIMPLE. */
      certificate: string;
      key: string;
      alpn: readonly string[];
    }
  /** A PROXY protocol header of version 1 or 2 before the app's bytes; `over` carries both where it is given. */
  | { kind: "proxy-protocol"; version: 1 | 2; over?: Transport };
