/** Bounds what one listener takes on at once: handshakes that have not ended, and connections. */
import type { Socket } from "node:net";

export interface Limits {
  /** Handshakes, sniffing and connects that have not come about. */
  pending: number;
  /** Connections of all listeners together. */
  connections: number;
}

export const LIMITS: Limits = { pending: 2_000, connections: 50_000 };

export class Gate {
  readonly #limits: Limits;
  readonly #sockets = new Set<Socket>();
  readonly #pending = new Set<Socket>();

  constructor(limits: Limits) {
    this.#limits = limits;
  }

  get connections(): number {
    return this.#sockets.size;
  }

  /** Registers an accepted socket until it closes. False: there are too many; it is for the caller to reset it. */
  enter(socket: Socket): boolean {
    if (this.#pending.size >= this.#limits.pending || this.#sockets.size >= this.#limits.connections)
      return false;
    this.#sockets.add(socket);
    this.#pending.add(socket);
    socket.once("close", () => {
      this.#sockets.delete(socket);
      this.#pending.delete(socket);
    });
    return true;
  }

  /** The socket's connection has come about. */
  settled(socket: Socket): void {
    this.#pending.delete(socket);
  }

  /** Every socket that is open. */
  get sockets(): Iterable<Socket> {
    return this.#sockets;
  }
}
