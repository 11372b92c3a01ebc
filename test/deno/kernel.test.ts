import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdirSync, rmdirSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { join } from "node:path";
import { BPFFS, unpin } from "../../src/kernel/bpffs.ts";
import { cgroup2Root } from "../../src/kernel/cgroup.ts";

const DENO = join(import.meta.dir, "../../node_modules/.bin/deno");
const folder = join(BPFFS, `kmesh-test-deno-${process.pid}`);
const cgroup = join(cgroup2Root(), `kmesh-test-deno-${process.pid}`);
let server: Server;
let port = 0;

beforeAll(async () => {
  mkdirSync(cgroup);
  server = createServer((socket) => socket.end()).listen(0, "127.0.0.1");
  await new Promise((ready) => server.once("listening", ready));
  const address = server.address();
  port = typeof address === "object" && address !== null ? address.port : 0;
});

afterAll(() => {
  unpin(folder);
  server?.close();
  rmdirSync(cgroup);
});

async function deno(step: string): Promise<unknown> {
  const child = Bun.spawn(
    [DENO, "run", "--allow-all", "--quiet", join(import.meta.dir, "kernel.ts"), step, cgroup, folder],
    {
      stderr: "inherit",
    },
  );
  expect(await child.exited).toBe(0);
  return JSON.parse(await new Response(child.stdout).text());
}

/** Whether a process in the cgroup can connect. */
async function connects(): Promise<boolean> {
  const script = `echo $$ >${cgroup}/cgroup.procs && exec 3<>/dev/tcp/127.0.0.1/${port}`;
  return (await Bun.spawn(["bash", "-c", script], { stderr: "ignore" }).exited) === 0;
}

test("the kernel room works under Deno: load, attach, pin; and from the next process map and link again", async () => {
  expect(await deno("attach")).toEqual({ pins: 3, path: cgroup });
  expect(await connects()).toBeTrue();
  expect(await connects()).toBeTrue();
  expect(await deno("reattach")).toEqual({ counted: 2, sameCgroup: true, replaced: true });
  expect(await connects()).toBeFalse();
}, 30_000);
