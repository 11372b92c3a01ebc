import { X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { isIP } from "node:net";
import { type ChannelCredentials, type ChannelOptions, credentials, Metadata } from "@grpc/grpc-js";
import { formatTarget, serverName, type Target } from "./target.ts";

/** How kmesh and istiod know each other. */
export type Security =
  /** Neither proves anything: istiod's port 15010. */
  | { kind: "plaintext" }
  /** istiod proves itself with a certificate from `ca` (a PEM file), kmesh with the bearer token in the file `token`. */
  | { kind: "tls"; ca: string; token?: string };

/** What one connection needs. */
export interface Credentials {
  channel: ChannelCredentials;
  options: ChannelOptions;
  metadata: Metadata;
}

/** A file of ours can't be used; the message names it and the next step. */
export class CredentialsError extends Error {
  constructor(message: string) {
    super(message);
    this.name = "CredentialsError";
  }
}

/**
 * Reads the files anew, so that a rotated token or root serves the next stream. Throws CredentialsError.
 * `clusterId` tells istiod which cluster's tokens to check ours against.
 */
export function openCredentials(security: Security, target: Target, clusterId?: string): Credentials {
  const metadata = new Metadata();
  if (clusterId) metadata.set("clusterid", clusterId);
  if (security.kind === "plaintext") {
    return { channel: credentials.createInsecure(), options: {}, metadata };
  }
  const roots = readRoots(security.ca);
  if (security.token !== undefined) metadata.set("authorization", `Bearer ${readToken(security.token)}`);
  const name = serverName(target);
  return {
    channel: credentials.createSsl(roots),
    // Nothing to override for an address: it goes unnamed in the handshake, and its own entry in the certificate is checked.
    options: isIP(name) ? {} : { "grpc.ssl_target_name_override": name, "grpc.default_authority": name },
    metadata,
  };
}

/** gRPC's code numbers that say what is wrong with us, not with the connection. */
const INVALID_ARGUMENT = 3;
const PERMISSION_DENIED = 7;
const FAILED_PRECONDITION = 9;
const UNAVAILABLE = 14;
const UNAUTHENTICATED = 16;

/** One line for a stream that ended: what istiod or the network said, and the next step where there is one. */
export function explainRefusal(
  status: { code: number; details: string },
  target: Target,
  security: Security,
): string {
  const at = formatTarget(target);
  const said = status.details || `code ${status.code}`;
  const token = security.kind === "tls" ? security.token : undefined;
  switch (status.code) {
    case UNAUTHENTICATED:
      if (security.kind === "plaintext") {
        return `istiod at ${at} wants to know who we are: use its TLS port (15012) with --ca and --token (${said})`;
      }
      return token === undefined
        ? `istiod at ${at} wants to know who we are: pass a token with --token (${said})`
        : `istiod at ${at} refuses the token in ${token}: write a fresh one for audience istio-ca there (${said})`;
    case PERMISSION_DENIED:
      return `istiod at ${at} refuses us: --namespace and --service-account must be those of the token (${said})`;
    case INVALID_ARGUMENT:
      return `istiod at ${at} does not understand who we say that we are (${said})`;
    case FAILED_PRECONDITION:
      return `istiod at ${at} refuses us: ${said}`;
    case UNAVAILABLE:
      return explainUnavailable(said, at, target, security);
    default:
      return `the stream to istiod at ${at} ended: ${said} (code ${status.code})`;
  }
}

function explainUnavailable(said: string, at: string, target: Target, security: Security): string {
  if (security.kind === "tls" && /altnames|hostname|does not match/i.test(said)) {
    return `the certificate of istiod at ${at} is not for ${serverName(target)}: reach it by a name in it (${said})`;
  }
  if (security.kind === "tls" && /certificate|self.signed|issuer|CERT_/i.test(said)) {
    return `the certificate of istiod at ${at} is not signed by ${security.ca}: pass the mesh's root there (root-cert.pem of config map istio-ca-root-cert) (${said})`;
  }
  if (security.kind === "tls" && /wrong.version|WRONG_VERSION|packet length/i.test(said)) {
    return `istiod at ${at} speaks no TLS there: use its TLS port (15012), or --plaintext (${said})`;
  }
  if (/ECONNREFUSED/.test(said)) return `nothing listens at ${at}: is istiod running there? (${said})`;
  if (/ENOTFOUND|EAI_|Name resolution/i.test(said)) {
    return `${target.host} is not known: add it to /etc/hosts, or give an address with --istiod (${said})`;
  }
  return `no connection to istiod at ${at}: ${said}`;
}

function readRoots(file: string): Buffer {
  const pem = read(file, "root certificate", "pass the mesh's root certificate with --ca");
  const blocks =
    pem.toString("latin1").match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? [];
  if (blocks.length === 0) {
    throw new CredentialsError(
      `${file} holds no PEM certificate: pass the mesh's root certificate with --ca`,
    );
  }
  for (const block of blocks) {
    try {
      new X509Certificate(block);
    } catch {
      throw new CredentialsError(
        `${file} holds a certificate that can't be read: write the mesh's root there anew`,
      );
    }
  }
  return pem;
}

function readToken(file: string): string {
  const token = read(file, "token", "pass the file of a service account token with --token")
    .toString("utf8")
    .trim();
  if (!/^[\x21-\x7e]+$/.test(token)) {
    throw new CredentialsError(
      `${file} holds no token: write a service account token for audience istio-ca there`,
    );
  }
  return token;
}

function read(file: string, what: string, next: string): Buffer {
  try {
    return readFileSync(file);
  } catch (error) {
    const code = error instanceof Error && "code" in error ? String(error.code) : String(error);
    throw new CredentialsError(`can't read the ${what} ${file} (${code}): ${next}`);
  }
}
