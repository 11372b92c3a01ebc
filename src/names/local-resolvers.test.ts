import { describe, expect, test } from "bun:test";
import { createSocket } from "node:dgram";
import { dnsSockets, listenerAt, localResolvers } from "./local-resolvers.ts";

const at = (address: string) => ({ address, inode: 1, cgroup: 7n });

test("a query goes to the socket of its address, else to one of all addresses", () => {
  const sockets = [at("0.0.0.0"), at("127.0.0.53"), at("::1")];
  expect(listenerAt(sockets, "127.0.0.53")?.address).toBe("127.0.0.53");
  expect(listenerAt(sockets, "127.0.0.1")?.address).toBe("0.0.0.0");
  expect(listenerAt(sockets, "::1")?.address).toBe("::1");
  expect(listenerAt(sockets, "fd00::1")).toBeUndefined();
  // Sockets for IPv6 take IPv4 as well.
  expect(listenerAt([at("::")], "127.0.0.1")?.address).toBe("::");
});

describe.skipIf(process.getuid?.() !== 0)("on this machine", () => {
  test("the process that listens is found by its cgroup; servers elsewhere are none of this machine's", async () => {
    const address = `127.9.${(process.pid >> 8) & 255}.${process.pid & 255}`;
    const socket = createSocket("udp4");
    await new Promise<void>((resolve, reject) => socket.once("error", reject).bind(53, address, resolve));
    try {
      const found = dnsSockets().find((each) => each.address === address);
      expect(found?.inode).toBeGreaterThan(0);
      expect(found?.cgroup).toBeGreaterThan(0n);
      const asked: bigint[] = [];
      const [resolver, ...others] = localResolvers(["192.0.2.1", address, "127.9.0.0"], (cgroup) => {
        asked.push(cgroup);
        return true;
      });
      expect(others).toEqual([]);
      expect(resolver).toMatchObject({ via: address, governed: true });
      expect(asked).toEqual([found?.cgroup ?? 0n]);
    } finally {
      socket.close();
    }
  });
});
