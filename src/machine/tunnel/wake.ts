/** Starts a tunnel whose sockets systemd holds. */
import { connect } from "node:net";
import type { Config } from "../../config/config.ts";
import { STEERED_PORT } from "../../mesh/tunnel-address.ts";
import { LOOPBACK4, rootListens, TCP4 } from "./listener.ts";

/**
 * Connects once to the tunnel's listener for steered connections, and closes: systemd then starts the tunnel, which offers
 * that listener to the kernel. A tunnel that runs ignores such a connection. Does nothing where no socket of root's listens
 * or where the tunnel is not to be used. Never throws.
 */
export function wakeTunnel({ tunnel, plaintext }: Pick<Config, "tunnel" | "plaintext">): void {
  if (tunnel === "off" || (tunnel === "auto" && plaintext)) return;
  if (!rootListens(TCP4, LOOPBACK4, STEERED_PORT)) return;
  const socket = connect({ host: "127.0.0.1", port: STEERED_PORT });
  const end = () => socket.destroy();
  socket.setTimeout(1_000, end);
  socket.once("connect", end);
  socket.once("error", end);
  socket.unref();
}
