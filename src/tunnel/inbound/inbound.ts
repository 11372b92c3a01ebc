/** Inbound connections of peers: HBONE on its own port, and sidecar mTLS or plaintext on steered ports. */
import type { Socket } from "node:net";
import type { Duplex } from "node:stream";
import { canonicalAddress } from "../../mesh/address.ts";
import type { Identity, MtlsMode } from "../../mesh/inbound.ts";
import type { Counters, Way } from "../counters.ts";
import { reasonOfFailure, TunnelFailure } from "../failure.ts";
import type { Budget } from "../http2/budget.ts";
import { Http2Connection } from "../http2/connection.ts";
import { ERROR } from "../http2/frames.ts";
import type { Headers } from "../http2/hpack.ts";
import type { ConnectStream } from "../http2/stream.ts";
import { reset, splice } from "../splice.ts";
import { CONNECT_PATIENCE, KEEPALIVE } from "../tcp.ts";
import { timeLimit } from "../time-limit.ts";
import { acceptTls, HANDSHAKE_PATIENCE } from "../tls/accept.ts";
import type { MeshCredentials } from "../tls/mesh-credentials.ts";

import { type Admission, type InboundConnection, isOwnPort, parseDestination } from "./admission.ts";
import { type AddressAndPort, type Caller, type Callers, openApp } from "./app.ts";
import { readFirstBytes } from "./client-hello.ts";
import { Established } from "./established.ts";

/**
 * Protocols that are chosen of a client's offer, the first of them that it has: those of Istio's clients for a stream, then an
 * app's own. Not istio-peer-exchange: with that Istio's Envoy writes bytes of its own into the stream.
 */
const SIDECAR_ALPN = ["istio", "istio-http/1.1", "istio-http/1.0", "istio-h2", "http/1.1", "h2"];
const MESH_ALPN = /^istio($|-)/;
/** After this silence a client counts as plaintext that waits for the server, on a port that is not strict, milliseconds. */
const SNIFF_PATIENCE = 2_000;

/** CONNECTs that are carried or being opened: each has a connection to an app, and 100 share one of a peer. */
const MOST_CONNECTS = 50_000;

/** How long the first bytes are waited for, milliseconds, and what a client is that has sent none by then. */
interface SniffLimit {
  patience: number;
  silence: "plaintext" | "failure";
}

export interface InboundOptions {
  credentials: MeshCredentials;
  admission: Admission;
  /** Absent: apps see this machine's own address. */
  callers?: Callers;
  counters: Counters;
  budget: Budget;
  /** Whether the accepted socket was reset for another one, which is counted already. */
  wasDisplaced?(raw: Socket): boolean;
  log(text: string): void;
  /** Milliseconds for a handshake and for the connect to the app; for tests. */
  patience?: number;
  sniffPatience?: number;
  mostConnects?: number;
}

export class InboundTunnel {
  readonly #options: InboundOptions;
  readonly #connections = new Set<Http2Connection>();
  readonly #established: Established;
  #draining = false;

  constructor(options: InboundOptions) {
    this.#options = options;
    this.#established = new Established(options.admission);
  }

  /** Resets connections that new policies do not admit, where they govern established ones (enforce-established). */
  review(): void {
    this.#established.review();
  }

  /** Open HTTP/2 connections. */
  get connections(): number {
    return this.#connections.size;
  }

