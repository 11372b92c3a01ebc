/** One packet of each kind that is no plain query of one name, though its name is the mesh's: none is answered. */
import { frameOf, queryMessage } from "../../src/names/query.ts";
import { frame6Of } from "./fuzzing.ts";

/** What the kernel counts it as; "none" when it is not looked at, since it is no DNS message over plain IP. */
type Reason = "none" | "passed-form" | "passed-malformed";

export interface BadPacket {
  kind: string;
  frame: Uint8Array;
  reason: Reason;
}

const NAME = "shop.demo.internal";
/** Where the question and what follows it begin in the message. */
const QUESTION = 12;
const TAIL = QUESTION + NAME.length + 2;
const OPT = TAIL + 4;

const plain = (): Uint8Array => new Uint8Array(queryMessage(NAME, "A"));

function joined(...parts: readonly (Uint8Array | readonly number[])[]): Uint8Array {
  return Uint8Array.from(parts.flatMap((part) => [...part]));
}

/** A frame with bytes put in behind the IPv4 header, whose lengths follow. */
function inIp(header: (frame: Uint8Array) => void, more: readonly number[] = []): Uint8Array {
  const frame = frameOf(plain());
  const longer = joined(frame.subarray(0, 34), more, frame.subarray(34));
  new DataView(longer.buffer).setUint16(16, longer.length - 14);
  header(longer);
  return longer;
}

/** The same by IPv6: an extension header before UDP. */
function inIp6(next: number, extension: readonly number[]): Uint8Array {
  const frame = frame6Of(plain());
  const longer = joined(frame.subarray(0, 54), extension, frame.subarray(54));
  new DataView(longer.buffer).setUint16(18, longer.length - 54);
  longer[20] = next;
  return longer;
}

/** Another message in a frame that is right. */
function message(change: (bytes: Uint8Array) => Uint8Array | undefined): Uint8Array {
  const bytes = plain();
  return frameOf(change(bytes) ?? bytes);
}

const byte = (at: number, value: number) =>
  message((bytes) => {
    bytes[at] = value;
    return undefined;
  });

/** The question for these bytes of a name, without EDNS(0). */
const question = (...name: readonly (Uint8Array | readonly number[])[]) =>
  message((bytes) => {
    const whole = joined(bytes.subarray(0, QUESTION), ...name, [0, 1, 0, 1]);
    whole[11] = 0;
    return whole;
  });
const labels = (length: number, count: number) =>
  Array.from({ length: count }, () => [length, ...new Array<number>(length).fill(97)]).flat();

const UDP = 17;

export function badPackets(): BadPacket[] {
  const list: [kind: string, frame: Uint8Array, reason: Reason][] = [
    ["IP options", inIp((frame) => (frame[14] = 0x46), [1, 1, 1, 0]), "none"],
    ["a first fragment", inIp((frame) => (frame[20] = 0x20)), "none"],
    ["a later fragment", inIp((frame) => (frame[21] = 1)), "none"],
    [
      "a VLAN tag",
      joined(frameOf(plain()).subarray(0, 12), [0x81, 0, 0, 5], frameOf(plain()).subarray(12)),
      "none",
    ],
    ["TCP", inIp((frame) => (frame[23] = 6)), "none"],
    ["another port", inIp((frame) => (frame[37] = 54)), "none"],
    ["an IP version that the frame's type is not", inIp((frame) => (frame[14] = 0x65)), "none"],
    ["an IP packet longer than the frame", inIp((frame) => (frame[17] = (frame[17] ?? 0) + 4)), "none"],
    ["a UDP length below its header's", inIp((frame) => (frame[39] = 7)), "none"],
    ["a UDP length that is not the packet's", inIp((frame) => (frame[39] = (frame[39] ?? 0) - 1)), "none"],
    ["a frame cut in the UDP header", frameOf(plain()).subarray(0, 38), "none"],
    ["a frame cut in the message", frameOf(plain()).subarray(0, 60), "passed-malformed"],
    ["a hop-by-hop header", inIp6(0, [UDP, 0, 1, 4, 0, 0, 0, 0]), "none"],
    ["a routing header", inIp6(43, [UDP, 0, 0, 0, 0, 0, 0, 0]), "none"],
    ["a fragment header", inIp6(44, [UDP, 0, 0, 1, 0, 0, 0, 7]), "none"],
    ["destination options", inIp6(60, [UDP, 0, 1, 4, 0, 0, 0, 0]), "none"],
    ["no message", frameOf(new Uint8Array()), "passed-malformed"],
    ["a header alone", frameOf(plain().subarray(0, 12)), "passed-malformed"],
    ["a response", byte(2, 0x81), "passed-form"],
    ["an update", byte(2, 0x28), "passed-form"],
    ["a query that is truncated", byte(2, 0x03), "passed-form"],
    ["an error as a query", byte(3, 2), "passed-form"],
    ["no question", byte(5, 0), "passed-form"],
    ["two questions", byte(5, 2), "passed-form"],
    ["256 questions", byte(4, 1), "passed-form"],
    ["a record in the answer", byte(7, 1), "passed-form"],
    ["a record in the authority", byte(9, 1), "passed-form"],
    ["two records behind", byte(11, 2), "passed-form"],
    ["class CHAOS", byte(TAIL + 3, 3), "passed-form"],
    [
      "TSIG",
      message((bytes) => {
        bytes[OPT + 2] = 250;
        return undefined;
      }),
      "passed-form",
    ],
    ["EDNS version 1", byte(OPT + 6, 1), "passed-form"],
    ["OPT with a name", byte(OPT, 1), "passed-form"],
    ["OPT longer than the message", byte(OPT + 10, 1), "passed-malformed"],
    ["a record behind that is cut", message((bytes) => bytes.subarray(0, -1)), "passed-malformed"],
    ["a record behind that is not counted", byte(11, 0), "passed-malformed"],
    ["a name that is compressed", question([0xc0, 0x0c]), "passed-malformed"],
    ["a name that ends in a pointer", question([4, 115, 104, 111, 112, 0xc0, 0x0c]), "passed-malformed"],
    ["a label of 64 bytes", question(labels(64, 1), [0]), "passed-malformed"],
    ["a name of 256 bytes", question(labels(50, 5), [0]), "passed-malformed"],
    ["a name of 128 labels", question(labels(1, 128), [0]), "passed-malformed"],
    ["a name without an end", message((bytes) => bytes.subarray(0, QUESTION + 8)), "passed-malformed"],
    ["a name and nothing behind", message((bytes) => bytes.subarray(0, TAIL)), "passed-malformed"],
    [
      "a message over 512 bytes",
      message((bytes) => {
        const option = new Array<number>(500).fill(0);
        const whole = joined(bytes, [0, 12, 1, 0xf0], option.slice(4));
        new DataView(whole.buffer).setUint16(OPT + 9, 500);
        return whole;
      }),
      "passed-form",
    ],
  ];
  return list.map(([kind, frame, reason]) => ({ kind, frame, reason }));
}
