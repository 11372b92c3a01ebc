import type { Duplex } from "node:stream";
import {
  type ConnectionOptions,
  connect,
  type PeerCertificate,
  type SecureContext,
  type TLSSocket,
} from "node:tls";
import { forgetHandshake, readPeerNamesOnly } from "../../runtime/tls-socket.ts";
import { reasonOfFailure, TunnelFailure } from "../failure.ts";
import { ignoreError, reset } from "../splice.ts";
import { CONNECT_PATIENCE } from "../tcp.ts";
import { timeLimit } from "../time-limit.ts";
import { expiryOf } from "./expiry.ts";
import type { Sessions } from "./sessions.ts";

export interface PeerTls {
  /** TCP, or TLS inside of another stream (double HBONE, PROXY protocol), which is then owned by the result. */
  to: { host: string; port: number } | { stream: Duplex };
  context: SecureContext;
  /** Empty: no SNI is sent. */
  sni: string;
  alpn: readonly string[];
  /** The protocol that the peer must choose. */
  requireAlpn?: string;
  /** The peer's chain is checked against the context's roots. Only `tls` without roots leaves it out. */
  verify: boolean;
  /** Judges the certificate's names; the chain is good. Gives what is wrong. */
  check(names: string | undefined): TunnelFailure | undefined;
  /** Sessions with verified peers that belong to the context; absent: each handshake is a whole one. */
  sessions?: Sessions;
  patience?: number;
}

/**
 * Opens TLS to a peer. Resolves with the connected socket, its peer verified and nothing read or written yet. Rejects with
 * TunnelFailure or the error of node:tls. `signal` aborts it.
 */
export function openTls(options: PeerTls, signal: AbortSignal): Promise<TLSSocket> {
  const { to, context, sni, alpn, verify, sessions } = options;
  const peer = "stream" in to ? undefined : `${to.host} ${to.port} ${sni}`;
  const session = peer === undefined ? undefined : sessions?.take(peer);
  return new Promise((resolve, reject) => {
    // @types/node lacks allowHalfOpen, which tls.connect takes.
    const settings: ConnectionOptions & { allowHalfOpen: boolean } = {
      ...("stream" in to ? { socket: to.stream } : { ...to, noDelay: true }),
      allowHalfOpen: true,
      secureContext: context,
      ALPNProtocols: [...alpn],
      rejectUnauthorized: verify,
      checkServerIdentity: judge(options.check),
      ...(session && { session }),
      ...(sni === "" ? {} : { servername: sni }),
    };
    let connected = false;
    const socket = connect(settings);
    readPeerNamesOnly(socket);
    socket.on("error", ignoreError);
    const patience = options.patience ?? CONNECT_PATIENCE;
    const noLimit = timeLimit(patience, () => {
      const reason = connected || "stream" in to ? "handshake-timeout" : "connect-timeout";
      fail(new TunnelFailure(reason, `the peer did not answer within ${patience} ms`));
    });
    const finish = () => {
      noLimit();
      signal.removeEventListener("abort", aborted);
      socket.off("error", fail);
      socket.off("close", closed);
    };
    const fail = (error: Error) => {
      finish();
      reset(socket);
      if ("stream" in to) reset(to.stream);
      reject(error);
    };
    const closed = () => fail(new TunnelFailure("reset", "the peer closed the connection in its handshake"));
    const aborted = () => fail(new TunnelFailure("reset", "the app has gone"));
    socket.once("connect", () => {
      connected = true;
    });
    socket.once("secureConnect", () => {
      if (!verify) {
        const wrong = options.check(socket.getPeerCertificate().subjectaltname);
        if (wrong) {
          fail(wrong);
          return;
        }
      }
      if (options.requireAlpn !== undefined && socket.alpnProtocol !== options.requireAlpn) {
        fail(
          new TunnelFailure(
            "no-alpn",
            `the peer chose ${socket.alpnProtocol || "no protocol"}, not ${options.requireAlpn}`,
          ),
        );
        return;
      }
      finish();
      forgetHandshake(socket);
      if (sessions && peer !== undefined) keepSessions(socket, sessions, peer);
      socket.pause();
      resolve(socket);
    });
    socket.on("error", fail);
    socket.on("close", closed);
    signal.addEventListener("abort", aborted);
    if (signal.aborted) aborted();
  });
}

/*
 * What the socket keeps for good gets functions of its own. A closure of openTls would keep all that the handshake needed.
 */

function judge(check: PeerTls["check"]) {
  // A session outlives the certificate that was verified when it began.
  return (_host: string, certificate: PeerCertificate) =>
    expiryOf(certificate) ?? check(certificate.subjectaltname);
}

function keepSessions(socket: TLSSocket, sessions: Sessions, peer: string): void {
  socket.on("session", (ticket: Buffer) => sessions.put(peer, ticket));
}

/** A reset before the handshake's end is a refusal by the peer; anything else is as it was. */
export function asFailure(error: unknown): TunnelFailure {
  if (error instanceof TunnelFailure) return error;
  const text = error instanceof Error ? error.message : String(error);
  return new TunnelFailure(reasonOfFailure(error), text);
}
