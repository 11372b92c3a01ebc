/** Tunnel targets: the destinations of redirected connections. src/mesh/tunnel-address.ts describes their addresses. */
import type { Transport } from "../../mesh/transport.ts";

/** One endpoint behind the tunnel. */
export interface TunnelTarget {
  /** FIRST_TARGET to LAST_TARGET. */
  number: number;
  /** The endpoint's own address (IPv4 or IPv6 text without brackets) and TCP port. */
  peer: { address: string; port: number };
  transport: Transport;
  /** Its service and cluster, for counters and logs. */
  service: string;
  cluster: string;
}

/** Looks a target up by its number; undefined if there is none. Must not throw. */
export type ReadTarget = (number: number) => TunnelTarget | undefined;

/** The kernel's balancing between the endpoints of a cluster, which needs the outcomes. Must not throw. */
export interface Endpoints {
  /** Another endpoint of the target's cluster for a retry; undefined if there is none. */
  another(target: TunnelTarget): TunnelTarget | undefined;
  /** Records a success, or a failure that the target caused. The connection began at `since`. */
  record(target: TunnelTarget, went: "well" | "wrong", since: bigint): void;
  /** CLOCK_MONOTONIC, for `record`. */
  now(): bigint;
}
