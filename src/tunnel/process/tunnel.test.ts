import { expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CertificateStore } from "../../istiod/identity/certificate-store.ts";
import { NOBODY } from "../inbound/admission.ts";
import { Tunnel } from "./tunnel.ts";

test("handshakes that never end are bounded: further connections are reset at once, and counted", async () => {
  const runDir = mkdtempSync(join(tmpdir(), "kmesh-gate-"));
  const lines: string[] = [];
  const log = (text: string) => void lines.push(text);
  const tunnel = await Tunnel.start({
    listeners: { outbound: { host: "127.0.0.1", port: 0 }, hbone: { host: "127.0.0.1", port: 0 } },
    store: new CertificateStore(join(runDir, "none")),
    readTarget: () => undefined,
    admission: NOBODY,
    runDir,
    version: "test",
    limits: { pending: 0, connections: 100 },
    log: { info: log, warn: log },
  });
  try {
    for (const { name, port } of tunnel.status().listening) {
      const socket = connect(port, "127.0.0.1");
      socket.on("error", () => {});
      await new Promise((resolve) => socket.once("close", resolve));
      const way = name as "outbound" | "hbone";
      expect([name, tunnel.status().ways[way].failures]).toEqual([name, { overload: 1 }]);
    }
    expect(tunnel.status()).toMatchObject({ connections: 0, held: 0 });
  } finally {
    tunnel.abort();
    await tunnel.ended;
    rmSync(runDir, { recursive: true, force: true });
  }
});
