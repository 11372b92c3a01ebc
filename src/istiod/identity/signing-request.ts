import { formatSpiffe, type SpiffeId } from "../spiffe.ts";

/** A new private key and its certificate signing request, both PEM. */
export interface SigningRequest {
  key: string;
  csr: string;
}

const P256 = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };

/**
 * Makes a P-256 key (PKCS #8) and a PKCS #10 request (RFC 2986). The request has no subject; its one critical SAN is
 * the SPIFFE URI. The key never leaves this machine.
 */
export async function newSigningRequest(id: SpiffeId): Promise<SigningRequest> {
  // Loaded on demand, since it is needed a few times a day. The decorators of @peculiar/x509 need reflect-metadata
  // first.
  await import("reflect-metadata");
  const { PemConverter, Pkcs10CertificateRequestGenerator, SubjectAlternativeNameExtension } = await import(
    "@peculiar/x509"
  );
  const keys = await crypto.subtle.generateKey(P256, true, ["sign", "verify"]);
  const request = await Pkcs10CertificateRequestGenerator.create(
    {
      keys,
      signingAlgorithm: P256,
      extensions: [new SubjectAlternativeNameExtension([{ type: "url", value: formatSpiffe(id) }], true)],
    },
    crypto,
  );
  const pkcs8 = await crypto.subtle.exportKey("pkcs8", keys.privateKey);
  return {
    key: `${PemConverter.encode(pkcs8, "PRIVATE KEY")}\n`,
    csr: `${request.toString("pem")}\n`,
  };
}
