import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { listenPrivately } from "./private-socket.ts";

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "kmesh-socket-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

test("others can't open it, and what is created meanwhile keeps its mode", async () => {
  const server = createServer((socket) => socket.end("hello"));
  const path = join(folder, "deep/admin.sock");
  const before = process.umask(0o022);
  try {
    const listening = listenPrivately(server, path);
    writeFileSync(join(folder, "meanwhile"), "");
    const inode = await listening;
    expect(statSync(join(folder, "meanwhile")).mode & 0o777).toBe(0o644);
    expect(statSync(path).mode & 0o777).toBe(0o700);
    expect(statSync(path, { bigint: true }).ino).toBe(inode);
    expect(readdirSync(join(folder, "deep"))).toEqual(["admin.sock"]);
    const heard = await new Promise((resolve, reject) => {
      connect(path)
        .on("data", (data) => resolve(String(data)))
        .on("error", reject);
    });
    expect(heard).toBe("hello");
  } finally {
    process.umask(before);
    server.close();
  }
});

test("a file at the path is replaced; a folder there is an error that leaves nothing", async () => {
  const path = join(folder, "taken");
  writeFileSync(path, "a file");
  mkdirSync(join(folder, "folder/in"), { recursive: true });
  await expect(listenPrivately(createServer(), join(folder, "folder"))).rejects.toThrow();
  expect(readdirSync(folder).filter((name) => name.startsWith("folder"))).toEqual(["folder"]);
  const server = createServer();
  await listenPrivately(server, path);
  expect(statSync(path).isSocket()).toBe(true);
  server.close();
});