  /** Sends GOAWAY on every HBONE connection, also on those that are in their handshake: each ends with its last stream. */
  drain(): void {
    this.#draining = true;
    for (const connection of [...this.#connections]) connection.drain();
  }

  /** Serves one connection to the HBONE port. Owns the socket. `settled` is called when its handshake is over. */
  async serveHbone(raw: Socket, settled: () => void): Promise<void> {
    const { counters, budget } = this.#options;
    raw.on("error", () => {});
    const from = canonicalAddress(raw.remoteAddress ?? "") ?? "";
    try {
      const { socket, id, identity } = await this.#accept(raw, "TLSv1.3", ["h2"], "h2");
      settled();
      counters.rows.handshakes.server++;
      const connection = new Http2Connection(socket, {
        role: "server",
        budget,
        request: (stream, headers) => void this.#connect(stream, headers, { from, id, identity }),
        closed: (reason) => {
          this.#connections.delete(connection);
          if (reason && "code" in reason && typeof reason.code === "number" && reason.code !== ERROR.none) {
            counters.failed("hbone", "protocol-error");
            this.#options.log(`hbone: ${id} at ${from}: ${reason.message}`);
          }
        },
      });
      this.#connections.add(connection);
      if (this.#draining) connection.drain();
    } catch (error) {
      if (!this.#options.wasDisplaced?.(raw)) this.#refused("hbone", from, error);
      reset(raw);
    }
  }

  /**
   * Serves one connection that was steered here on its way to a port of an app: its local address and port are the app's.
   * One to the listener itself was steered by nobody: the agent makes such a connection to start the tunnel, and it is
   * reset. Owns the socket.
   */
  async serveSteered(raw: Socket, settled: () => void, listenerPort: number): Promise<void> {
    const { counters, admission } = this.#options;
    raw.on("error", () => {});
    const source = canonicalAddress(raw.remoteAddress ?? "") ?? "";
    const destination = { address: canonicalAddress(raw.localAddress ?? "") ?? "", port: raw.localPort ?? 0 };
    if (destination.port === listenerPort) {
      settled();
      reset(raw);
      return;
    }
    counters.begin("inbound");
    // The app's own keepalive asks the tunnel alone. HBONE connections have PING.
    raw.setKeepAlive(true, KEEPALIVE);
    try {
      if (isOwnPort(destination.port))
        throw new TunnelFailure("not-ours", `port ${destination.port} is kmesh's own`);
      const mode = admission.mtls(destination.port);
      const first = await sniff(raw, this.#sniffLimit(mode));
      // On a strict port all TLS is the mesh's. On other ports the app's own TLS passes through.
      const offer = first.kind === "tls" ? first.alpn : [];
      const ours = first.kind === "tls" && (mode === "strict" || offer.some((name) => MESH_ALPN.test(name)));
      let stream: Duplex = raw;
      let peer: { id: string; identity: Identity } | undefined;
      if (ours && mode !== "disable") {
        // A client whose offer has none of them comes in without a protocol, as with Envoy. Else TLS would end with an alert.
        const isKnown = offer.some((name) => SIDECAR_ALPN.includes(name));
        const accepted = await this.#accept(raw, "TLSv1.2", isKnown ? SIDECAR_ALPN : [], undefined);
        counters.rows.handshakes.server++;
        stream = accepted.socket;
        peer = accepted;
      } else if (mode === "strict")
        throw new TunnelFailure("plaintext", "plaintext, and mutual TLS is demanded");
      const connection = this.#admit(source, destination, peer?.identity);
      const app = await this.#openApp(destination, {
        ...{ address: source, port: raw.remotePort ?? 0 },
        ...(peer && { proof: { by: "istio", principal: peer.id } }),
      });
      settled();
      counters.opened("inbound", peer?.id);
      this.#join("inbound", connection, stream, app);
    } catch (error) {
      counters.abandoned("inbound");
      if (!this.#options.wasDisplaced?.(raw)) this.#refused("inbound", source, error);
      reset(raw);
    }
  }

  /** On a strict port nothing is gained by taking a silent client for plaintext: its machine may be busy. */
  #sniffLimit(mode: MtlsMode | undefined): SniffLimit {
    const { patience, sniffPatience } = this.#options;
    return mode === "strict"
      ? { patience: patience ?? HANDSHAKE_PATIENCE, silence: "failure" }
      : { patience: sniffPatience ?? SNIFF_PATIENCE, silence: "plaintext" };
  }

  #accept(
    raw: Socket,
    from: "TLSv1.2" | "TLSv1.3",
    alpn: readonly string[],
    requireAlpn: string | undefined,
  ) {
    const { credentials, admission, patience } = this.#options;
    const generation = credentials.current();
    return acceptTls(raw, {
      context: generation.context(from),
      alpn,
      trustDomains: [generation.trustDomain, ...(admission.trustDomains?.() ?? [])],
      ...(requireAlpn !== undefined && { requireAlpn }),
      ...(patience !== undefined && { patience }),
    });
  }

  async #connect(
    stream: ConnectStream,
    headers: Headers,
    peer: { from: string; id: string; identity: Identity },
  ): Promise<void> {
    const { counters, mostConnects = MOST_CONNECTS } = this.#options;
    const { open, pending } = counters.rows.ways.hbone;
    counters.begin("hbone");
    try {
      if (open + pending >= mostConnects) throw new TunnelFailure("overload", "too many CONNECTs at once");
      const destination = destinationOf(headers);
      if (this.#options.admission.mtls(destination.port) === undefined)
        throw new TunnelFailure("not-ours", `port ${destination.port} is none of this machine's services`);
      const connection = this.#admit(peer.from, destination, peer.identity);
      // Streams of one connection share its port: the app sees a port for each.
      const proof = { by: "hbone", principal: peer.id } as const;
      const app = await this.#openApp(destination, { address: peer.from, port: 0, proof });
      if (stream.destroyed) {
        counters.abandoned("hbone");
        reset(app);
        return;
      }
      stream.respond(200);
      counters.opened("hbone", peer.id);
      this.#join("hbone", connection, stream, app);
    } catch (error) {
      counters.abandoned("hbone");
      this.#refused("hbone", `${peer.id} at ${peer.from}`, error);
      stream.respond(statusOf(reasonOfFailure(error)), true);
    }
  }

  /** Carries an admitted connection to its end. */
  #join(way: "inbound" | "hbone", connection: InboundConnection, stream: Duplex, app: Socket): void {
    const { counters, log } = this.#options;
    const forget = this.#established.add(connection, (reason) => {
      counters.failed(way, "denied");
      log(
        `${way}: ${connection.sourceAddress}: cut: port ${connection.destinationPort} is refused now (${reason})`,
      );
      reset(stream);
      reset(app);
    });
    splice(stream, app, ({ forth, back }) => {
      forget();
      counters.closed(way, back, forth);
    });
  }

  /** Admits a connection by the policies. Throws TunnelFailure `denied`. */
  #admit(
    sourceAddress: string,
    { address, port }: { address: string; port: number },
    identity: Identity | undefined,
  ): InboundConnection {
    const connection = {
      sourceAddress,
      destinationAddress: address,
      destinationPort: port,
      ...(identity && { identity }),
    };
    const decision = this.#options.admission.decide(connection);
    if (decision.allowed) return connection;
    const by = decision.policy === undefined ? "" : ` by ${decision.policy}`;
    throw new TunnelFailure("denied", `port ${port} is refused${by} (${decision.reason})`);
  }

  async #openApp(to: AddressAndPort, caller: Caller): Promise<Socket> {
    const { callers, counters, patience } = this.#options;
    const { socket, shown } = await openApp(to, caller, callers, patience ?? CONNECT_PATIENCE);
    counters.rows.callers[shown ? "shown" : "hidden"]++;
    return socket;
  }

  #refused(way: Way, from: string, error: unknown): void {
    const reason = reasonOfFailure(error);
    this.#options.counters.failed(way, reason);
    this.#options.log(
      `${way}: ${from}: ${reason}: ${error instanceof Error ? error.message : String(error)}`,
    );
  }
}

