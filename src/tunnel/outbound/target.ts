/**
 * Tunnel targets: where a redirected connection goes. For the kernel a tunnelled endpoint is an endpoint at
 * 127.a.b.c:15001. a.b.c is the number of a row in a pinned table, so the accepted socket's own address names the peer.
 */
import type { Transport } from "../../mesh/transport.ts";

/** TCP port at which the tunnel accepts the connections of the machine's own apps. */
export const OUTBOUND_PORT = 15001;

/** Numbers are 1 to this one: 127.0.0.1 is number 1, 127.255.255.255 is a broadcast address and no number. */
export const MAX_TARGET = 2 ** 24 - 2;

/** One endpoint that is reached through the tunnel. */
export interface TunnelTarget {
  /** 1 to MAX_TARGET. */
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

/** The address at which apps are redirected to the target: `127.a.b.c`. Throws RangeError for a number out of range. */
export function addressOfTarget(number: number): string {
  if (!Number.isInteger(number) || number < 1 || number > MAX_TARGET)
    throw new RangeError(`${number} is no number of a tunnel target`);
  return `127.${number >>> 16}.${(number >>> 8) & 255}.${number & 255}`;
}

/**
 * The number in the local address of an accepted socket: `127.a.b.c`, or `::ffff:127.a.b.c` on a dual-stack listener.
 * Undefined for any other address.
 */
export function targetOfAddress(address: string | undefined): number | undefined {
  const [, a, b, c] = /^(?:::ffff:)?127\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/i.exec(address ?? "") ?? [];
  if (a === undefined || b === undefined || c === undefined) return undefined;
  const bytes = [a, b, c].map(Number);
  if (bytes.some((byte) => byte > 255)) return undefined;
  const number = bytes.reduce((sum, byte) => sum * 256 + byte, 0);
  return number >= 1 && number <= MAX_TARGET ? number : undefined;
}
