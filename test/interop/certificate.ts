/**
 * A certificate of the mesh from istiod's CA: `bun certificate.ts HOST:PORT ROOTS-FILE TOKEN-FILE NAMESPACE ACCOUNT` prints key
 * and chain (PEM). In istiod's network namespace.
 */
import { createCertificate } from "../../src/istiod/identity/certificate-authority.ts";
import { openCredentials } from "../../src/istiod/identity/credentials.ts";
import { newSigningRequest } from "../../src/istiod/identity/signing-request.ts";
import { parseTarget } from "../../src/istiod/target.ts";

const [, , istiod = "", ca = "", token = "", namespace = "", serviceAccount = ""] = process.argv;
const target = parseTarget(istiod);
const { key, csr } = await newSigningRequest({ trustDomain: "cluster.local", namespace, serviceAccount });
const credentials = openCredentials({ kind: "tls", ca, token }, target, "Kubernetes", "token");
const { chain } = await createCertificate(target, credentials, csr, 3600);
console.log(`${key}${chain}`);
process.exit(0);
