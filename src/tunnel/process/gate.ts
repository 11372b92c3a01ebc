/** Limits the handshakes in progress and the connections of one way, so that none takes another's share. */
import type { Socket } from "node:net";

export interface Limits {
  /** Connections that are not established yet. */
  pending: number;
  /** All connections. */
  connections: number;
}

export const LIMITS: Limits = { pending: 2_000, connections: 50_000 };

export class Gate {
  readonly #limits: Limits;
  readonly #sockets = new Set<Socket>();
  /** The oldest is first. */
  readonly #pending = new Set<Socket>();
  readonly #displaced = new WeakSet<Socket>();
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

  /**
   * Registers an accepted socket until it closes. Gives the one that the caller must reset, if there are too many: the oldest
   * whose handshake has not ended, since a peer that can end it does so long before; `socket` itself when there is none.
   */
  enter(socket: Socket): Socket | undefined {
    if (this.#sockets.size >= this.#limits.connections) return socket;
    let surplus: Socket | undefined;
    if (this.#pending.size >= this.#limits.pending) {
      [surplus] = this.#pending;
      if (!surplus) return socket;
      this.#pending.delete(surplus);
      this.#displaced.add(surplus);
    }
    this.#sockets.add(socket);
    this.#pending.add(socket);
    socket.on("close", this.#leave);
    return surplus;
  }

  /** Whether `enter` gave this socket to be reset for another. */
  hasDisplaced(socket: Socket): boolean {
    return this.#displaced.has(socket);
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
