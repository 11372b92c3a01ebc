import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ANY4, rootListens, tunnelReach, usesTunnel } from "./listener.ts";

const folder = mkdtempSync(join(tmpdir(), "kmesh-listener-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const HEAD =
  "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
function table(...rows: string[]): string {
  const path = join(folder, "tcp");
  writeFileSync(path, HEAD + rows.map((row, i) => `   ${i}: ${row}\n`).join(""));
  return path;
}
const REST = "00000000:00000000 00:00000000 00000000";

test("only root's listening socket at the wildcard address counts", () => {
  expect(rootListens(table(`00000000:3A99 00000000:0000 0A ${REST}     0        0 17`), ANY4, 15001)).toBe(
    true,
  );
  // Of an Envoy; on one address; a connection; another port.
  expect(rootListens(table(`00000000:3A99 00000000:0000 0A ${REST}  1337        0 17`), ANY4, 15001)).toBe(
    false,
  );
  expect(rootListens(table(`0100007F:3A99 00000000:0000 0A ${REST}     0        0 17`), ANY4, 15001)).toBe(
    false,
  );
  expect(rootListens(table(`00000000:3A99 0100007F:1000 01 ${REST}     0        0 17`), ANY4, 15001)).toBe(
    false,
  );
  expect(rootListens(table(`00000000:3A9A 00000000:0000 0A ${REST}     0        0 17`), ANY4, 15001)).toBe(
    false,
  );
  expect(rootListens(join(folder, "none"), ANY4, 15001)).toBe(false);
});

test.skipIf(process.getuid?.() !== 0)("a real socket is found while it listens", async () => {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "0.0.0.0", resolve));
  const address = server.address();
  const port = typeof address === "object" && address ? address.port : 0;
  expect(rootListens("/proc/net/tcp", ANY4, port)).toBe(true);
  await new Promise((resolve) => server.close(resolve));
  expect(rootListens("/proc/net/tcp", ANY4, port)).toBe(false);
});

test("the settings: auto asks who listens; shadow and allow-plaintext win", () => {
  const base = { tunnel: "auto", plaintext: false, shadow: false, allowPlaintext: false } as const;
  expect(usesTunnel(base, () => true)).toBe(true);
  expect(usesTunnel(base, () => false)).toBe(false);
  expect(usesTunnel({ ...base, plaintext: true }, () => true)).toBe(false);
  expect(usesTunnel({ ...base, tunnel: "on" }, () => false)).toBe(true);
  expect(usesTunnel({ ...base, tunnel: "off" }, () => true)).toBe(false);
  expect(usesTunnel({ ...base, tunnel: "on", shadow: true }, () => true)).toBe(false);
  expect(usesTunnel({ ...base, allowPlaintext: true }, () => true)).toBe(false);
});

test("peers can reach the machine where the sockets listen, with a certificate and policies that govern", () => {
  const hbone = join(folder, "tcp6");
  const row = (local: string) => `0: ${local} 0:0000 0A ${REST} 0 0 17\n`;
  writeFileSync(hbone, HEAD + row(`${"0".repeat(32)}:3AA0`));
  const steered = table(`0100007F:3A9E 00000000:0000 0A ${REST}     0        0 17`);
  const none = join(folder, "none");
  const config = {
    tunnel: "auto",
    plaintext: false,
    shadow: false,
    inbound: "on",
  } as const;
  const reach = (more: object, tables = { tcp4: steered, tcp6: hbone }, certificate = true) =>
    tunnelReach({ ...config, ...more }, certificate, tables);
  expect(reach({})).toEqual({ hbone: true, mtls: true });
  expect(reach({}, { tcp4: none, tcp6: hbone })).toEqual({ hbone: true, mtls: false });
  expect(reach({}, { tcp4: steered, tcp6: none })).toEqual({ hbone: false, mtls: true });
  for (const more of [{ tunnel: "off" }, { shadow: true }, { inbound: "off" }, { plaintext: true }])
    expect(reach(more)).toEqual({ hbone: false, mtls: false });
  expect(reach({}, undefined, false)).toEqual({ hbone: false, mtls: false });
});
