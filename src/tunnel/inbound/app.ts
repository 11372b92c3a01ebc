/** The tunnel's connection to the app, on behalf of a caller. */
import { readFileSync } from "node:fs";
import type { Socket } from "node:net";
import type { Proof } from "../../datapath/peers.ts";
import { openTcp } from "../tcp.ts";

export interface AddressAndPort {
  address: string;
  port: number;
}

export interface Caller extends AddressAndPort {
  /** What it has proved; absent for plaintext. */
  proof?: Proof;
}

/** Makes getpeername() and accept() of apps show callers, and has the kernel count the traffic for them. */
export interface Callers {
  /**
   * From now on the app at `app` sees `caller` on the connection that comes from `port` of its own address. Gives what ends
   * that, which is told whether there was a connection; undefined when the caller can't be shown. Must not throw.
   */
  show(app: AddressAndPort, port: number, caller: Caller): ((wasConnected: boolean) => void) | undefined;
}

/** Ports that are tried for a connection that shows its caller. */
const TRIES = 4;

/**
 * Connects to the app at an address of this machine. The app sees `caller`, with the connection's own port where the caller's
 * is 0; it sees this machine's address where that can't be done, and `shown` is false then. The connection comes from the
 * address that it goes to, so that steering lets it pass. Rejects with the system's error, or TunnelFailure.
 */
export async function openApp(
  app: AddressAndPort,
  caller: Caller,
  callers: Callers | undefined,
  patience: number,
): Promise<{ socket: Socket; shown: boolean }> {
  const to = { host: app.address, port: app.port };
  const { signal } = new AbortController();
  for (let i = 0; callers && i < TRIES; i++) {
    const port = anyPort();
    const hide = callers.show(app, port, { ...caller, port: caller.port || port });
    if (!hide) break;
    try {
      const socket = await openTcp({ ...to, localAddress: app.address, localPort: port }, patience, signal);
      socket.once("close", () => hide(true));
      if (socket.destroyed) hide(true);
      return { socket, shown: true };
    } catch (error) {
      hide(false);
      if (!isTaken(error)) throw error;
    }
  }
  return { socket: await openTcp(to, patience, signal), shown: false };
}

function isTaken(error: unknown): boolean {
  const code = error instanceof Error && "code" in error ? error.code : "";
  return code === "EADDRINUSE" || code === "EADDRNOTAVAIL";
}

let range: { first: number; count: number } | undefined;

/** One of the ports that the kernel gives to clients, too (ip_local_port_range, ip(7)). */
function anyPort(): number {
  range ??= readRange();
  return range.first + Math.floor(Math.random() * range.count);
}

function readRange(): { first: number; count: number } {
  try {
    const text = readFileSync("/proc/sys/net/ipv4/ip_local_port_range", "latin1");
    const [first = 0, last = 0] = text.trim().split(/\s+/).map(Number);
    if (first > 0 && last > first) return { first, count: last - first + 1 };
  } catch {
    // The kernel's own default does.
  }
  return { first: 32_768, count: 28_232 };
}