/** RFC 9113 section 8.5: CONNECT has an authority, and neither scheme nor path. Throws TunnelFailure. */
function destinationOf(headers: Headers): { address: string; port: number } {
  const value = (name: string) => headers.filter((header) => header[0] === name).map((header) => header[1]);
  const [method, ...methods] = value(":method");
  const [authority, ...authorities] = value(":authority");
  const odd = headers.some(([name]) => name.startsWith(":") && name !== ":method" && name !== ":authority");
  if (method !== "CONNECT" || methods.length > 0 || authority === undefined || authorities.length > 0 || odd)
    throw new TunnelFailure("bad-request", "the request is no plain CONNECT");
  return parseDestination(authority);
}

/** The status, as in ztunnel: 401 by policy, 400 for a bad or foreign authority, 503 when the app does not answer. */
function statusOf(reason: string): number {
  if (reason === "denied") return 401;
  return reason === "bad-request" || reason === "not-ours" ? 400 : 503;
}

/** Waits for the first bytes and puts them back. */
function sniff(
  socket: Socket,
  { patience, silence }: SniffLimit,
): Promise<ReturnType<typeof readFirstBytes>> {
  return new Promise((resolve, reject) => {
    let kept: Buffer = Buffer.alloc(0);
    const finish = () => {
      noLimit();
      socket.off("data", onData);
      socket.off("end", onEnd);
      socket.off("close", onClose);
      socket.pause();
    };
    const decide = (first: ReturnType<typeof readFirstBytes>) => {
      finish();
      if (kept.length > 0) socket.unshift(kept);
      resolve(first);
    };
    const onData = (chunk: Buffer) => {
      kept = kept.length === 0 ? chunk : Buffer.concat([kept, chunk]);
      const first = readFirstBytes(kept);
      if (first.kind !== "incomplete") decide(first);
    };
    const onEnd = () => onClose();
    const onClose = () => {
      finish();
      reject(new TunnelFailure("reset", "the peer closed the connection before its first bytes"));
    };
    const noLimit = timeLimit(patience, () => {
      if (kept.length === 0 && silence === "plaintext") decide({ kind: "plaintext" });
      else {
        finish();
        reject(new TunnelFailure("handshake-timeout", "the peer's ClientHello did not come in time"));
      }
    });
    socket.on("data", onData);
    socket.on("end", onEnd);
    socket.on("close", onClose);
    socket.resume();
  });
}
