/**
 * HBONE connections to peers, which CONNECTs share one after the other and, where the peer's windows allow it, at the same
 * time. A handshake costs both sides 0.4 ms of CPU, a CONNECT on an open connection a tenth of that.
 *
 * A stream that the peer's app does not read may fill its own window, and all unread streams together the connection's.
 * So a connection carries at most as many streams as whole stream windows fit into its window: no stream can starve
 * another. With ztunnel's windows (4 and 16 MiB) that is four, with Envoy's defaults (16 and 24 MiB) one.
 */
import type { TLSSocket } from "node:tls";
import { TunnelFailure } from "../failure.ts";
import type { Budget } from "../http2/budget.ts";
import { Http2Connection } from "../http2/connection.ts";
import { ERROR } from "../http2/frames.ts";
import type { Headers } from "../http2/hpack.ts";
import { type ConnectStream, StreamReset } from "../http2/stream.ts";
import { requestConnect } from "./connect-request.ts";

/** Most streams of one connection, as in ztunnel. */
const MOST_STREAMS = 100;
/** Idle connections: the number that is kept for a peer, and the time in milliseconds. */
const MOST_IDLE = 64;
const IDLE_FOR = 60_000;
const SWEEP_EVERY = 5_000;

/** A new connection to a verified peer. */
export interface HbonePeer {
  socket: TLSSocket;
  /** The peer's SPIFFE id. */
  identity?: string;
  /** The end of the peer's certificate, milliseconds since the epoch. */
  notAfter: number;
}

export interface HboneRequest {
  /** The key of shared connections: the peer's address and allowed identities. */
  key: string;
  /** Our certificate with its roots: a new one makes new connections. */
  generation: object;
  open(signal: AbortSignal): Promise<HbonePeer>;
  /** The headers of the CONNECT, on a connection whose end here has the address `local`. */
  headers(local: string | undefined): Headers;
  /** Time limit of the answer to CONNECT, milliseconds. */
  patience: number;
}

export interface HboneStream {
  stream: ConnectStream;
  identity?: string;
  /** The address of the connection's end here. */
  local: string | undefined;
}

interface Shared {
  connection: Http2Connection;
  identity: string | undefined;
  local: string | undefined;
  notAfter: number;
  /** Whether it is in the peer's stack of connections with room. */
  listed: boolean;
  /** performance.now() at the begin of its idle time; undefined while it has streams. */
  idleSince: number | undefined;
}

interface Opening {
  shared: Promise<Shared>;
  waiting: number;
  /** The number of requests that may wait for it. */
  room: number;
  abort: AbortController;
}

interface Peer {
  generation: object;
  connections: Set<Shared>;
  /** Connections that may have room. The last used one is on top, so that the others become idle. */
  free: Shared[];
  openings: Set<Opening>;
  /** The last known number of streams for a connection of this peer. */
  room: number;
  /** Its connections accept no more streams. */
  retired: boolean;
}

export class HbonePool {
  readonly #budget: Budget;
  readonly #idleFor: number;
  readonly #peers = new Map<string, Peer>();
  readonly #sweeper: ReturnType<typeof setInterval>;
  #draining = false;

  /** Call `drain` at the end. `idleFor` in milliseconds. */
  constructor(budget: Budget, idleFor = IDLE_FOR) {
    this.#budget = budget;
    this.#idleFor = idleFor;
    this.#sweeper = setInterval(() => this.#sweep(), Math.min(SWEEP_EVERY, idleFor));
    this.#sweeper.unref();
  }

