import { expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect as connectTls } from "node:tls";
import { TestMesh } from "../../../test/lab/mesh-member.ts";
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

test("a flood of half-open connections takes no more than its share, keeps nobody of the mesh out, and ends with them", async () => {
  const mesh = new TestMesh();
  const tunnel = await Tunnel.start({
    listeners: { hbone: { host: "127.0.0.1", port: 0 }, inbound: { host: "127.0.0.1", port: 0 } },
    store: mesh.store("vm"),
    readTarget: () => undefined,
    admission: NOBODY,
    runDir: mesh.folder,
    version: "test",
    limits: { pending: 8, connections: 100 },
    log: { info() {}, warn() {} },
  });
  const [listener, other] = tunnel.status().listening;
  const port = listener?.port ?? 0;
  const half: Socket[] = [];
  /** Whether a member of the mesh gets through its handshake. */
  const greeted = () =>
    new Promise<boolean>((resolve) => {
      const { key, cert, ca } = mesh.issue("peer");
      const socket = connectTls({
        ...{ port, host: "127.0.0.1", key, cert, ca, ALPNProtocols: ["h2"] },
        checkServerIdentity: () => undefined,
      });
      half.push(socket);
      socket.once("secureConnect", () => resolve(true));
      socket.once("error", () => resolve(false));
      socket.once("close", () => resolve(false));
    });
  const settled = async (count: number) => {
    while (tunnel.status().handshakes.server < count) await Bun.sleep(5);
  };
  try {
    // One stays, established: it is no part of the share of handshakes.
    expect(await greeted()).toBe(true);
    await settled(1);
    for (let i = 0; i < 200; i++) {
      const socket = connect(port, "127.0.0.1");
      half.push(socket);
      socket.on("error", () => {});
      // Nothing, one byte, and the head of a record that never comes.
      socket.write(Buffer.from(["", "16", "1603010200"][i % 3] ?? "", "hex"));
    }
    const open = () => half.filter((socket) => !socket.destroyed).length;
    while (open() > 9) await Bun.sleep(5);
    expect(await greeted()).toBe(true);
    await settled(2);
    // The oldest of the others went for it. Those of another port have a share of their own.
    while (open() > 9) await Bun.sleep(5);
    const steered = connect(other?.port ?? 0, "127.0.0.1");
    await new Promise((resolve) => steered.once("error", resolve).once("close", resolve));
    expect(tunnel.status()).toMatchObject({
      connections: 9,
      ways: { hbone: { failures: { overload: 193 } }, inbound: { failures: {} } },
    });
    for (const socket of half.splice(1, 200)) socket.destroy();
    while (tunnel.status().connections > 2) await Bun.sleep(5);
    // Each of those that were reset for another is counted once.
    while ((tunnel.status().ways.hbone.failures.reset ?? 0) < 7) await Bun.sleep(5);
    expect(Object.keys(tunnel.status().ways.hbone.failures).sort()).toEqual(["overload", "reset"]);
    expect(tunnel.status().ways.hbone.failures).toMatchObject({ overload: 193, reset: 7 });
    expect(await greeted()).toBe(true);
  } finally {
    for (const socket of half) socket.destroy();
    tunnel.abort();
    await tunnel.ended;
    mesh.close();
  }
});
