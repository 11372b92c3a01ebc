import { createPrivateKey, X509Certificate } from "node:crypto";
import { parseSpiffe, type SpiffeId } from "../spiffe.ts";

/**
 * A workload's certificate with its key, chain and roots, which fit together. PEM; times in milliseconds since the
 * epoch.
 */
export interface Certificate {
  key: string;
  /** The workload's certificate, then the intermediate ones. */
  chain: string;
  /** One or more roots. */
  roots: string;
  id: SpiffeId;
  serial: string;
  notBefore: number;
  notAfter: number;
}

/**
 * The parts are no usable certificate. The message is a reason without the file's name: "the key is another
 * certificate's".
 */
export class MalformedCertificate extends Error {
  constructor(reason: string) {
    super(reason);
    this.name = "MalformedCertificate";
  }
}

/** Every certificate of a PEM text, each as a PEM block. [] when there is none. */
export function pemBlocks(pem: string): string[] {
  return pem.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? [];
}

/**
 * Checks that the key belongs to the certificate, that the certificate names a workload, that each certificate is
 * signed by the next one, and the last one by a root. It does not check the validity period. Throws
 * MalformedCertificate.
 */
export function readCertificate(key: string, chain: string, roots: string): Certificate {
  const path = pemBlocks(chain).map(parse);
  const anchors = pemBlocks(roots).map(parse);
  const leaf = path[0];
  if (!leaf) throw new MalformedCertificate("it holds no certificate");
  if (anchors.length === 0) throw new MalformedCertificate("it comes without a root");
  if (!isKeyOf(leaf, key)) throw new MalformedCertificate("the key is another certificate's");
  const id = idOf(leaf);
  if (!id) throw new MalformedCertificate(`it names no workload (${leaf.subjectAltName || "no SAN"})`);
  for (const [i, each] of path.entries()) {
    const signers = path[i + 1] ? [path[i + 1]] : anchors;
    if (!signers.some((signer) => signer && isSignedBy(each, signer)))
      throw new MalformedCertificate("the chain does not lead to its root");
  }
  return {
    key,
    chain: join(path),
    roots: join(anchors),
    id,
    serial: leaf.serialNumber,
    notBefore: leaf.validFromDate.getTime(),
    notAfter: leaf.validToDate.getTime(),
  };
}

/** Whether the certificate is valid at `now`, in milliseconds since the epoch. */
export function isValidAt(certificate: Pick<Certificate, "notBefore" | "notAfter">, now: number): boolean {
  return certificate.notBefore <= now && now < certificate.notAfter;
}

function parse(pem: string): X509Certificate {
  try {
    return new X509Certificate(pem);
  } catch {
    throw new MalformedCertificate("a part of it is not a certificate");
  }
}

function isKeyOf(leaf: X509Certificate, key: string): boolean {
  try {
    return leaf.checkPrivateKey(createPrivateKey(key));
  } catch {
    return false;
  }
}

function idOf(leaf: X509Certificate): SpiffeId | undefined {
  const names = (leaf.subjectAltName ?? "").split(", ").filter((name) => name.startsWith("URI:"));
  return names.length === 1 ? parseSpiffe((names[0] ?? "").slice("URI:".length)) : undefined;
}

function isSignedBy(certificate: X509Certificate, signer: X509Certificate): boolean {
  return certificate.checkIssued(signer) && certificate.verify(signer.publicKey);
}

function join(certificates: readonly X509Certificate[]): string {
  return certificates.map((each) => `${each.toString().trim()}\n`).join("");
}
