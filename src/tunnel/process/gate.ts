/** Limits the handshakes in progress and the connections of one listener. */
import type { Socket } from "node:net";

export interface Limits {
  /** Connections that are not established yet. */
  pending: number;
  /** Connections of all listeners together. */
  connections: number;
}

export const LIMITS: Limits = { pending: 2_000, connections: 50_000 };

export class Gate {
  readonly #limits: Limits;
  readonly #sockets = new Set<Socket>();
  readonly #pending = new Set<Socket>();
  /** One listener for all sockets. */
  readonly #leave: (this: Socket) => void;

  /** `left` is called when a socket has closed. */
  constructor(limits: Limits, left: () => void) {
    this.#limits = limits;
    const sockets = this.#sockets;
    const pending = this.#pending;
    this.#leave = function leave(this: Socket) {
      sockets.delete(this);
      pending.delete(this);
      left();
    };
  }

  get connections(): number {
    return this.#sockets.size;
  }

  /** Registers an accepted socket until it closes. False: there are too many, and the caller must reset it. */
  enter(socket: Socket): boolean {
    if (this.#pending.size >= this.#limits.pending || this.#sockets.size >= this.#limits.connections)
      return false;
    this.#sockets.add(socket);
    this.#pending.add(socket);
    socket.on("close", this.#leave);
    return true;
  }

  /** The socket's connection was established. */
  settled(socket: Socket): void {
    this.#pending.delete(socket);
  }

  /** All open sockets. */
  get sockets(): Iterable<Socket> {
    return this.#sockets;
  }
}
