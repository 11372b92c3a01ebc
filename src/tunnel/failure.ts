/** Reasons of failed connections, as in the counters of `kmesh status`. */

export type FailureReason =
  /** The accepted socket's address is not the address of a target in the table. */
  | "unknown-target"
  /** This machine has no certificate, or it has expired. */
  | "no-certificate"
  | "own-certificate-expired"
  /** TCP to the peer or to the app. */
  | "connect-refused"
  | "connect-timeout"
  | "unreachable"
  /** The peer's certificate. */
  | "unknown-ca"
  | "wrong-san"
  | "expired"
  | "not-yet-valid"
  | "no-peer-certificate"
  /** The peer chose no protocol, or another one than ours. */
  | "no-alpn"
  | "handshake-timeout"
  | "not-tls"
  | "tls-error"
  /** The peer refuses our certificate, or the connection, by an alert. */
  | "refused-by-peer"
  /** HBONE: the peer's status was 401 or 403; 503; another one; our request was bad. */
  | "denied-by-peer"
  | "peer-unavailable"
  | "bad-response"
  | "bad-request"
  | "protocol-error"
  /** Inbound: refused by policy; an address or port that is not ours; plaintext where mutual TLS is demanded. */
  | "denied"
  | "not-ours"
  | "plaintext"
  /** Too many handshakes or connections at once. */
  | "overload"
  /** A file that a DestinationRule names can't be read. */
  | "bad-file"
  | "reset"
  | "other";

/** A failure with its reason. The message contains no keys or payload. */
export class TunnelFailure extends Error {
  readonly reason: FailureReason;
  constructor(reason: FailureReason, message: string) {
    super(message);
    this.name = "TunnelFailure";
    this.reason = reason;
  }
}

const BY_CODE: Readonly<Record<string, FailureReason>> = {
  ECONNREFUSED: "connect-refused",
  ETIMEDOUT: "connect-timeout",
  EHOSTUNREACH: "unreachable",
  ENETUNREACH: "unreachable",
  EADDRNOTAVAIL: "unreachable",
  ECONNRESET: "reset",
  EPIPE: "reset",
  ECONNABORTED: "reset",
  CERT_HAS_EXPIRED: "expired",
  CERT_NOT_YET_VALID: "not-yet-valid",
  SELF_SIGNED_CERT_IN_CHAIN: "unknown-ca",
  DEPTH_ZERO_SELF_SIGNED_CERT: "unknown-ca",
  UNABLE_TO_GET_ISSUER_CERT: "unknown-ca",
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: "unknown-ca",
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: "unknown-ca",
  CERT_SIGNATURE_FAILURE: "unknown-ca",
  CERT_UNTRUSTED: "unknown-ca",
  INVALID_CA: "unknown-ca",
  INVALID_PURPOSE: "unknown-ca",
};

/** The reason in an error of node:net, node:tls (OpenSSL's and BoringSSL's codes), or our own. */
export function reasonOfFailure(error: unknown): FailureReason {
  if (error instanceof TunnelFailure) return error.reason;
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  const known = BY_CODE[code];
  if (known) return known;
  if (/PEER_DID_NOT_RETURN_A_CERTIFICATE/.test(code)) return "no-peer-certificate";
  if (/ALERT_NO_APPLICATION_PROTOCOL|NO_APPLICATION_PROTOCOL/.test(code)) return "no-alpn";
  if (/ALERT/.test(code)) return "refused-by-peer";
  if (/WRONG_VERSION_NUMBER|HTTP_REQUEST|PACKET_LENGTH|UNKNOWN_PROTOCOL/.test(code)) return "not-tls";
  if (/^ERR_SSL|^ERR_TLS/.test(code)) return "tls-error";
  return "other";
}

/** Faults of the endpoint: another endpoint may not have them, and they count for ejection like failed connects. */
const ENDPOINTS_FAULT: ReadonlySet<FailureReason> = new Set<FailureReason>([
  "connect-refused",
  "connect-timeout",
  "unreachable",
  "reset",
  "unknown-ca",
  "wrong-san",
  "expired",
  "not-yet-valid",
  "no-peer-certificate",
  "no-alpn",
  "handshake-timeout",
  "not-tls",
  "tls-error",
  "refused-by-peer",
  "peer-unavailable",
  "protocol-error",
]);

/** Whether the endpoint caused the failure, not this machine, the peer's policies or the app. */
export function isEndpointsFault(reason: FailureReason): boolean {
  return ENDPOINTS_FAULT.has(reason);
}

/** Whether the error is a TLS alert: in TLS 1.3 a server refuses a client's certificate after the client's handshake. */
export function isAlert(error: unknown): boolean {
  return error instanceof Error && "code" in error && /ALERT/.test(String(error.code));
}
