/** The stored certificate in parts, for `kmesh cert`. */
import { X509Certificate } from "node:crypto";
import { type Certificate, isValidAt, pemBlocks } from "./certificate.ts";

/** One certificate of a chain. Times are milliseconds since the epoch. */
export interface Link {
  /** "" when the certificate has no subject. istiod's workload certificates have none. */
  subject: string;
  /** Alternative names, each as `URI:...` or `DNS:...`. */
  names: string[];
  issuer: string;
  serial: string;
  notBefore: number;
  notAfter: number;
  /** Such as `ec prime256v1` or `rsa 2048`. */
  key: string;
  /** SHA-256 of the certificate (DER). Roots are compared by it. */
  fingerprint: string;
  valid: boolean;
}

/** The chain from the workload's certificate to its roots, and its validity at one moment. */
export interface Chain {
  /** The workload's own certificate is first. */
  chain: Link[];
  roots: Link[];
  /** Every certificate of the chain is valid, and at least one root is. */
  valid: boolean;
}

/**
 * Splits a certificate into its parts. `now`, in milliseconds since the epoch, decides what is valid. Throws Node's
 * Error when a PEM block is no certificate.
 */
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

/** Node writes a name with one attribute on each line. */
function oneLine(name: string | undefined): string {
  return (name ?? "").trim().split("\n").join(", ");
}
