import type { Socket } from "node:net";
import { type SecureContext, TLSSocket } from "node:tls";
import { parseSpiffe } from "../../istiod/spiffe.ts";
import type { Identity } from "../../mesh/inbound.ts";
import { TunnelFailure } from "../failure.ts";
import { reset } from "../splice.ts";
import { timeLimit } from "../time-limit.ts";
import { expiryOf } from "./expiry.ts";
import { readSans, spiffeOf } from "./san.ts";

export interface AcceptedPeer {
  socket: TLSSocket;
  /** The verified identity, and its text. */
  identity: Identity;
  id: string;
}

/** Milliseconds for a handshake, from the accept on. */
export const HANDSHAKE_PATIENCE = 10_000;

/**
 * Terminates TLS on an accepted socket. The client must show a certificate of the mesh's CA with one SPIFFE id, of one of
 * the `trustDomains`. Rejects with TunnelFailure or node:tls's error; the socket is reset then.
 */
export function acceptTls(
  raw: Socket,
  options: {
    context: SecureContext;
    /** Protocols to choose from; a client that offers others alone is refused. Empty: none is chosen, and none refused. */
    alpn: readonly string[];
    requireAlpn?: string;
    trustDomains: readonly string[];
    patience?: number;
  },
): Promise<AcceptedPeer> {
  return new Promise((resolve, reject) => {
    const socket = new TLSSocket(raw, {
      isServer: true,
      secureContext: options.context,
      requestCert: true,
      rejectUnauthorized: true,
      ...(options.alpn.length > 0 && { ALPNProtocols: [...options.alpn] }),
    });
    const finish = () => {
      noLimit();
      for (const event of ["error", "close"] as const) socket.off(event, fail);
    };
    const fail = (error?: unknown) => {
      finish();
      socket.on("error", () => {});
      reset(raw);
      socket.destroy();
      reject(
        error instanceof Error
          ? error
          : new TunnelFailure("reset", "the peer closed the connection in its handshake"),
      );
    };
    const noLimit = timeLimit(options.patience ?? HANDSHAKE_PATIENCE, () =>
      fail(new TunnelFailure("handshake-timeout", "the peer did not end its handshake")),
    );
    socket.on("error", fail);
    socket.on("close", fail);
    socket.once("secure", () => {
      try {
        const { id, identity } = verifiedPeer(socket, options.trustDomains);
        const { requireAlpn } = options;
        if (requireAlpn !== undefined && socket.alpnProtocol !== requireAlpn)
          throw new TunnelFailure("no-alpn", `the peer offers no ${requireAlpn}`);
        finish();
        socket.pause();
        resolve({ socket, id, identity });
      } catch (error) {
        fail(error);
      }
    });
  });
}

function verifiedPeer(
  socket: TLSSocket,
  trustDomains: readonly string[],
): { id: string; identity: Identity } {
  if (!socket.authorized) {
    const error = socket.authorizationError;
    throw error instanceof Error ? error : Object.assign(new Error(String(error)), { code: String(error) });
  }
  const certificate = socket.getPeerCertificate(true);
  const expired = expiryOf(certificate);
  if (expired) throw expired;
  const names = certificate.subjectaltname;
  const id = spiffeOf(readSans(names));
  const identity = id === undefined ? undefined : parseSpiffe(id);
  if (id === undefined || !identity)
    throw new TunnelFailure("wrong-san", `the peer's certificate names no workload (${names ?? "no SAN"})`);
  if (!trustDomains.includes(identity.trustDomain))
    throw new TunnelFailure("wrong-san", `${id} is of another trust domain`);
  return { id, identity };
}
