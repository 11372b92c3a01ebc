/**
 * For tests: one connection to a peer of the mesh. argv: folder of the certificate, a target as JSON (peer, transport). Prints
 * what the app there says until its end, and the address that this end has as ADDRESS:PORT where it is a socket.
 */
import { CertificateStore } from "../../src/istiod/identity/certificate-store.ts";
import { Budget } from "../../src/tunnel/http2/budget.ts";
import { Dialer } from "../../src/tunnel/outbound/dial.ts";
import type { TunnelTarget } from "../../src/tunnel/outbound/target.ts";
import { MeshCredentials } from "../../src/tunnel/tls/mesh-credentials.ts";
import { outcome } from "../lab/mesh-member.ts";

const [, , store = "", target = ""] = process.argv;
const credentials = new MeshCredentials(new CertificateStore(store));
const dialer = new Dialer({ credentials, budget: new Budget(1 << 26) });
const source = { address: "192.0.2.7", port: 1 };
const { stream } = await dialer.dial(
  JSON.parse(target) as Pick<TunnelTarget, "peer" | "transport">,
  source,
  new AbortController().signal,
);
const own = "localPort" in stream ? `${String(stream.localPort)}` : "";
const answer = outcome(stream.resume());
stream.end();
console.log(JSON.stringify({ answer: await answer, port: own }));
process.exit(0);
