/** ztunnel as a contender of bench/tunnel.ts: with workloads from a file, one worker thread, and the bench's CA. */
import { execFileSync, spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { Server, ServerCredentials, type ServerUnaryCall, type sendUnaryData } from "@grpc/grpc-js";
import { stringify } from "yaml";
import { ca } from "../../src/istiod/ca.gen.js";
import { dialTcp, type TestMesh } from "../../test/lab/mesh-member.ts";
import { type Bench, type Contender, eventually } from "./contender.ts";

/** Where apps connect to: the service, at ztunnel's port for what leaves the machine, and its workload. */
const SERVICE = "10.9.9.9";
const WORKLOAD = "10.9.9.8";
const OUTBOUND = 15_001;
const INSIDE = "KMESH_BENCH_INSIDE";

/**
 * Continues in a network namespace of its own with these addresses on loopback: ztunnel's ports can't be chosen. Returns only
 * there.
 */
export function enterOwnNamespace(): void {
  if (process.env[INSIDE]) return;
  const addresses = [SERVICE, WORKLOAD].map((address) => `ip addr add ${address}/32 dev lo`).join(" && ");
  const script = `ip link set lo up && ${addresses} && exec "$@"`;
  const inside = ["sh", "-c", script, "sh", process.execPath, ...process.argv.slice(1)];
  const { status } = spawnSync("unshare", ["--net", "--", ...inside], {
    stdio: "inherit",
    env: { ...process.env, [INSIDE]: "1" },
  });
  process.exit(status ?? 1);
}

/**
 * Without a redirect ztunnel takes the accepted socket's own address for the one that the app asked for: no address translation
 * has a part in its figures, as none has in those of the others. Where it leads to port 15008, the peer listens at another port.
 */
export async function startZtunnel(bench: Bench, path: string): Promise<Contender> {
  const { mesh, app, hboneWeb } = bench;
  const to = `ip daddr ${WORKLOAD} tcp dport 15008 redirect to :${hboneWeb}`;
  execFileSync("nft", ["-f", "-"], {
    input: `table ip bench { chain output { type nat hook output priority -100; ${to}; }; }\n`,
  });
  const root = join(mesh.folder, "root.pem");
  writeFileSync(root, mesh.authority.root);
  const workloads = join(mesh.folder, "workloads.yaml");
  writeFileSync(workloads, stringify(localConfig(app)));
  const env = {
    ...process.env,
    PROXY_MODE: "dedicated",
    PROXY_WORKLOAD_INFO: "shop/app/app",
    XDS_ADDRESS: "",
    LOCAL_XDS_PATH: workloads,
    CA_ADDRESS: `https://localhost:${await startAuthority(mesh)}`,
    CA_ROOT_CA: root,
    ISTIO_META_DNS_CAPTURE: "false",
    ZTUNNEL_WORKER_THREADS: "1",
    RUST_LOG: "error",
  };
  // Its log goes to standard output.
  const pid = bench.begin([path], { env });
  const connect = () => dialTcp(OUTBOUND, SERVICE);
  await eventually(() => connect().then((socket) => socket.destroy().destroyed));
  return { name: "ztunnel", pids: () => [pid], connect: { HBONE: connect } };
}

/** The app's own workload, and the service with one workload behind HBONE. */
function localConfig(app: number): object {
  const common = { namespace: "shop", trustDomain: "cluster.local", node: "bench", network: "" };
  // Numbers, not texts, as keys.
  const ports = new Map([[OUTBOUND, app]]);
  return {
    workloads: [
      {
        ...common,
        ...{ uid: "bench//Pod/shop/app", name: "app", serviceAccount: "app" },
        ...{ workloadIps: ["127.0.0.1"], protocol: "TCP", services: {} },
      },
      {
        ...common,
        ...{ uid: "bench//Pod/shop/web", name: "web", serviceAccount: "web" },
        ...{ workloadIps: [WORKLOAD], protocol: "HBONE", services: { "shop/web.shop": ports } },
      },
    ],
    services: [
      {
        ...{ name: "web", namespace: "shop", hostname: "web.shop" },
        ...{ vips: [`/${SERVICE}`], ports, canonical: true },
      },
    ],
  };
}

/** istiod's signing service, which gives everybody the certificate of account `app`. Gives its port. */
async function startAuthority(mesh: TestMesh): Promise<number> {
  const { key, chain } = mesh.authority.issue("DNS:localhost");
  const server = new Server();
  const method = {
    path: "/istio.v1.auth.IstioCertificateService/CreateCertificate",
    ...{ requestStream: false, responseStream: false },
    requestSerialize: (bytes: Buffer) => bytes,
    requestDeserialize: (bytes: Buffer) => bytes,
    responseSerialize: (bytes: Buffer) => bytes,
    responseDeserialize: (bytes: Buffer) => bytes,
  };
  const answer = ({ request }: ServerUnaryCall<Buffer, Buffer>, done: sendUnaryData<Buffer>) => {
    const { csr } = ca.IstioCertificateRequest.decode(request);
    const certificate = mesh.authority.sign(csr, `URI:${mesh.id("app")}`, { from: -60, to: 86_400 });
    const certChain = [certificate, mesh.authority.root];
    done(null, Buffer.from(ca.IstioCertificateResponse.encode({ certChain }).finish()));
  };
  server.addService({ CreateCertificate: method }, { CreateCertificate: answer });
  const credentials = ServerCredentials.createSsl(
    null,
    [{ private_key: Buffer.from(key), cert_chain: Buffer.from(chain) }],
    false,
  );
  return new Promise((resolve, reject) =>
    server.bindAsync("127.0.0.1:0", credentials, (error, port) => (error ? reject(error) : resolve(port))),
  );
}
