/** Whether something on this machine takes what the data path leads to the tunnel. */
import { closeSync, existsSync, openSync, readSync } from "node:fs";
import type { Config } from "../../config/config.ts";
import { type TunnelReach, UNREACHED } from "../../istiod/node.ts";
import { HBONE_PORT, STEERED_PORT, TUNNEL_PORT } from "../../mesh/tunnel-address.ts";
import type { TunnelUse } from "./reach-watch.ts";

export const TCP4 = "/proc/net/tcp";
export const TCP6 = "/proc/net/tcp6";
/** Addresses as these files have them. */
export const ANY4 = "0".repeat(8);
export const ANY6 = "0".repeat(32);
export const LOOPBACK4 = "0100007F";
export const LOOPBACK6 = "00000000000000000000000001000000";
/** TCP_LISTEN in /proc/net/tcp. */
const LISTEN = "0A";
/** Bytes of one read(2). */
const PIECE = 16_384;

/**
 * Whether connections go through the tunnel that need it. `tunnel: auto` means: where one listens, which systemd does for
 * kmesh-tunnel.socket from the boot on, and where there is a certificate to show, which an agent that speaks to istiod
 * without TLS never gets. In shadow mode nothing is led anywhere, and --allow-plaintext is for those who
 * run without a tunnel.
 */
export function usesTunnel(
  {
    tunnel,
    plaintext,
    shadow,
    allowPlaintext,
  }: Pick<Config, "tunnel" | "plaintext" | "shadow" | "allowPlaintext">,
  listens: () => boolean = () => rootListens(TCP4, ANY4, TUNNEL_PORT),
): boolean {
  if (tunnel === "off" || shadow || allowPlaintext) return false;
  return tunnel === "on" || (!plaintext && listens());
}

/**
 * How peers can reach this machine through the tunnel: where its sockets listen, a certificate is there or can be had, and
 * inbound policies govern. systemd holds the sockets, so a tunnel that has crashed, or has not started yet, counts.
 */
export function tunnelReach(
  config: Pick<Config, "tunnel" | "plaintext" | "shadow" | "inbound">,
  certificate: boolean,
  tables: { tcp4: string; tcp6: string } = { tcp4: TCP4, tcp6: TCP6 },
): TunnelReach {
  const { tunnel, shadow, inbound, plaintext } = config;
  if (tunnel === "off" || shadow || inbound === "off" || plaintext || !certificate) return UNREACHED;
  return {
    hbone: rootListens(tables.tcp6, ANY6, HBONE_PORT) || rootListens(tables.tcp4, ANY4, HBONE_PORT),
    mtls: rootListens(tables.tcp4, LOOPBACK4, STEERED_PORT),
  };
}

/** Both directions. */
export function tunnelUse(config: Config, certificate: boolean): TunnelUse {
  return { outbound: usesTunnel(config), reach: tunnelReach(config, certificate) };
}

/**
 * Whether a socket of root's listens at `address` and `port` in this network namespace. `table` is /proc/net/tcp, tcp6 or a
 * file like them, and `address` is as they write it (proc_net_tcp of the kernel's documentation). A sidecar's Envoy, which
 * uses the same ports, runs as another user.
 */
export function rootListens(table: string, address: string, port: number): boolean {
  return ownersOf(table, port)?.some((owner) => owner.address === address && owner.user === 0) ?? false;
}

/** The sockets that listen at `port`: address as in the file, and the user's number. Undefined without such a file. */
export function ownersOf(table: string, port: number): { address: string; user: number }[] | undefined {
  if (!existsSync(table)) return undefined;
  const tail = `:${port.toString(16).toUpperCase().padStart(4, "0")}`;
  const owners: { address: string; user: number }[] = [];
  for (const line of listeningRows(table)) {
    const fields = line.trim().split(/\s+/);
    const local = fields[1] ?? "";
    if (local.endsWith(tail)) owners.push({ address: local.slice(0, -tail.length), user: Number(fields[7]) });
  }
  return owners;
}

/**
 * The kernel lists sockets that listen before all others, so a machine with many connections costs no more. Nothing when the
 * file can't be read.
 */
function* listeningRows(table: string): Generator<string> {
  let fd: number;
  try {
    fd = openSync(table, "r");
  } catch {
    return;
  }
  try {
    const piece = Buffer.alloc(PIECE);
    let rest = "";
    for (let isHead = true; ; ) {
      const count = readSync(fd, piece);
      const lines = (rest + piece.toString("latin1", 0, count)).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        if (isHead) isHead = false;
        else if (line.trim().split(/\s+/, 4)[3] === LISTEN) yield line;
        else return;
      }
      if (count === 0) return;
    }
  } finally {
    closeSync(fd);
  }
}
