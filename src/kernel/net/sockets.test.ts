import { afterAll, describe, expect, test } from "bun:test";
import { once } from "node:events";
import { connect, createServer, type Server, type Socket } from "node:net";
import { cgroupPath } from "../cgroup.ts";
import { CONNECTED, destroySocket, listSockets, TCP } from "./sockets.ts";

const root = process.getuid?.() === 0;
const servers: Server[] = [];
const clients: Socket[] = [];

async function listen(host: string): Promise<number> {
  const server = createServer((socket) => clients.push(socket.on("error", () => {}))).listen(0, host);
  servers.push(server);
  await once(server, "listening");
  const address = server.address();
  return typeof address === "object" && address ? address.port : 0;
}

async function dial(host: string, port: number): Promise<Socket> {
  const socket = connect(port, host);
  clients.push(socket);
  await once(socket, "connect");
  return socket;
}

/** What is told of the sockets with this remote port. */
function found(port: number, states: readonly number[] = CONNECTED) {
  const list = [];
  for (const batch of listSockets(states))
    for (let i = 0; i < batch.count; i++) {
      const { family, state, localPort, remotePort, remote, cookie, cgroup, inode, hasValue } = batch.at(i);
      if (remotePort !== port) continue;
      list.push({
        family,
        state,
        localPort,
        remote: Buffer.from(remote).toString("hex"),
        cookie,
        cgroup,
        inode,
        hasValue,
      });
    }
  return list;
}

afterAll(() => {
  for (const client of clients) client.destroy();
  for (const server of servers) server.close();
});

describe.skipIf(!root)("the kernel's list of sockets", () => {
  test("has both families, with ports, cookies, cgroups and inodes", async () => {
    for (const [host, remote, family] of [
      ["127.0.0.1", "00000000000000000000ffff7f000001", 2],
      ["::1", "00000000000000000000000000000001", 10],
    ] as const) {
      const port = await listen(host);
      const socket = await dial(host, port);
      const own = found(port);
      expect(own).toHaveLength(1);
      expect(own[0]).toMatchObject({
        family,
        state: TCP.established,
        localPort: socket.localPort,
        remote,
        hasValue: false,
      });
      expect(own[0]?.cookie).not.toBe(0n);
      expect(own[0]?.inode).toBeGreaterThan(0);
      expect(cgroupPath(own[0]?.cgroup ?? 0n)).toBeDefined();
    }
  });

  test("names a socket by the same cookie and inode each time", async () => {
    const port = await listen("127.0.0.1");
    await dial("127.0.0.1", port);
    expect(found(port)).toEqual(found(port));
  });

  test("leaves out the states that are not asked for", async () => {
    const port = await listen("127.0.0.1");
    await dial("127.0.0.1", port);
    expect(found(port, [TCP.listen])).toEqual([]);
    let listening = 0;
    for (const batch of listSockets([TCP.listen]))
      for (let i = 0; i < batch.count; i++)
        if (batch.at(i).localPort === port && batch.state === TCP.listen) listening++;
    expect(listening).toBe(1);
  });

  test("ends early when the caller stops asking", () => {
    const first = listSockets([TCP.listen, ...CONNECTED]).next();
    expect(first.done).toBe(false);
  });

  test("ends a socket of either family that is named by its record: both ends see it, and no other one", async () => {
    for (const host of ["127.0.0.1", "::1"]) {
      const port = await listen(host);
      const [kept, cut] = [await dial(host, port), await dial(host, port)];
      const failure = new Promise<NodeJS.ErrnoException>((resolve) => cut.once("error", resolve));
      const records: Uint8Array[] = [];
      for (const batch of listSockets())
        for (let i = 0; i < batch.count; i++)
          if (batch.at(i).localPort === port && batch.remotePort === cut.localPort)
            records.push(batch.record());
      expect(records).toHaveLength(1);
      const [record = new Uint8Array()] = records;
      expect(destroySocket(record)).toBe(true);
      expect((await failure).code).toBe("ECONNRESET");
      expect(destroySocket(record)).toBe(false);
      expect(kept.destroyed).toBe(false);
      expect(found(port).map(({ localPort }) => localPort)).toEqual([kept.localPort as number]);
    }
  });
});
