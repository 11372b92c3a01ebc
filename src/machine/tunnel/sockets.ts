/** Whether the tunnel's sockets listen, and who has their ports otherwise. */
import { HBONE_PORT, STEERED_PORT, TUNNEL_PORT } from "../../mesh/tunnel-address.ts";
import { ANY4, ANY6, LOOPBACK4, LOOPBACK6, ownersOf, TCP4, TCP6 } from "./listener.ts";

/** The service that carries connections which need mutual TLS. Its socket units start it. */
export const TUNNEL = "kmesh-tunnel.service";

export interface ListenerState {
  /** The socket unit of systemd. */
  unit: string;
  port: number;
  state: "listens" | "absent" | "taken";
  /** For `taken`: the user's number that has the port, if it is not root's. */
  holder?: number;
}

/** The addresses at which each socket of the tunnel may listen, as in /proc/net/tcp. */
const SOCKETS = [
  { unit: "kmesh-tunnel.socket", port: TUNNEL_PORT, at: [[TCP4, ANY4]] },
  {
    unit: "kmesh-tunnel-hbone.socket",
    port: HBONE_PORT,
    at: [
      [TCP6, ANY6],
      [TCP4, ANY4],
    ],
  },
  { unit: "kmesh-tunnel-inbound.socket", port: STEERED_PORT, at: [[TCP4, LOOPBACK4]] },
  { unit: "kmesh-tunnel-inbound6.socket", port: STEERED_PORT, at: [[TCP6, LOOPBACK6]] },
] as const;

/** Leaves out the one of IPv6 where there is no IPv6. `tables` replaces /proc/net/tcp and tcp6 in tests. */
export function listenerStates(
  tables: { tcp4: string; tcp6: string } = { tcp4: TCP4, tcp6: TCP6 },
): ListenerState[] {
  const path = (table: string) => (table === TCP4 ? tables.tcp4 : tables.tcp6);
  return SOCKETS.flatMap(({ unit, port, at }): ListenerState[] => {
    const owners = at.map(([table]) => ownersOf(path(table), port));
    const isThere = at.some(([, address], i) =>
      owners[i]?.some((owner) => owner.address === address && owner.user === 0),
    );
    if (isThere) return [{ unit, port, state: "listens" }];
    if (at.every(([table]) => table === TCP6) && owners.every((each) => each === undefined)) return [];
    // The IPv6 socket's port is no matter of the IPv4 one.
    const other = owners.flat().find((owner) => owner !== undefined);
    if (!other) return [{ unit, port, state: "absent" }];
    return [{ unit, port, state: "taken", ...(other.user === 0 ? {} : { holder: other.user }) }];
  });
}
