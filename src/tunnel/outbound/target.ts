/** Tunnel targets: where a redirected connection goes. src/mesh/tunnel-address.ts says how a connection names its target. */
import type { Transport } from "../../mesh/transport.ts";

/** One endpoint that is reached through the tunnel. */
export interface TunnelTarget {
  /** FIRST_TARGET to LAST_TARGET. */
  number: number;
  /** The endpoint's own address (IPv4 or IPv6 text without brackets) and TCP port. */
  peer: { address: string; port: number };
  transport: Transport;
  /** The service and the cluster that it belongs to, for counters and logs. */
  service: string;
  cluster: string;
}

/** Looks a target up by its number: undefined when there is none. Must not throw. */
export type ReadTarget = (number: number) => TunnelTarget | undefined;

/** How the kernel balances between the endpoints of a cluster, and what it has to know for that. Must not throw. */
export interface Endpoints {
  /** Another endpoint of the target's cluster that may take its place; undefined: there is none. */
  another(target: TunnelTarget): TunnelTarget | undefined;
  /** A connection to the target came about, or failed by the target's own fault. It began at `since`. */
  record(target: TunnelTarget, went: "well" | "wrong", since: bigint): void;
  /** CLOCK_MONOTONIC, for `record`. */
  now(): bigint;
}
