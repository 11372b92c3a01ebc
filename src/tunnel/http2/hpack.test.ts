import { expect, test } from "bun:test";
import { decodeHuffman, encodeHeaders, type Headers, HpackDecoder, HpackError } from "./hpack.ts";

const hex = (text: string) => Buffer.from(text.replaceAll(/\s/g, ""), "hex");

test("decodes the requests of RFC 7541 C.4 with one table, Huffman strings and all", () => {
  const decoder = new HpackDecoder();
  const common: Headers = [
    [":method", "GET"],
    [":scheme", "http"],
    [":path", "/"],
    [":authority", "www.example.com"],
  ];
  expect(decoder.decode(hex("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff"))).toEqual(common);
  expect(decoder.decode(hex("8286 84be 5886 a8eb 1064 9cbf"))).toEqual([
    ...common,
    ["cache-control", "no-cache"],
  ]);
  expect(decoder.decode(hex("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf"))).toEqual([
    [":method", "GET"],
    [":scheme", "https"],
    [":path", "/index.html"],
    [":authority", "www.example.com"],
    ["custom-key", "custom-value"],
  ]);
});

test("evicts as the responses of RFC 7541 C.6 ask, whose table holds 256 bytes", () => {
  const decoder = new HpackDecoder();
  const blocks = [
    "3fe101 4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
    "4883 640e ffc1 c0bf",
    "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
  ].map((block) => decoder.decode(hex(block)));
  expect(blocks[1]).toEqual([
    [":status", "307"],
    ["cache-control", "private"],
    ["date", "Mon, 21 Oct 2013 20:13:21 GMT"],
    ["location", "https://www.example.com"],
  ]);
  expect(blocks[2]?.at(-1)).toEqual([
    "set-cookie",
    "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
  ]);
});

test("what the encoder writes comes back", () => {
  const headers: Headers = [
    [":method", "CONNECT"],
    [":authority", "10.1.2.3:8080"],
    ["baggage", "k8s.cluster.name=Kubernetes,".repeat(40)],
    [":status", "503"],
  ];
  expect(new HpackDecoder().decode(encodeHeaders(headers))).toEqual(headers);
});

test("refuses what breaks the format", () => {
  for (const [block, reason] of [
    ["80", /no table entry 0/],
    ["bf", /no table entry 63/],
    ["7fffffffff7f", /too large/],
    ["00", /string is missing/],
    ["0005616263", /cut off/],
    ["3fe21f", /larger than allowed/],
    ["8220", /size changes within/],
  ] as const)
    expect(() => new HpackDecoder().decode(hex(block))).toThrow(reason);
  expect(() => decodeHuffman(hex("ff ff ff fc"))).toThrow(/EOS/);
  expect(() => decodeHuffman(hex("00 00 ff ff"))).toThrow(HpackError);
  expect(() => decodeHuffman(hex("ff"))).toThrow(/ends within/);
  // One entry of 4 KB in the table, named 100 times in 100 bytes: a header bomb.
  const decoder = new HpackDecoder();
  decoder.decode(Buffer.concat([hex("40 01 61 7f a11e"), Buffer.alloc(4000, 0x62)]));
  expect(() => decoder.decode(Buffer.alloc(100, 0xbe))).toThrow(/too long/);
});

test("random bytes give headers or HpackError, and nothing else", () => {
  let seed = 1;
  const random = () => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
    return seed >>> 16;
  };
  let decoded = 0;
  for (let round = 0; round < 20_000; round++) {
    const block = Buffer.from(Array.from({ length: random() % 40 }, () => random() & 255));
    try {
      new HpackDecoder().decode(block);
      decoded++;
    } catch (error) {
      expect(error).toBeInstanceOf(HpackError);
    }
  }
  expect(decoded).toBeGreaterThan(100);
});
