/**
 * Addresses of the tunnel. For the kernel a tunnelled endpoint is an endpoint at 127.a.b.c:15001. The whole of 127/8 is
 * local, and a.b.c is the number of the tunnel target, so the local address of an accepted socket names the peer.
 * bpf/maps/tunnel-port.h has the same port and first number.
 */

/** TCP port at which the tunnel accepts the connections of the machine's own apps. */
export const TUNNEL_PORT = 15001;
/** TCP port at which peers connect by HBONE. */
export const HBONE_PORT = 15008;
/** TCP port of the loopback listeners to which the kernel steers connections of peers. */
export const STEERED_PORT = 15006;

/** TCP ports that are the tunnel's on every machine. */
export const TUNNEL_PORTS: ReadonlySet<number> = new Set([TUNNEL_PORT, STEERED_PORT, HBONE_PORT]);

/**
 * The smallest number. 127.0.0.1 is no target: a connect() to :: from a socket that is bound to an IPv4 address arrives
 * there.
 */
export const FIRST_TARGET = 2;
/** The largest number: 127.255.255.255 is a broadcast address. */
export const LAST_TARGET = 2 ** 24 - 2;

/** The address of a target for the programs, `127.a.b.c`. Throws RangeError for a number out of range. */
export function addressOfTarget(number: number): string {
  if (!Number.isInteger(number) || number < FIRST_TARGET || number > LAST_TARGET)
    throw new RangeError(`${number} is not a number of a tunnel target`);
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
  return number >= FIRST_TARGET && number <= LAST_TARGET ? number : undefined;
}

/**
 * Whether a configured endpoint lies in the tunnel's own addresses. A connection to it would arrive at whatever target has
 * that number, so it is no endpoint. `address` is a number for IPv4, the first octet in the highest bits, or canonical text.
 */
export function isTunnelEntry(address: number | string, port: number): boolean {
  if (port !== TUNNEL_PORT) return false;
  return typeof address === "number" ? address >>> 24 === 127 : address.startsWith("127.");
}

/** For a note about such endpoints. */
export const TUNNEL_ENTRY_TEXT = `endpoints at 127.0.0.0/8 port ${TUNNEL_PORT} are left out: those addresses are the tunnel's`;
