/** A service account's token (a JWT), as far as it can be judged without the API server. */
import { statSync } from "node:fs";
import { readTextFile } from "../../files/read-file.ts";
import { FileError } from "../file-error.ts";
import type { SpiffeId } from "../spiffe.ts";

/** The audience for which istiod has the API server review the token. */
const AUDIENCE = "istio-ca";

/** Reads the token in `file`. Throws FileError when the file can't be read or holds no token. */
export function readToken(file: string): string {
  let text: string;
  try {
    text = readTextFile(file).trim();
  } catch (error) {
    throw FileError.unreadable(file, "token", "pass the file of a service account token with --token", error);
  }
  if (!/^[\x21-\x7e]+$/.test(text)) {
    throw new FileError(
      `${file} holds no token: write a service account token for audience ${AUDIENCE} there`,
    );
  }
  return text;
}

/** Whether users other than the owner may access the file; false when it does not exist. */
export function isExposed(file: string): boolean {
  try {
    return (statSync(file).mode & 0o077) !== 0;
  } catch {
    return false;
  }
}

/**
 * Why istiod may reject the token, judged by its claims; undefined when they show no fault. The signature is not
 * checked. `now` in milliseconds since the epoch.
 */
export function faultOfToken(token: string, id: SpiffeId, now: number): string | undefined {
  const claims = claimsOf(token);
  if (!claims) return "it is not a service account token";
  const { exp, sub, aud } = claims;
  if (typeof exp === "number" && exp * 1000 <= now) return `it expired at ${time(exp * 1000)}`;
  const audiences = (Array.isArray(aud) ? aud : [aud]).filter((each) => typeof each === "string");
  if (!audiences.includes(AUDIENCE))
    return `it is for audience ${audiences.join(", ") || "(none)"}, not ${AUDIENCE}`;
  const wanted = `system:serviceaccount:${id.namespace}:${id.serviceAccount}`;
  if (sub !== wanted) return `it is ${String(sub)}'s, not ${wanted}'s`;
  return undefined;
}

/**
 * Whether the token's `exp` claim has passed. `now` in milliseconds since the epoch. False when there is no such
 * claim.
 */
export function isExpired(token: string, now: number): boolean {
  const exp = claimsOf(token)?.exp;
  return typeof exp === "number" && exp * 1000 <= now;
}

/**
 * The service account in the token's `sub` claim, as NAMESPACE/NAME; undefined when the file can't be read or the
 * token is no service account's.
 */
export function subjectOfToken(file: string): string | undefined {
  try {
    const { sub } = claimsOf(readToken(file)) ?? {};
    const [, namespace, name] = /^system:serviceaccount:([^:]+):([^:]+)$/.exec(String(sub)) ?? [];
    return namespace === undefined ? undefined : `${namespace}/${name}`;
  } catch (error) {
    if (error instanceof FileError) return undefined;
    throw error;
  }
}

/** The command that writes a new token to `file`. It needs kubectl. */
export function freshTokenCommand(id: SpiffeId, file: string): string {
  return `kubectl create token ${id.serviceAccount} --namespace ${id.namespace} --audience ${AUDIENCE} > ${file}`;
}

/** Formats milliseconds since the epoch for messages: ISO 8601, UTC, whole seconds. */
export function time(milliseconds: number): string {
  return new Date(milliseconds).toISOString().replace(/\.\d+/, "");
}

function claimsOf(token: string): Record<string, unknown> | undefined {
  try {
    const claims: unknown = JSON.parse(Buffer.from(token.split(".")[1] ?? "", "base64url").toString("utf8"));
    return typeof claims === "object" && claims !== null ? { ...claims } : undefined;
  } catch {
    return undefined;
  }
}
