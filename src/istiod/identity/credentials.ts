import { X509Certificate } from "node:crypto";
import { isIP } from "node:net";
import { type ChannelCredentials, type ChannelOptions, credentials, Metadata } from "@grpc/grpc-js";
import { readRegularFile } from "../../files/read-file.ts";
import { FileError } from "../file-error.ts";
import { explainRegistration, type Registrant } from "../registration.ts";
import { describeTarget, serverName, type Target } from "../target.ts";
import { type Certificate, pemBlocks } from "./certificate.ts";
import { readToken, subjectOfToken, time } from "./token.ts";

/** How kmesh and istiod authenticate each other. */
export type Security =
  /** No authentication: istiod's port 15010. */
  | { kind: "plaintext" }
  /**
   * TLS. istiod's certificate must be signed by a root in `ca` (a PEM file). kmesh presents its own certificate while
   * it is valid, else the bearer token in the file `token`.
   */
  | { kind: "tls"; ca: string; token?: string; identity?: CertificateSource };

/** The source of the workload's certificate, which is renewed from time to time. */
export interface CertificateSource {
  /** The certificate to present now; undefined while there is no valid one. */
  current(): Certificate | undefined;
  /** Roots that are trusted in addition to those of the file `ca`, PEM; "" when there are none. */
  roots(): string;
  /** Call it when istiod may have rejected the certificate. */
  doubt(): void;
  /** Why no certificate could be obtained, one sentence with the next step; undefined while nothing is wrong. */
  trouble(): string | undefined;
}

/** The gRPC credentials, channel options and metadata of one connection. */
export interface Credentials {
  channel: ChannelCredentials;
  options: ChannelOptions;
  metadata: Metadata;
  /** How kmesh authenticates itself. */
  proof: Proof;
}

/** How kmesh authenticates itself on a connection. */
export type Proof = "certificate" | "token" | "nothing";

/**
 * Reads the files again for each connection, so that the next stream uses a rotated token or root. `clusterId` names
 * the cluster against whose API server istiod checks the token. `proof` "token" uses the token even while there is a
 * valid certificate. Throws FileError.
 */
export function openCredentials(
  security: Security,
  target: Target,
  clusterId?: string,
  proof?: "token",
): Credentials {
  const metadata = new Metadata();
  if (clusterId) metadata.set("clusterid", clusterId);
  if (security.kind === "plaintext") {
    return { channel: credentials.createInsecure(), options: {}, metadata, proof: "nothing" };
  }
  const { identity, token } = security;
  const roots = readRoots(security.ca, identity?.roots() ?? "");
  const name = serverName(target);
  // An IP address needs no override: TLS sends no server name for it and checks the address in istiod's certificate.
  const options: ChannelOptions = isIP(name)
    ? {}
    : { "grpc.ssl_target_name_override": name, "grpc.default_authority": name };
  const own = proof === "token" ? undefined : identity?.current();
  if (own) {
    const channel = credentials.createSsl(roots, Buffer.from(own.key), Buffer.from(own.chain));
    return { channel, options, metadata, proof: "certificate" };
  }
  if (token !== undefined) metadata.set("authorization", `Bearer ${readToken(token)}`);
  const channel = credentials.createSsl(roots);
  return { channel, options, metadata, proof: token === undefined ? "nothing" : "token" };
}

/** Status codes of gRPC (https://grpc.github.io/grpc/core/md_doc_statuscodes.html). */
const INVALID_ARGUMENT = 3;
const PERMISSION_DENIED = 7;
const FAILED_PRECONDITION = 9;
const UNAVAILABLE = 14;
const DEADLINE_EXCEEDED = 4;
export const UNAUTHENTICATED = 16;

/**
 * Whether istiod did not answer at all: it is down, unreachable or not ready. It has then judged no credential of
 * ours.
 */
export function isAway(status: { code: number; details: string }): boolean {
  if (status.code === DEADLINE_EXCEEDED) return true;
  return (
    status.code === UNAVAILABLE &&
    /ECONNREFUSED|ETIMEDOUT|EHOSTUNREACH|ENETUNREACH|ENOTFOUND|EAI_|name resolution|no answer|not ready/i.test(
      status.details,
    )
  );
}

/** Whether kmesh aborted the handshake because it does not trust istiod's certificate. */
export function isDistrusted(status: { code: number; details: string }): boolean {
  return (
    status.code === UNAVAILABLE &&
    !ALERT.test(status.details) &&
    /certificate|self.signed|issuer|CERT_|altnames|hostname|does not match/i.test(status.details)
  );
}

/** A TLS alert: istiod aborted the handshake. */
const ALERT = /alert/i;

/**
 * One line for a stream that ended: the reason that istiod or the network gave, and the next step where there is one.
 */