  /** Open connections, and idle ones among them. */
  get size(): { open: number; idle: number } {
    let open = 0;
    let idle = 0;
    for (const { connections } of this.#peers.values())
      for (const { connection } of connections) {
        open++;
        if (connection.streams === 0) idle++;
      }
    return { open, idle };
  }

  /**
   * Opens a CONNECT. Resolves when the peer has answered it with 2xx. Rejects with TunnelFailure, or the error of the
   * connection. A connection that was used before may have ended meanwhile, and one may be full for the peer: then a new
   * one is opened, once. No byte of the app's is sent before the answer.
   */
  async connect(request: HboneRequest, signal: AbortSignal): Promise<HboneStream> {
    const peer = this.#peer(request);
    const known = this.#pick(peer);
    const first = known ?? (await this.#opened(peer, request, signal));
    // Otherwise the peer has closed a new one, or has no room for all that have waited for it.
    if (first.connection.usable) {
      try {
        return await this.#request(peer, first, request, signal);
      } catch (error) {
        const refused = error instanceof StreamReset && error.code === ERROR.refusedStream;
        const lost = known?.connection.ended && !(error instanceof TunnelFailure);
        if (signal.aborted || (!refused && !lost)) throw error;
      }
    }
    const now = this.#peer(request);
    return this.#request(now, await this.#await(this.#open(now, request), signal), request, signal);
  }

  /** Stops keeping connections: each ends with its last stream, idle ones at once. */
  drain(): void {
    this.#draining = true;
    clearInterval(this.#sweeper);
    for (const [key, peer] of this.#peers) this.#retire(key, peer);
  }

  async #request(
    peer: Peer,
    shared: Shared,
    { headers, patience }: HboneRequest,
    signal: AbortSignal,
  ): Promise<HboneStream> {
    const { connection, identity, local } = shared;
    if (!connection.usable) throw new TunnelFailure("reset", "the peer closed the connection at once");
    const answered = requestConnect(connection, headers(local), patience, signal);
    shared.idleSince = undefined;
    // A retired one ends with its last stream; others that have waited for it may come yet.
    if (!peer.retired && roomOf(shared) > 0) this.#offer(peer, shared);
    const stream = await answered;
    return { stream, local, ...(identity !== undefined && { identity }) };
  }

  /** A connection that is being opened, for this request or for another one that leaves room. */
  #opened(peer: Peer, request: HboneRequest, signal: AbortSignal): Promise<Shared> {
    for (const opening of peer.openings)
      if (opening.waiting < opening.room && !opening.abort.signal.aborted)
        return this.#await(opening, signal);
    return this.#await(this.#open(peer, request), signal);
  }

  #peer({ key, generation }: HboneRequest): Peer {
    const known = this.#peers.get(key);
    if (known?.generation === generation) return known;
    if (known) this.#retire(key, known);
    const peer: Peer = {
      generation,
      connections: new Set(),
      free: [],
      openings: new Set(),
      room: 1,
      retired: this.#draining,
    };
    this.#peers.set(key, peer);
    return peer;
  }

  #pick(peer: Peer): Shared | undefined {
    for (;;) {
      const shared = peer.free.at(-1);
      if (!shared) return undefined;
      const room = roomOf(shared);
      // This is its last stream.
      if (room <= 1) {
        peer.free.pop();
        shared.listed = false;
      }
      if (room > 0) return shared;
    }
  }

  #open(peer: Peer, request: HboneRequest): Opening {
    const abort = new AbortController();
    const opening: Opening = {
      abort,
      waiting: 0,
      room: peer.room,
      shared: request.open(abort.signal).then((opened) => this.#adopt(peer, opened)),
    };
    peer.openings.add(opening);
    const done = () => peer.openings.delete(opening);
    opening.shared.then(done, done);
    return opening;
  }

  /** Waits for a connection that others may wait for, too. It is abandoned when nobody waits. */
  async #await(opening: Opening, signal: AbortSignal): Promise<Shared> {
    opening.waiting++;
    const gone = Promise.withResolvers<never>();
    const onAbort = () => {
      if (--opening.waiting === 0) opening.abort.abort();
      gone.reject(new TunnelFailure("reset", "the app has gone"));
    };
    if (signal.aborted) onAbort();
    else signal.addEventListener("abort", onAbort);
    gone.promise.catch(() => {});
    try {
      return await Promise.race([opening.shared, gone.promise]);
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }

  #adopt(peer: Peer, { socket, identity, notAfter }: HbonePeer): Shared {
    const shared: Shared = {
      connection: new Http2Connection(socket, {
        role: "client",
        budget: this.#budget,
        closed: () => peer.connections.delete(shared),
        room: () => {
          peer.room = Math.min(shared.connection.capacity, MOST_STREAMS);
          if (peer.retired || roomOf(shared) > 0) this.#offer(peer, shared);
        },
      }),
      identity,
      local: socket.localAddress,
      notAfter,
      listed: false,
      idleSince: undefined,
    };
    peer.connections.add(shared);
    return shared;
  }

  #offer(peer: Peer, shared: Shared): void {
    const { connection } = shared;
    if (shared.listed || !connection.usable) return;
    if (peer.retired || peer.free.length >= MOST_IDLE) {
      if (connection.streams === 0) connection.drain();
      return;
    }
    shared.listed = true;
    peer.free.push(shared);
  }

  #retire(key: string, peer: Peer): void {
    peer.retired = true;
    peer.free = [];
    if (this.#peers.get(key) === peer) this.#peers.delete(key);
    for (const { connection } of [...peer.connections]) connection.drain();
  }

  #sweep(): void {
    const now = performance.now();
    for (const [key, peer] of this.#peers) {
      for (const shared of [...peer.connections]) {
        if (shared.connection.streams > 0) {
          if (Date.now() >= shared.notAfter) shared.connection.drain();
          continue;
        }
        shared.idleSince ??= now;
        if (now - shared.idleSince >= this.#idleFor) shared.connection.drain();
      }
      // Remove connections that the peer closed, and idle ones.
      peer.free = peer.free.filter(({ connection }) => connection.usable);
      if (peer.connections.size === 0 && peer.openings.size === 0) this.#peers.delete(key);
    }
  }
}

/** The number of further streams that it may carry now. */
function roomOf({ connection, notAfter }: Shared): number {
  if (!connection.usable || Date.now() >= notAfter) return 0;
  return Math.min(connection.capacity, MOST_STREAMS) - connection.streams;
}
