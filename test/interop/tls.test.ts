/** The agent at istiod's TLS port, with the root certificate and the token that a VM gets. */
import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { eventually, output } from "../lab/process.ts";
import { MeshLab, missing } from "./mesh-lab.ts";
import { serviceEntry } from "./objects.ts";

setDefaultTimeout(60_000);
const why = missing();
if (why !== undefined) console.warn(`interop tests are skipped: ${why}`);

describe.skipIf(why !== undefined)("istiod over TLS", () => {
  let lab: MeshLab;
  let ca = "";
  let token = "";

  beforeAll(async () => {
    lab = await MeshLab.create();
    ca = join(lab.folder, "root-cert.pem");
    token = join(lab.folder, "istio-token");
    writeFileSync(ca, await lab.plane.rootCertificate());
    writeFileSync(token, await lab.plane.kube.serviceAccountToken("shop", "vm"), { mode: 0o600 });
    await lab.serve({ a: "172.31.1.1:8080" });
    await lab.plane.kube.apply(
      serviceEntry("one", {
        addresses: ["10.97.1.1"],
        ports: [{ number: 7000, name: "tcp", protocol: "TCP", targetPort: 8080 }],
        endpoints: [{ address: "172.31.1.1" }],
      }),
    );
  }, 600_000);

  afterEach(async () => {
    await lab.agent.stop("SIGKILL");
    await lab.kmesh("down", "--yes");
  });

  const forget = () => rmSync(join(lab.folder, "state/identity"), { recursive: true, force: true });

  afterAll(async () => {
    await lab?.remove();
  }, 60_000);

  const secure = () => `--istiod=localhost:${lab.plane.ports.secureGrpc}`;

  test("with the CA and a token", async () => {
    await lab.startedAgent(secure(), `--ca=${ca}`, `--token=${token}`);
    await lab.connectUntil("the service", "10.97.1.1", 7000, ({ by }) => by.a === 1);
    const { identity, stream } = await lab.status();
    expect(identity).toMatchObject({ id: "spiffe://cluster.local/ns/shop/sa/vm", obtained: 1 });
    expect(stream.connections).toBe(1);
  });

  test("started again it needs no token: the certificate was kept", async () => {
    const agent = await lab.startedAgent(secure(), `--ca=${ca}`, `--token=${join(lab.folder, "gone")}`);
    await lab.connectUntil("the service", "10.97.1.1", 7000, ({ by }) => by.a === 1);
    expect(agent.output()).toContain(
      "This machine is spiffe://cluster.local/ns/shop/sa/vm, by its stored certificate",
    );
    expect((await lab.status()).identity?.obtained).toBe(0);
  });

  test("without a certificate and a token file it does not start, and names the file", async () => {
    forget();
    const token = join(lab.folder, "gone");
    const agent = lab.startAgent(secure(), `--ca=${ca}`, `--token=${token}`);
    expect(await agent.exited).toBe(2);
    expect(agent.output()).toContain(`--token: ${token} does not exist`);
  });

  test("another CA: one clear line, and the agent keeps trying", async () => {
    forget();
    const other = join(lab.folder, "other.pem");
    await output([
      "openssl",
      ..."req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=other -keyout".split(
        " ",
      ),
      join(lab.folder, "other.key"),
      "-out",
      other,
    ]);
    const agent = lab.startAgent(secure(), `--ca=${other}`, `--token=${token}`);
    await eventually("a line about the certificate", () => /certificate|--ca/i.test(agent.output()));
    expect(agent.status).toBeUndefined();
  });

  test("a token that istiod refuses: one clear line, and the agent keeps trying", async () => {
    forget();
    const bad = join(lab.folder, "bad-token");
    writeFileSync(bad, "eyJhbGciOiJub25lIn0.e30.x");
    const agent = lab.startAgent(secure(), `--ca=${ca}`, `--token=${bad}`);
    await eventually("a line about the token", () => /token/i.test(agent.output()));
    expect(agent.status).toBeUndefined();
    expect((await lab.connect("10.97.1.1", 7000)).errors).toEqual({ ENETUNREACH: 1 });
  });

  test("a token of another service account than the one that is claimed", async () => {
    forget();
    await lab.plane.kube.apply({
      apiVersion: "v1",
      kind: "ServiceAccount",
      metadata: { name: "other", namespace: "shop" },
    });
    const foreign = join(lab.folder, "foreign-token");
    writeFileSync(foreign, await lab.plane.kube.serviceAccountToken("shop", "other"));
    const agent = lab.startAgent(secure(), `--ca=${ca}`, `--token=${foreign}`);
    await eventually("a line about the refusal", () =>
      /service.account|authoriz|permission|refuse/i.test(agent.output()),
    );
    expect((await lab.connect("10.97.1.1", 7000)).errors).toEqual({ ENETUNREACH: 1 });
  });
});
