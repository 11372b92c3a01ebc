/** Connects to a target by its transport. */
import type { Duplex } from "node:stream";
import type { TLSSocket } from "node:tls";
import { canonicalAddress } from "../../mesh/address.ts";
import { hostOfService } from "../../mesh/model.ts";
import type { SanMatch, Transport } from "../../mesh/transport.ts";
import { TunnelFailure } from "../failure.ts";
import type { Budget } from "../http2/budget.ts";
import { Http2Connection } from "../http2/connection.ts";
import type { Headers } from "../http2/hpack.ts";
import type { ConnectStream } from "../http2/stream.ts";
import { reset } from "../splice.ts";
import { CONNECT_PATIENCE, openTcp } from "../tcp.ts";
import type { MeshCredentials } from "../tls/mesh-credentials.ts";
import { asFailure, openTls, type PeerTls } from "../tls/open.ts";
import { matchesSans, readSans, spiffeOf } from "../tls/san.ts";
import { TlsFiles } from "../tls/tls-files.ts";
import { requestConnect } from "./connect-request.ts";
import { HbonePool } from "./hbone-pool.ts";
import { type AddressAndPort, proxyHeader } from "./proxy-protocol.ts";
import type { TunnelTarget } from "./target.ts";

export interface DialerOptions {
  credentials: MeshCredentials;
  budget: Budget;
  /** The `baggage` header of HBONE: this machine's labels for the peer's telemetry. */
  baggage?: string;
  /** Called after a successful TLS handshake. */
  handshake?(): void;
  /** Gets a line when changed files of a DestinationRule can't be used. */
  warn?(text: string): void;
  /** Milliseconds for one TCP and TLS connection; for tests. */
  patience?: number;
  /** Milliseconds that an HBONE connection without a stream is kept; for tests. */
  idleFor?: number;
}

/** An app's end, and the service (`HOST:PORT`) that it asked for; "" = not known. */
interface Source extends AddressAndPort {
  service: string;
}

export interface Dialled {
  /** A socket is paused until the caller resumes it. */
  stream: Duplex;
  /** The peer's verified SPIFFE id, if any. */
  identity?: string;
}

export class Dialer {
  readonly #options: DialerOptions;
  readonly #files: TlsFiles;
  readonly #pool: HbonePool;

  /** Call `drain` at the end. */
  constructor(options: DialerOptions) {
    this.#options = options;
    this.#files = new TlsFiles(options.warn);
    this.#pool = new HbonePool(options.budget, options.idleFor);
  }

  /** Open HBONE connections, and idle ones among them. */
  get shared(): { open: number; idle: number } {
    return this.#pool.size;
  }

  /** Stops sharing HBONE connections: each ends with its last stream, idle ones at once. */
  drain(): void {
    this.#pool.drain();
  }

  /**
   * Opens a connection to the target for the app at `source`. Rejects with TunnelFailure. `signal` aborts it. The stream
   * belongs to the caller; all below it ends with it.
   */
  async dial(
    { peer, transport, service = "" }: Pick<TunnelTarget, "peer" | "transport"> & { service?: string },
    source: AddressAndPort,
    signal: AbortSignal,
  ): Promise<Dialled> {
    try {
      return await this.#open(peer, transport, { ...source, service }, signal);
    } catch (error) {
      throw asFailure(error);
    }
  }

