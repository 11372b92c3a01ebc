/**
 * Sends mutated queries to port 53 of its own loopback, one after the other, by IPv4 and IPv6. A server there gives back
 * what reaches it, marked. Each message must come back once: answered right by the kernel, or unchanged from the server.
 * For a network namespace of its own; prints JSON. Exit code 1, and why, when an answer is wrong or missing.
 */
import { createSocket, type Socket } from "node:dgram";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { ensureBpffs, unpin } from "../../src/kernel/bpffs.ts";
import { loopbackUp } from "../../src/kernel/netns.ts";
import { attachEverywhere, detachEverywhere } from "../../src/names/attach.ts";
import { countsOf } from "../../src/names/counts.ts";
import { closeNames, linkFolder, openNames } from "../../src/names/pins.ts";
import { ownName } from "../lab/namespace.ts";
import { Random } from "../lab/random.ts";
import { checkMessage, fillTable, headOf, mutated, seeds } from "./fuzzing.ts";

const COUNT = 8_000;
const MARK = Buffer.from("passed:");

const bound = (socket: Socket, port: number, address: string) =>
  new Promise<void>((resolve, reject) => socket.once("error", reject).bind(port, address, resolve));

loopbackUp();
const bpffs = `/sys/fs/bpf/${ownName("sf")}`;
ensureBpffs(bpffs);
const sockets: Socket[] = [];
try {
  mkdirSync(join(bpffs, "keep"));
  const opened = openNames(bpffs);
  fillTable(opened.table);
  const links = new Map();
  attachEverywhere(linkFolder(bpffs), opened.programs, links);
  const clients: { socket: Socket; server: string }[] = [];
  for (const [type, server] of [
    ["udp4", "127.0.0.1"],
    ["udp6", "::1"],
  ] as const) {
    const echo = createSocket(type);
    await bound(echo, 53, server);
    echo.on("message", (message, from) => echo.send(Buffer.concat([MARK, message]), from.port, from.address));
    const socket = createSocket(type);
    await bound(socket, 0, server);
    sockets.push(echo, socket);
    clients.push({ socket, server });
  }
  const random = new Random(20261130);
  const { frames } = seeds();
  const tally = { sent: 0, answered: 0, passed: 0, counted: 0 };
  for (let i = 0; i < COUNT; i++) {
    const frame = mutated(random, random.pick(frames));
    const message = frame.subarray(headOf(frame));
    const client = random.pick(clients);
    const back = await exchanged(client.socket, client.server, message);
    tally.sent++;
    if (back.subarray(0, MARK.length).equals(MARK)) {
      if (Buffer.compare(back.subarray(MARK.length), message) !== 0)
        throw new Error(`changed on its way: ${Buffer.from(message).toString("hex")}`);
      tally.passed++;
    } else {
      checkMessage(message, back);
      tally.answered++;
    }
  }
  const counts = countsOf(opened.maps.names_counts);
  for (const [event, count] of Object.entries(counts))
    if (event.startsWith("answered-")) tally.counted += count;
  for (const link of links.values()) link.close();
  detachEverywhere(linkFolder(bpffs));
  closeNames(opened);
  console.log(JSON.stringify(tally));
} catch (error) {
  console.error(error);
  process.exitCode = 1;
} finally {
  for (const socket of sockets) socket.close();
  unpin(bpffs);
}

/** What comes back of a message. Rejects when nothing does in 2 s. */
function exchanged(socket: Socket, server: string, message: Uint8Array): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(
      () => reject(new Error(`no answer to ${Buffer.from(message).toString("hex")} at ${server}`)),
      2_000,
    );
    socket.once("message", (back) => {
      clearTimeout(timer);
      resolve(back);
    });
    socket.send(message, 53, server);
  });
}
