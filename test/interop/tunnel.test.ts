/** A peer that takes mutual TLS alone, as a real istiod describes it: an unmodified app reaches it through the tunnel. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { identityStore } from "../../src/machine/identity-store.ts";
import { eventually, OwnedProcess } from "../lab/process.ts";
import { KMESH, MeshLab, missing } from "./mesh-lab.ts";
import { serviceEntry } from "./objects.ts";

setDefaultTimeout(60_000);
const why = missing();
if (why !== undefined) console.warn(`interop tests are skipped: ${why}`);

/** Answers each line with its name, and the caller's identity, as upstream.ts does; without a certificate of the mesh nobody gets in. */
const STRICT_PEER = `
const [, , file, address, port] = process.argv;
const { key, cert, ca } = JSON.parse(require("node:fs").readFileSync(file, "utf8"));
require("node:tls").createServer({ key, cert, ca, requestCert: true, rejectUnauthorized: true }, (socket) => {
  const names = socket.getPeerCertificate().subjectaltname;
  socket.on("data", () => socket.write("strict " + names + " " + socket.servername + "\\n"));
  socket.on("error", () => {});
}).listen(Number(port), address, () => console.log("ready"));
`;

describe.skipIf(why !== undefined)("through the tunnel, with a real istiod", () => {
  let lab: MeshLab;
  const started: OwnedProcess[] = [];

  beforeAll(async () => {
    lab = await MeshLab.create();
    const ca = join(lab.folder, "root-cert.pem");
    const token = join(lab.folder, "istio-token");
    writeFileSync(ca, await lab.plane.rootCertificate());
    writeFileSync(token, await lab.plane.kube.serviceAccountToken("shop", "vm"), { mode: 0o600 });
    await lab.serve({ plain: "172.31.1.1:8080" });
    await lab.plane.kube.apply(
      serviceEntry("peer", {
        addresses: ["10.97.1.1"],
        ports: [{ number: 7000, name: "tcp", protocol: "TCP", targetPort: 8443 }],
        endpoints: [{ address: "172.31.1.1", serviceAccount: "vm" }],
      }),
      serviceEntry("other", {
        addresses: ["10.97.1.2"],
        ports: [{ number: 7000, name: "tcp", protocol: "TCP", targetPort: 8443 }],
        endpoints: [{ address: "172.31.1.1", serviceAccount: "somebody-else" }],
      }),
      serviceEntry("plain", {
        addresses: ["10.97.1.3"],
        ports: [{ number: 7000, name: "tcp", protocol: "TCP", targetPort: 8080 }],
        endpoints: [{ address: "172.31.1.1" }],
      }),
    );
    await lab.startedAgent(
      `--istiod=localhost:${lab.plane.ports.secureGrpc}`,
      `--ca=${ca}`,
      `--token=${token}`,
      "--tunnel=on",
    );
  }, 600_000);

  afterAll(async () => {
    for (const each of started) await each.stop("SIGKILL");
    await lab?.remove();
  }, 60_000);

  async function begin(name: string, ready: string, command: string[]): Promise<void> {
    const begun = new OwnedProcess({
      name,
      log: join(lab.folder, `${name}.log`),
      command,
      netns: lab.namespace.path,
    });
    started.push(begun);
    await eventually(`${name} is ready`, () => begun.output().includes(ready));
  }

  test("its identity is checked; plaintext peers are reached directly; the agent may be dead", async () => {
    const identity = identityStore(join(lab.folder, "state")).load();
    if (!identity) throw new Error("the agent has no certificate");
    const files = join(lab.folder, "peer.json");
    const { key, chain, roots } = identity;
    writeFileSync(files, JSON.stringify({ key, cert: chain, ca: roots }), { mode: 0o600 });
    const script = join(lab.folder, "peer.cjs");
    writeFileSync(script, STRICT_PEER);
    await begin("peer", "ready", [process.execPath, script, files, "172.31.1.1", "8443"]);
    await begin("tunnel", "accepts (pid", [KMESH, "tunnel", ...lab.folders]);

    const plaintext = await lab.connectOutside("172.31.1.1", 8443);
    expect(plaintext.by).toEqual({});
    const strict = await lab.connect("10.97.1.1", 7000, { count: 10 });
    expect({ by: strict.by, peers: strict.peers }).toEqual({
      by: { strict: 10 },
      peers: { "10.97.1.1 7000": 10 },
    });
    expect((await lab.connect("10.97.1.2", 7000)).by).toEqual({});
    expect((await lab.connect("10.97.1.3", 7000)).by).toEqual({ plain: 1 });
    // Only what was led there may enter.
    expect((await lab.connectOutside("127.0.0.2", 15001)).errors).toEqual({ EPERM: 1 });
    const status = await lab.kmesh("status", "--output", "json");
    const { kernel } = JSON.parse(status.stdout);
    expect(kernel.tunnel).toEqual({ istio: 2 });

    const { client } = await lab.keep({ address: "10.97.1.1", port: 7000, count: 3 });
    await lab.agent.stop("SIGKILL");
    expect((await lab.connect("10.97.1.1", 7000, { count: 5 })).by).toEqual({ strict: 5 });
    await client.close();
  });
});
