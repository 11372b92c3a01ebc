/** The listening sockets of a tunnel: from systemd or a predecessor (sd_listen_fds(3)), otherwise its own. */
import { createServer, type Server, type Socket } from "node:net";

export const LISTENERS = ["outbound", "hbone", "inbound", "inbound6"] as const;
export type ListenerName = (typeof LISTENERS)[number];

/** The variable with a predecessor's pid, in place of LISTEN_PID, which is unknown before the start. */
export const PREDECESSOR = "KMESH_TUNNEL_PREDECESSOR";
/** The variable by which a tunnel starts another process on its sockets: its own pid. */
export const MAIN = "KMESH_TUNNEL_MAIN";
const FIRST_FD = 3;

type Env = Record<string, string | undefined>;

/**
 * The sockets that were handed to this process, by name, and the pid of a predecessor, or of the main process that this one
 * is a worker of. Names that are not known are ignored. Removes the variables, so that no child takes them for its own.
 */
export function takeInherited(
  env: Env,
  pid: number,
): { fds: Map<ListenerName, number>; predecessor?: number; main?: number } {
  const { LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES } = env;
  const predecessor = pidOf(env[PREDECESSOR]);
  const main = pidOf(env[MAIN]);
  for (const name of ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", PREDECESSOR, MAIN]) delete env[name];
  const fds = new Map<ListenerName, number>();
  const byTunnel = predecessor !== undefined || main !== undefined;
  const count = Number(LISTEN_FDS ?? "");
  if ((!byTunnel && Number(LISTEN_PID ?? "") !== pid) || !Number.isInteger(count)) return { fds };
  const names = (LISTEN_FDNAMES ?? "").split(":");
  for (let i = 0; i < count; i++) {
    const name = LISTENERS.find((each) => each === names[i]);
    if (name) fds.set(name, FIRST_FD + i);
  }
  return { fds, ...(predecessor !== undefined && { predecessor }), ...(main !== undefined && { main }) };
}

function pidOf(text: string | undefined): number | undefined {
  const pid = Number(text ?? "");
  return Number.isInteger(pid) && pid > 0 ? pid : undefined;
}

/** A listening socket. `accept` gets each connection, paused. */
export class Listener {
  readonly name: ListenerName;
  readonly #server: Server;

  private constructor(name: ListenerName, server: Server) {
    this.name = name;
    this.#server = server;
  }

  /** Listens on a socket that was handed over, or on an address of its own. Rejects with the system's error. */
  static open(
    name: ListenerName,
    where: { fd: number } | { host: string; port: number },
    accept: (socket: Socket) => void,
  ): Promise<Listener> {
    const server = createServer({ allowHalfOpen: true, pauseOnConnect: true, noDelay: true }, accept);
    return new Promise((resolve, reject) => {
      server.once("error", reject);
      server.listen({ ...where, backlog: 4096 }, () => {
        server.off("error", reject);
        // EMFILE and the like: the next accept tries again.
        server.on("error", () => {});
        resolve(new Listener(name, server));
      });
    });
  }

  /** The bound address; undefined once closed. */
  get address(): { address: string; port: number } | undefined {
    const address = this.#server.address();
    return address === null || typeof address === "string" ? undefined : address;
  }

  /** The descriptor, to hand on; undefined when the runtime does not show it. */
  get fd(): number | undefined {
    const { _handle: handle } = this.#server as Server & { _handle?: { fd?: number } | null };
    return handle?.fd;
  }

  /** Stops accepting. Accepted connections stay. */
  close(): void {
    this.#server.close();
  }
}
