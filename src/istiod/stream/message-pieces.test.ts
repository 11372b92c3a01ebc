import { expect, test } from "bun:test";
import { StreamDecoder } from "@grpc/grpc-js/build/src/stream-decoder.js";
import { dropPiecesOfMessages } from "./message-pieces.ts";

function framed(text: string): Buffer {
  const head = Buffer.alloc(5);
  head.writeUInt32BE(text.length, 1);
  return Buffer.concat([head, Buffer.from(text)]);
}

/** The pieces that a decoder keeps. Absent where gRPC names them otherwise: they would be kept again. */
function pieces(decoder: StreamDecoder): unknown[] | undefined {
  return (decoder as unknown as { readPartialMessage?: unknown[] }).readPartialMessage;
}

test("the pieces of a complete message are dropped, those of an incomplete one stay", () => {
  dropPiecesOfMessages();
  const decoder = new StreamDecoder(-1);
  const bytes = Buffer.concat([framed("first"), framed("second")]);
  const read: string[] = [];
  for (let at = 0; at < bytes.length; at += 3)
    for (const message of decoder.write(bytes.subarray(at, at + 3))) {
      read.push(message.subarray(5).toString());
      // The second message begins in the piece that ends the first.
      if (read.length === 2) expect(pieces(decoder)).toEqual([]);
    }
  expect(read).toEqual(["first", "second"]);
  expect(decoder.write(framed("whole"))).toHaveLength(1);
  expect(pieces(decoder)).toEqual([]);
  decoder.write(framed("part").subarray(0, 7));
  expect(pieces(decoder)).toHaveLength(1);
});
