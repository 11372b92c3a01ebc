/** Opens the way to a target, as its transport says. */
import type { Duplex } from "node:stream";
import type { SanMatch, Transport } from "../../mesh/transport.ts";
import { TunnelFailure } from "../failure.ts";
import type { Budget } from "../http2/budget.ts";
import { Http2Connection } from "../http2/connection.ts";
import { ERROR } from "../http2/frames.ts";
import type { Headers } from "../http2/hpack.ts";
import type { ConnectStream } from "../http2/stream.ts";
import { reset } from "../splice.ts";
import { CONNECT_PATIENCE, openTcp } from "../tcp.ts";
import type { MeshCredentials } from "../tls/mesh-credentials.ts";
import { asFailure, openTls } from "../tls/open.ts";
import { matchesSans, readSans, spiffeOf } from "../tls/san.ts";
import { TlsFiles } from "../tls/tls-files.ts";
import { type AddressAndPort, proxyHeader } from "./proxy-protocol.ts";
import type { TunnelTarget } from "./target.ts";

export interface DialerOptions {
  credentials: MeshCredentials;
  budget: Budget;
  /** The `baggage` header of HBONE: who we are, for the peer's telemetry. */
  baggage?: string;
  /** Milliseconds for one TCP and TLS connection; for tests. */
  patience?: number;
}

export interface Dialled {
  /** Paused where it is a socket: it reads once somebody resumes it. */
  stream: Duplex;
  /** The peer's verified SPIFFE id, where it has one. */
  identity?: string;
}

export class Dialer {
  readonly #options: DialerOptions;
  readonly #files = new TlsFiles();

  constructor(options: DialerOptions) {
    this.#options = options;
  }

  /**
   * Opens a connection to the target for the app at `source`. Rejects with TunnelFailure. `signal` aborts it. The stream
   * belongs to the caller; all below it ends with it.
   */
  async dial(
    { peer, transport }: Pick<TunnelTarget, "peer" | "transport">,
    source: AddressAndPort,
    signal: AbortSignal,
  ): Promise<Dialled> {
    try {
      return await this.#open(peer, transport, source, signal);
    } catch (error) {
      throw asFailure(error);
    }
  }

  async #open(
    peer: AddressAndPort,
    transport: Transport,
    source: AddressAndPort,
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
        const header = proxyHeader(transport.version, source, peer);
        const tcp = await openTcp(to, this.#options.patience ?? CONNECT_PATIENCE, signal);
        tcp.write(header);
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
    // `istio` alone: with istio-peer-exchange Istio's Envoy writes bytes of its own into the stream.
    const stream = await openTls(
      { to, sni, alpn: ["istio"], verify: true, check, ...this.#mesh("TLSv1.2") },
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
      stream: await openTls({ to, context, sni, alpn, verify: roots !== "", check, ...patience }, signal),
    };
  }

  /** One connection for each app's connection: always right, at the price of a handshake. */
  async #hbone(
    peer: AddressAndPort,
    transport: Extract<Transport, { kind: "hbone" }>,
    source: AddressAndPort,
    signal: AbortSignal,
  ): Promise<Dialled> {
    const outer = await this.#connect(
      { host: peer.address, port: transport.port },
      transport.authority || hostPort(peer),
      transport.sans,
      source,
      signal,
    );
    const { inner } = transport;
    if (!inner) return outer;
    return this.#connect({ stream: outer.stream }, inner.authority, inner.sans, source, signal);
  }

  async #connect(
    to: { host: string; port: number } | { stream: Duplex },
    authority: string,
    sans: readonly SanMatch[],
    source: AddressAndPort,
    signal: AbortSignal,
  ): Promise<Dialled> {
    const { names, check } = meshPeer(sans);
    const socket = await openTls(
      { to, sni: "", alpn: ["h2"], requireAlpn: "h2", verify: true, check, ...this.#mesh("TLSv1.3") },
      signal,
    );
    const connection = new Http2Connection(socket, { role: "client", budget: this.#options.budget });
    const { baggage } = this.#options;
    const headers: Headers = [
      [":method", "CONNECT"],
      [":authority", authority],
      ...(baggage === undefined ? [] : [["baggage", baggage] as [string, string]]),
      ["forwarded", `for="${hostPort(source)}"`],
    ];
    const stream = connection.connect(headers);
    stream.on("error", () => {});
    // No further stream: the connection ends with this one.
    connection.drain();
    try {
      requireSuccess(await answerOf(stream, this.#options.patience ?? CONNECT_PATIENCE, signal));
    } catch (error) {
      connection.destroy();
      throw error;
    }
    return { stream, ...names };
  }

  #mesh(from: "TLSv1.2" | "TLSv1.3") {
    return { context: this.#options.credentials.current().context(from), ...this.#patience() };
  }

  #patience(): { patience?: number } {
    const { patience } = this.#options;
    return patience === undefined ? {} : { patience };
  }
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

function requireSuccess(headers: Headers): void {
  const status = headers.find(([name]) => name === ":status")?.[1] ?? "";
  if (/^2\d\d$/.test(status)) return;
  const reason =
    status === "401" || status === "403"
      ? "denied-by-peer"
      : status === "503"
        ? "peer-unavailable"
        : "bad-response";
  throw new TunnelFailure(reason, `the peer answers CONNECT with ${status || "no status"}`);
}

function answerOf(stream: ConnectStream, patience: number, signal: AbortSignal): Promise<Headers> {
  return new Promise((resolve, reject) => {
    const finish = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", aborted);
    };
    const fail = (failure: Error) => {
      finish();
      stream.reset(ERROR.cancel);
      reject(failure);
    };
    const aborted = () => fail(new TunnelFailure("reset", "the app has gone"));
    const timer = setTimeout(
      () => fail(new TunnelFailure("handshake-timeout", "the peer does not answer CONNECT")),
      patience,
    );
    signal.addEventListener("abort", aborted);
    stream.response.then((headers) => {
      finish();
      resolve(headers);
    }, fail);
    if (signal.aborted) aborted();
  });
}