export function explainRefusal(
  status: { code: number; details: string },
  target: Target,
  security: Security,
  proof?: Proof,
  node?: Registrant,
): string {
  const at = describeTarget(target);
  const said = withoutTime(status.details) || `code ${status.code}`;
  const token = security.kind === "tls" ? security.token : undefined;
  const registration = node && explainRegistration(said, node);
  if (registration !== undefined)
    return `istiod at ${at} does not register this machine: ${registration} (${said})`;
  switch (status.code) {
    case UNAUTHENTICATED:
      if (security.kind === "plaintext") {
        return `istiod at ${at} requires authentication: use its TLS port (15012) with --ca and --token (${said})`;
      }
      if (proof === "certificate") {
        return `istiod at ${at} refuses our certificate: it is renewed now (${said})`;
      }
      return token === undefined
        ? `istiod at ${at} requires authentication: pass a token with --token (${said})`
        : `istiod at ${at} refuses the token in ${token}: write a fresh one for audience istio-ca there (${said})`;
    case PERMISSION_DENIED:
      return `istiod at ${at} refuses us${explainMismatch(security, proof, node)}: --namespace and --service-account must be those of the ${proof === "certificate" ? proof : "token"} (${said})`;
    case INVALID_ARGUMENT:
      return `istiod at ${at} rejects this machine's node id or metadata (${said})`;
    case FAILED_PRECONDITION:
      return `istiod at ${at} refuses us: ${said}`;
    case UNAVAILABLE:
      if (proof === "certificate" && ALERT.test(said))
        return `istiod at ${at} refuses our certificate: it is renewed now (${said})`;
      return explainUnavailable(said, at, target, security);
    case DEADLINE_EXCEEDED:
      return `no connection to istiod at ${at}: no answer in time (${said})`;
    default:
      return `the stream to istiod at ${at} ended: ${said} (code ${status.code})`;
  }
}

/** The identity that kmesh claims, and the one in its certificate or token, as far as they are known. */
function explainMismatch(security: Security, proof: Proof | undefined, node: Registrant | undefined): string {
  if (!node || security.kind !== "tls") return "";
  const claimed = ` as ${node.namespace}/${node.serviceAccount ?? "(no service account)"}`;
  const certified = security.identity?.current()?.id;
  if (proof === "certificate" && certified)
    return `${claimed}, while the certificate is ${certified.namespace}/${certified.serviceAccount}'s`;
  const subject =
    proof === "token" && security.token !== undefined ? subjectOfToken(security.token) : undefined;
  return subject === undefined ? claimed : `${claimed}, while the token is ${subject}'s`;
}

/** gRPC wraps the reason and adds a time. Without both, the same reason gives the same text. */
function withoutTime(details: string): string {
  return /Last error: (?:Error: )?(.*?)(?: \([^()]*Z\))?\. Resolution note: /.exec(details)?.[1] ?? details;
}

function explainUnavailable(said: string, at: string, target: Target, security: Security): string {
  if (security.kind === "tls" && /altnames|hostname|does not match/i.test(said)) {
    return `the certificate of istiod at ${at} is not for ${serverName(target)}: reach it by a name in it (${said})`;
  }
  if (
    security.kind === "tls" &&
    /CERT_HAS_EXPIRED|CERT_NOT_YET_VALID|has expired|not yet valid/i.test(said)
  ) {
    return `the certificate of istiod at ${at} is not valid at this machine's time, ${time(Date.now())}: if that is wrong, set the clock (timedatectl); if it is right, renew istiod's certificate (${said})`;
  }
  if (security.kind === "tls" && /certificate|self.signed|issuer|CERT_/i.test(said)) {
    return `the certificate of istiod at ${at} is not signed by ${security.ca}: pass the mesh's root there (root-cert.pem of config map istio-ca-root-cert) (${said})`;
  }
  if (security.kind === "tls" && /wrong.version|WRONG_VERSION|packet length/i.test(said)) {
    return `istiod at ${at} speaks no TLS there: use its TLS port (15012), or --plaintext (${said})`;
  }
  if (/ECONNREFUSED/.test(said))
    return `nothing listens at ${at}, or no route leads there: is istiod running, and reached from here? (${said})`;
  if (/ENOTFOUND|EAI_|Name resolution/i.test(said)) {
    return `${target.host} is not known: give its address with --hosts ${target.host}=ADDRESS, or add it to /etc/hosts (${said})`;
  }
  return `no connection to istiod at ${at}: ${said}`;
}

/**
 * The certificates of the PEM file `file`, followed by `more` (PEM). The file may be missing when `more` is not
 * empty. Throws FileError.
 */
export function readRoots(file: string, more: string): Buffer {
  const next = "pass the mesh's root certificate with --ca";
  let pem: string;
  try {
    pem = readRegularFile(file).toString("latin1");
  } catch (error) {
    if (more !== "") return Buffer.from(more);
    throw FileError.unreadable(file, "root certificate", next, error);
  }
  const blocks = pemBlocks(pem);
  if (blocks.length === 0) throw new FileError(`${file} holds no PEM certificate: ${next}`);
  for (const block of blocks) {
    try {
      new X509Certificate(block);
    } catch {
      throw new FileError(
        `${file} holds a certificate that can't be read: write the mesh's root there again`,
      );
    }
  }
  return Buffer.from([...blocks, more].join("\n"));
}
