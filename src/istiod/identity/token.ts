/** A service account's token: what can be told about it without asking anybody. */
import { statSync } from "node:fs";
import { readTextFile } from "../../files/read-file.ts";
import { FileError } from "../file-error.ts";
import type { SpiffeId } from "../spiffe.ts";

/** The audience that istiod asks the API server about. */
const AUDIENCE = "istio-ca";

/** Reads the token in `file` anew. Throws FileError when there is none. */
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

/** Whether others than the owner may read the file; false when it is not there. */
export function isExposed(file: string): boolean {
  try {
    return (statSync(file).mode & 0o077) !== 0;
  } catch {
    return false;
  }
}

/**
 * Why istiod may refuse the token, from what it says about itself (its signature is not checked): undefined when
 * nothing is wrong to see. `now` in milliseconds since the epoch.
 */
export function faultOfToken(token: string, id: SpiffeId, now: number): string | undefined {
  const claims = claimsOf(token);
  if (!claims) return "it is no service account token";
  const { exp, sub, aud } = claims;
  if (typeof exp === "number" && exp * 1000 <= now) return `it expired at ${time(exp * 1000)}`;
  const audiences = (Array.isArray(aud) ? aud : [aud]).filter((each) => typeof each === "string");
  if (!audiences.includes(AUDIENCE))
    return `it is for audience ${audiences.join(", ") || "(none)"}, not ${AUDIENCE}`;
  const wanted = `system:serviceaccount:${id.namespace}:${id.serviceAccount}`;
  if (sub !== wanted) return `it is ${String(sub)}'s, not ${wanted}'s`;
  return undefined;
}

/** Whether the token says itself that its time is over. */
export function isExpired(token: string, now: number): boolean {
  const exp = claimsOf(token)?.exp;
  return typeof exp === "number" && exp * 1000 <= now;
}

/** Whose the token in `file` says it is, as NAMESPACE/NAME; undefined when it can't be read, or is no service account's. */
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

/** The command that writes a fresh token, for a machine with kubectl and this machine's file. */
export function freshTokenCommand(id: SpiffeId, file: string): string {
  return `kubectl create token ${id.serviceAccount} --namespace ${id.namespace} --audience ${AUDIENCE} > ${file}`;
}

/** A moment as messages tell it: UTC, whole seconds. */
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
