import { expect, test } from "bun:test";
import { once } from "node:events";
import { createServer } from "node:net";
import { connect } from "node:tls";
import { listening } from "../../../test/lab/mesh-member.ts";
import { type FirstBytes, readFirstBytes } from "./client-hello.ts";

/** The first bytes of a real client. */
async function hello(ALPNProtocols: string[]): Promise<Buffer> {
  const server = createServer();
  const port = await listening(server);
  const client = connect({ port, host: "127.0.0.1", ALPNProtocols, servername: "a.example" });
  client.on("error", () => {});
  const [socket] = await once(server, "connection");
  const [bytes] = await once(socket, "data");
  client.destroy();
  server.close();
  return bytes as Buffer;
}

/** The same handshake in records of `size` bytes. */
function inRecords(bytes: Buffer, size: number): Buffer {
  const message = bytes.subarray(5);
  const records: Buffer[] = [];
  for (let at = 0; at < message.length; at += size) {
    const part = message.subarray(at, at + size);
    records.push(Buffer.of(22, 3, 1, part.length >> 8, part.length & 255), part);
  }
  return Buffer.concat(records);
}

test("reads what a real client offers, however the hello is cut", async () => {
  const bytes = await hello(["istio-peer-exchange", "istio"]);
  const expected: FirstBytes = { kind: "tls", alpn: ["istio-peer-exchange", "istio"] };
  expect(readFirstBytes(bytes)).toEqual(expected);
  for (let length = 0; length < bytes.length; length++)
    expect(readFirstBytes(bytes.subarray(0, length))).toEqual({ kind: "incomplete" });
  for (const records of [2, 3, 16])
    expect(readFirstBytes(inRecords(bytes, Math.ceil((bytes.length - 5) / records)))).toEqual(expected);
  expect(readFirstBytes(await hello([]))).toEqual({ kind: "tls", alpn: [] });
});

test("tells plaintext at once, and gives up on what is no ClientHello", () => {
  for (const text of ["GET / HTTP/1.1", "\0", "SSH-2.0", "\x16\x02"])
    expect(readFirstBytes(Buffer.from(text, "latin1"))).toEqual({ kind: "plaintext" });
  for (const hex of ["1603010000", "160301000402000000", "16030100040100ffff", "1503010002"])
    expect(["tls", "plaintext"]).toContain(readFirstBytes(Buffer.from(hex, "hex")).kind);
  const endless = Buffer.concat([Buffer.from("1603014000" + "01003ffc", "hex"), Buffer.alloc(16 * 1024 - 9)]);
  expect(readFirstBytes(endless)).toEqual({ kind: "tls", alpn: [] });
});

test("a hello in thousands of tiny records is given up on after a few: it is read again with each segment", async () => {
  const tiny = inRecords(await hello(["istio"]), 1);
  // A record of one byte has six bytes.
  expect(readFirstBytes(tiny.subarray(0, 16 * 6 - 1))).toEqual({ kind: "incomplete" });
  expect(readFirstBytes(tiny.subarray(0, 16 * 6))).toEqual({ kind: "tls", alpn: [] });
});

test("mangled hellos give an answer, and never throw", async () => {
  const bytes = await hello(["istio"]);
  let seed = 3;
  const random = () => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
    return seed >>> 16;
  };
  const kinds = new Map<string, number>();
  for (let round = 0; round < 20_000; round++) {
    const mangled = Buffer.from(bytes.subarray(0, random() % 8 ? bytes.length : random() % bytes.length));
    for (let i = random() % 5; i >= 0 && mangled.length > 0; i--)
      mangled[random() % mangled.length] = random() & 255;
    const first = readFirstBytes(mangled);
    const kind = first.kind === "tls" ? `tls ${first.alpn.length > 0}` : first.kind;
    kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
  }
  expect([...kinds.keys()].sort()).toEqual(["incomplete", "plaintext", "tls false", "tls true"]);
});
