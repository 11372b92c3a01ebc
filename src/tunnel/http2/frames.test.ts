import { expect, test } from "bun:test";
import {
  ConnectionFault,
  ERROR,
  encodeFrame,
  encodeNumber,
  encodeSettings,
  FLAG,
  FRAME,
  FrameReader,
  PREFACE,
} from "./frames.ts";

/** What a reader passes on, DATA of one stream put together. */
function record(preface: boolean) {
  const seen: string[] = [];
  const reader = new FrameReader(
    {
      frame: (type, flags, stream, payload) =>
        seen.push(`${type}/${flags}/${stream}/${payload.toString("hex")}`),
      headers: (stream, block, end) => seen.push(`headers/${stream}/${block}/${end}`),
      data: (stream, bytes, window, end) => {
        const last = seen.at(-1)?.split("/");
        if (last?.[0] === "data" && last[1] === String(stream) && last[4] === "false")
          seen[seen.length - 1] = `data/${stream}/${last[2]}${bytes}/${Number(last[3]) + window}/${end}`;
        else seen.push(`data/${stream}/${bytes}/${window}/${end}`);
      },
    },
    preface,
  );
  return { seen, reader };
}

const stream = Buffer.concat([
  PREFACE,
  encodeSettings([[4, 65_536]]),
  encodeFrame(FRAME.headers, FLAG.padded | FLAG.priority, 1, Buffer.from("\x02\0\0\0\0\x10ab--")),
  encodeFrame(FRAME.continuation, FLAG.endHeaders, 1, Buffer.from("cd")),
  encodeFrame(FRAME.data, FLAG.padded, 1, Buffer.from("\x03hello...")),
  encodeFrame(FRAME.data, FLAG.endStream, 1, Buffer.from(" world")),
  encodeFrame(FRAME.data, FLAG.endStream | FLAG.padded, 3, Buffer.from("\0")),
  encodeNumber(FRAME.windowUpdate, 0, 77),
]);
const expected = [
  `4/0/0/000400010000`,
  "headers/1/abcd/false",
  "data/1/hello world/15/true",
  "data/3//1/true",
  "8/0/0/0000004d",
];

test("frames come out the same, however the bytes are cut", () => {
  for (let size = 1; size < stream.length + 1; size++) {
    const { seen, reader } = record(true);
    for (let at = 0; at < stream.length; at += size) reader.push(Buffer.from(stream.subarray(at, at + size)));
    expect(seen).toEqual(expected);
  }
});

test("DATA of one stream that comes at once is passed on in one piece", () => {
  const pieces: string[] = [];
  const reader = new FrameReader(
    {
      frame: (type) => pieces.push(`frame ${type}`),
      headers: () => {},
      data: (stream, bytes, window, end) => pieces.push(`${stream} ${bytes} ${window} ${end}`),
    },
    false,
  );
  const data = (stream: number, text: string, flags = 0) =>
    encodeFrame(FRAME.data, flags, stream, Buffer.from(text));
  reader.push(
    Buffer.concat([
      encodeSettings([]),
      data(1, "one "),
      data(1, "\x02two ..", FLAG.padded),
      data(3, "other"),
      data(1, "three "),
      data(1, ""),
      data(1, "four "),
      encodeNumber(FRAME.windowUpdate, 0, 1),
      data(1, "\x01five.", FLAG.padded),
      data(1, " six", FLAG.endStream),
      data(3, "more").subarray(0, 11),
    ]),
  );
  reader.push(Buffer.from("re"));
  expect(pieces).toEqual([
    "frame 4",
    "1 one two  11 false",
    "3 other 5 false",
    "1 three  6 false",
    "1  0 false",
    "1 four  5 false",
    "frame 8",
    "1 five six 10 true",
    "3 mo 2 false",
    "3 re 2 false",
  ]);
});

test("faults end the connection with their code", () => {
  const settings = encodeSettings([]);
  const part = encodeFrame(FRAME.headers, 0, 1, Buffer.from("a"));
  const cases: [Buffer, number][] = [
    [encodeFrame(FRAME.ping, 0, 0, Buffer.alloc(8)), ERROR.protocol],
    [Buffer.concat([settings, Buffer.from([0, 64, 1, 0, 0, 0, 0, 0, 1])]), ERROR.frameSize],
    [Buffer.concat([settings, part, encodeFrame(FRAME.ping, 0, 0, Buffer.alloc(8))]), ERROR.protocol],
    [Buffer.concat([settings, part, encodeFrame(FRAME.continuation, 4, 3, Buffer.alloc(1))]), ERROR.protocol],
    [Buffer.concat([settings, encodeFrame(FRAME.continuation, 4, 1, Buffer.alloc(1))]), ERROR.protocol],
    [Buffer.concat([settings, encodeFrame(FRAME.data, 0, 0, Buffer.alloc(1))]), ERROR.protocol],
    [Buffer.concat([settings, encodeFrame(FRAME.data, FLAG.padded, 1, Buffer.from([9, 0]))]), ERROR.protocol],
    [
      Buffer.concat([settings, encodeFrame(FRAME.headers, FLAG.priority, 1, Buffer.from([9, 0]))]),
      ERROR.protocol,
    ],
    // A flood of CONTINUATION frames, empty ones too.
    [
      Buffer.concat([
        settings,
        part,
        ...Array(20).fill(encodeFrame(FRAME.continuation, 0, 1, Buffer.alloc(0))),
      ]),
      ERROR.enhanceYourCalm,
    ],
    [
      Buffer.concat([
        settings,
        part,
        ...Array(3).fill(encodeFrame(FRAME.continuation, 0, 1, Buffer.alloc(16_384))),
      ]),
      ERROR.enhanceYourCalm,
    ],
  ];
  for (const [bytes, code] of cases) {
    let fault: unknown;
    try {
      record(false).reader.push(bytes);
    } catch (error) {
      fault = error;
    }
    expect(fault).toBeInstanceOf(ConnectionFault);
    expect((fault as ConnectionFault).code).toBe(code);
  }
  expect(() => record(true).reader.push(Buffer.from("GET / HTTP/1.1\r\n"))).toThrow(/does not speak HTTP/);
});

test("mangled frames give frames or ConnectionFault, and nothing else", () => {
  let seed = 7;
  const random = () => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
    return seed >>> 16;
  };
  let whole = 0;
  for (let round = 0; round < 5_000; round++) {
    const bytes = Buffer.from(stream);
    for (let i = random() % 4; i >= 0; i--) bytes[random() % bytes.length] = random() & 255;
    const { reader } = record(true);
    try {
      for (let at = 0; at < bytes.length; at += 13) reader.push(bytes.subarray(at, at + 13));
      whole++;
    } catch (error) {
      expect(error).toBeInstanceOf(ConnectionFault);
    }
  }
  expect(whole).toBeGreaterThan(100);
  expect(whole).toBeLessThan(4_900);
});
