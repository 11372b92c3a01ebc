/** Whether something on this machine takes what the data path leads to the tunnel. */
import { readFileSync } from "node:fs";
import type { Config } from "../config/config.ts";
import { TUNNEL_PORT } from "../mesh/tunnel-address.ts";

/** TCP_LISTEN in /proc/net/tcp. */
const LISTEN = "0A";

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
  listens: () => boolean = () => rootListens("/proc/net/tcp", TUNNEL_PORT),
): boolean {
  if (tunnel === "off" || shadow || allowPlaintext) return false;
  return tunnel === "on" || (!plaintext && listens());
}

/**
 * Whether a socket of root's listens at the wildcard address and `port` in this network namespace; `table` is
 * /proc/net/tcp or a file like it (proc_net_tcp of the kernel's documentation). A sidecar's Envoy, which uses the same
 * port, runs as another user.
 */
export function rootListens(table: string, port: number): boolean {
  let text: string;
  try {
    text = readFileSync(table, "latin1");
  } catch {
    return false;
  }
  const local = `00000000:${port.toString(16).toUpperCase().padStart(4, "0")}`;
  return text.split("\n").some((line) => {
    const fields = line.trim().split(/\s+/);
    return fields[1] === local && fields[3] === LISTEN && fields[7] === "0";
  });
}
