/** A kept certificate taken apart, for people. */
import { X509Certificate } from "node:crypto";
import { type Certificate, isValidAt, pemBlocks } from "./certificate.ts";

/** One certificate of a chain. Times are milliseconds since the epoch. */
export interface Link {
  /** "" where there is none, as in a workload's. */
  subject: string;
  /** Alternative names, each as `URI:...` or `DNS:...`. */
  names: string[];
  issuer: string;
  serial: string;
  notBefore: number;
  notAfter: number;
  /** Such as `ec prime256v1` or `rsa 2048`. */
  key: string;
  /** SHA-256 over the certificate, by which roots are compared. */
  fingerprint: string;
  valid: boolean;
}

/** From the workload's own certificate to the roots, as of a moment. */
export interface Chain {
  /** The workload's own first. */
  chain: Link[];
  roots: Link[];
  /** All of the chain, and a root. */
  valid: boolean;
}

export function takeApart(certificate: Pick<Certificate, "chain" | "roots">, now: number): Chain {
  const links = (pem: string) => pemBlocks(pem).map((block) => linkOf(new X509Certificate(block), now));
  const chain = links(certificate.chain);
  const roots = links(certificate.roots);
  return { chain, roots, valid: chain.every(({ valid }) => valid) && roots.some(({ valid }) => valid) };
}

function linkOf(certificate: X509Certificate, now: number): Link {
  const life = {
    notBefore: certificate.validFromDate.getTime(),
    notAfter: certificate.validToDate.getTime(),
  };
  return {
    subject: oneLine(certificate.subject),
    names: (certificate.subjectAltName ?? "").split(", ").filter((name) => name !== ""),
    issuer: oneLine(certificate.issuer),
    serial: certificate.serialNumber,
    ...life,
    key: keyOf(certificate),
    fingerprint: certificate.fingerprint256,
    valid: isValidAt(life, now),
  };
}

function keyOf({ publicKey }: X509Certificate): string {
  const { namedCurve, modulusLength } = publicKey.asymmetricKeyDetails ?? {};
  return [publicKey.asymmetricKeyType, namedCurve ?? modulusLength]
    .filter((part) => part !== undefined)
    .join(" ");
}

/** A name comes as a line for each of its parts. */
function oneLine(name: string | undefined): string {
  return (name ?? "").trim().split("\n").join(", ");
}
