/** A gateway that is known by a DNS name: all of its addresses are tried, and looked up again for each connection. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { eventually, OwnedProcess } from "../lab/process.ts";
import { ScriptedIstiod } from "../lab/scripted-istiod.ts";

const root = process.getuid?.() === 0;
if (!root)
  console.warn("the tests of a gateway by name are skipped: they need root, for an /etc/hosts of their own");

describe.skipIf(!root)("a gateway by name", () => {
  const folder = mkdtempSync(join(tmpdir(), "kmesh-gateway-"));
  const hosts = join(folder, "hosts");
  const istiod = new ScriptedIstiod();
  const clients: OwnedProcess[] = [];

  beforeAll(async () => {
    istiod.onRequest = (stream, request) => {
      if (request.responseNonce === "" && request.type)
        stream.send(request.type, { resources: { x: "static" } });
    };
    await istiod.start();
  });
  afterAll(async () => {
    for (const client of clients) await client.stop("SIGKILL");
    istiod.stop();
    rmSync(folder, { recursive: true, force: true });
  });

  /** A client in a mount namespace of its own, in which `hosts` is /etc/hosts. */
  function client(): OwnedProcess {
    const script = join(import.meta.dirname, "gateway-client.ts");
    const started = new OwnedProcess({
      name: "client",
      log: join(folder, `client-${clients.length}.log`),
      command: [
        "unshare",
        "--mount",
        "sh",
        "-c",
        `mount --bind ${hosts} /etc/hosts && exec "$@"`,
        "sh",
        process.execPath,
        script,
        String(istiod.port),
      ],
    });
    clients.push(started);
    return started;
  }

  test("an address where nobody listens is passed over for the next one", async () => {
    writeFileSync(hosts, "127.0.0.5 gw.example\n127.0.0.1 gw.example\n");
    const started = client();
    await eventually("a connection", () => started.output().includes("\nconnected"));
    expect(started.output()).not.toContain("disconnected");
  });

  test("a name that moved is followed at the next attempt", async () => {
    writeFileSync(hosts, "127.0.0.5 gw.example\n");
    const started = client();
    await eventually("an attempt that fails", () => started.output().includes("disconnected"));
    expect(started.output()).not.toContain("\nconnected");
    writeFileSync(hosts, "127.0.0.1 gw.example\n");
    await eventually("a connection", () => started.output().includes("\nconnected"));
  });
});