  async #open(
    peer: AddressAndPort,
    transport: Transport,
    source: Source,
    signal: AbortSignal,
  ): Promise<Dialled> {
    const to = { host: peer.address, port: peer.port };
    switch (transport.kind) {
      case "istio":
        return this.#istio(to, transport, signal);
      case "tls":
        return this.#tls(to, transport, signal);
      case "hbone":
        return this.#hbone(peer, transport, source, signal);
      case "proxy-protocol": {
        const tcp = await openTcp(to, this.#options.patience ?? CONNECT_PATIENCE, signal);
        tcp.write(proxyHeader(transport.version, seenBy(source, tcp.localAddress), peer));
        const { over } = transport;
        if (!over) return { stream: tcp };
        if (over.kind === "istio") return this.#istio({ stream: tcp }, over, signal);
        if (over.kind === "tls") return this.#tls({ stream: tcp }, over, signal);
        reset(tcp);
        throw new TunnelFailure("other", `the PROXY protocol is not spoken before ${over.kind}`);
      }
    }
  }

  async #istio(
    to: { host: string; port: number } | { stream: Duplex },
    { sni, sans }: Extract<Transport, { kind: "istio" }>,
    signal: AbortSignal,
  ): Promise<Dialled> {
    const { names, check } = meshPeer(sans);
    const { sessions } = this.#options.credentials.current();
    // Only `istio`: with istio-peer-exchange Istio's Envoy writes its own bytes into the stream.
    const stream = await this.#handshake(
      { to, sni, alpn: ["istio"], verify: true, check, sessions, ...this.#mesh("TLSv1.2") },
      signal,
    );
    return { stream, ...names };
  }

  async #tls(
    to: { host: string; port: number } | { stream: Duplex },
    transport: Extract<Transport, { kind: "tls" }>,
    signal: AbortSignal,
  ): Promise<Dialled> {
    const { sni, sans, roots, alpn } = transport;
    const check = (names: string | undefined) =>
      sans.length === 0 || matchesSans(readSans(names), sans) ? undefined : wrongSan(names);
    const context = this.#files.context(transport);
    const patience = this.#patience();
    return {
      stream: await this.#handshake(
        { to, context, sni, alpn, verify: roots !== "", check, ...patience },
        signal,
      ),
    };
  }

  async #hbone(
    peer: AddressAndPort,
    transport: Extract<Transport, { kind: "hbone" }>,
    source: Source,
    signal: AbortSignal,
  ): Promise<Dialled> {
    const { port, sans, inner } = transport;
    const to = { host: peer.address, port };
    const { names, check } = meshPeer(sans);
    const { stream, identity, local } = await this.#pool.connect(
      {
        key: `${peer.address} ${port} ${textOfSans(sans)}`,
        generation: this.#options.credentials.current(),
        open: async (given) => {
          const socket = await this.#h2(to, check, given);
          const notAfter = Date.parse(socket.getPeerCertificate().valid_to);
          return { socket, notAfter, ...names };
        },
        headers: (from) => this.#headers(transport.authority || hostPort(peer), source, from),
        patience: this.#options.patience ?? CONNECT_PATIENCE,
      },
      signal,
    );
    if (inner) return this.#inner(stream, inner, source, local, signal);
    return { stream, ...(identity !== undefined && { identity }) };
  }

  /** The second CONNECT is for a workload that a gateway chose, so its connections are not shared. */
  async #inner(
    outer: ConnectStream,
    { authority, sans }: { authority: string; sans: readonly SanMatch[] },
    source: Source,
    local: string | undefined,
    signal: AbortSignal,
  ): Promise<Dialled> {
    const { names, check } = meshPeer(sans);
    const socket = await this.#h2({ stream: outer }, check, signal);
    const connection = new Http2Connection(socket, { role: "client", budget: this.#options.budget });
    const patience = this.#options.patience ?? CONNECT_PATIENCE;
    const answered = requestConnect(connection, this.#headers(authority, source, local), patience, signal);
    // The connection ends with this stream.
    connection.drain();
    try {
      return { stream: await answered, ...names };
    } catch (error) {
      connection.destroy();
      throw error;
    }
  }

  async #h2(
    to: { host: string; port: number } | { stream: Duplex },
    check: (names: string | undefined) => TunnelFailure | undefined,
    signal: AbortSignal,
  ): Promise<TLSSocket> {
    const mesh = this.#mesh("TLSv1.3");
    return this.#handshake(
      { to, sni: "", alpn: ["h2"], requireAlpn: "h2", verify: true, check, ...mesh },
      signal,
    );
  }

  /** `local` is the address of this end of the connection to the peer. */
  #headers(authority: string, source: Source, local: string | undefined): Headers {
    const { baggage } = this.#options;
    const host = hostOfService(source.service);
    return [
      [":method", "CONNECT"],
      [":authority", authority],
      ...(baggage === undefined ? [] : [["baggage", baggage] as [string, string]]),
      ["forwarded", `for="${hostPort(seenBy(source, local))}"${host === "" ? "" : `;host=${host}`}`],
    ];
  }

  async #handshake(options: PeerTls, signal: AbortSignal): Promise<TLSSocket> {
    const socket = await openTls(options, signal);
    this.#options.handshake?.();
    return socket;
  }

  #mesh(from: "TLSv1.2" | "TLSv1.3") {
    return { context: this.#options.credentials.current().context(from), ...this.#patience() };
  }

  #patience(): { patience?: number } {
    const { patience } = this.#options;
    return patience === undefined ? {} : { patience };
  }
}

/** The app's address as a peer may know it. Apps come to the tunnel from loopback, which is no address of theirs to a peer. */
function seenBy({ address, port }: AddressAndPort, local: string | undefined): AddressAndPort {
  return { address: isLoopback(address) ? (local ?? address) : address, port };
}

function isLoopback(address: string): boolean {
  return canonicalAddress(address)?.startsWith("127.") ?? false;
}

/** `host:port`, `[host]:port` for IPv6. */
export function hostPort({ address, port }: AddressAndPort): string {
  return address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
}

/**
 * What a mesh peer's certificate must be: one workload's, and one of `sans` if there are any. With none, any workload of
 * the mesh is right, as in Envoy. The id is in `names` once the check has passed.
 */
function meshPeer(sans: readonly SanMatch[]) {
  const names: { identity?: string } = {};
  const check = (text: string | undefined): TunnelFailure | undefined => {
    const found = readSans(text);
    const id = spiffeOf(found);
    if (id === undefined || (sans.length > 0 && !matchesSans({ uris: [id], dns: [], addresses: [] }, sans)))
      return wrongSan(text);
    names.identity = id;
    return undefined;
  };
  return { names, check };
}

function wrongSan(names: string | undefined): TunnelFailure {
  return new TunnelFailure(
    "wrong-san",
    `the peer is ${names ?? "without a name"}, which is not expected there`,
  );
}

/** Cached by list, because many targets share one. */
const texts = new WeakMap<readonly SanMatch[], string>();

function textOfSans(sans: readonly SanMatch[]): string {
  const known = texts.get(sans);
  if (known !== undefined) return known;
  const text = JSON.stringify(sans);
  texts.set(sans, text);
  return text;
}
