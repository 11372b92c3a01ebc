import { Client } from "@grpc/grpc-js";
import { ca } from "../ca.gen.js";
import { dialled, type Target } from "../target.ts";
import { MalformedCertificate } from "./certificate.ts";
import type { Credentials } from "./credentials.ts";

const PATH = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/** Deadline of one call, name lookup and handshake included, milliseconds. */
const LONGEST = 10_000;

/** The call to istiod's CA failed, in istiod or on the way to it. `code` and `details` are those of the gRPC status. */
export class SigningRefused extends Error {
  readonly code: number;
  readonly details: string;
  constructor(code: number, details: string) {
    super(details);
    this.name = "SigningRefused";
    this.code = code;
    this.details = details;
  }
}

/**
 * Asks istiod's CA to sign a request (PEM) for `validity` seconds. Resolves with the certificate chain, the
 * workload's certificate first, and the roots, all PEM. Rejects with SigningRefused when the call fails, and with
 * MalformedCertificate when the response holds no chain. Source: istio.io/api security/v1alpha1/ca.proto.
 */
export async function createCertificate(
  target: Target,
  open: Credentials,
  csr: string,
  validity: number,
): Promise<{ chain: string; roots: string }> {
  const client = new Client(dialled(target), open.channel, {
    "grpc.primary_user_agent": "kmesh",
    "grpc.enable_http_proxy": 0,
    "grpc.enable_retries": 0,
    "grpc.service_config_disable_resolution": 1,
    "grpc.use_local_subchannel_pool": 1,
    ...open.options,
  });
  try {
    const answer = await new Promise<Buffer>((resolve, reject) =>
      client.makeUnaryRequest(
        PATH,
        (request: Uint8Array) => Buffer.from(request),
        (response: Buffer) => response,
        ca.IstioCertificateRequest.encode({ csr, validityDuration: validity }).finish(),
        open.metadata,
        { deadline: Date.now() + LONGEST },
        (error, response) => {
          if (error) reject(new SigningRefused(error.code, error.details || error.message));
          else resolve(response ?? Buffer.alloc(0));
        },
      ),
    );
    return split(answer);
  } finally {
    client.close();
  }
}

function split(answer: Uint8Array): { chain: string; roots: string } {
  let parts: string[];
  try {
    parts = ca.IstioCertificateResponse.decode(answer).certChain;
  } catch {
    throw new MalformedCertificate("istiod's answer can't be read");
  }
  const roots = parts.at(-1);
  if (roots === undefined || parts.length < 2)
    throw new MalformedCertificate("istiod's answer holds no certificate and root");
  return { chain: parts.slice(0, -1).join("\n"), roots };
}
