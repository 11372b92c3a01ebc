import type { DetailedPeerCertificate, PeerCertificate } from "node:tls";
import { TunnelFailure } from "../failure.ts";

/** Certificates of a chain that are looked at. */
const LONGEST = 8;

/**
 * What is wrong when a certificate of the peer's chain has expired. A handshake checks that by itself; one that resumes a
 * session does not.
 */
export function expiryOf(certificate: PeerCertificate): TunnelFailure | undefined {
  const now = Date.now();
  let each: PeerCertificate | undefined = certificate;
  for (let i = 0; each && i < LONGEST; i++) {
    if (Date.parse(each.valid_to) < now)
      return new TunnelFailure("expired", `the peer's certificate was valid until ${each.valid_to}`);
    const issuer: PeerCertificate | undefined = (each as DetailedPeerCertificate).issuerCertificate;
    each = issuer === each ? undefined : issuer;
  }
  return undefined;
}
