/** Runs a DNS query through the program names_explain. */
import { type DecodedPacket, decode, encode, type RecordType } from "dns-packet";
import type { BpfProgram } from "../kernel/object.ts";
import { eventOf } from "./counts.ts";

/** Record types that `kmesh resolve` accepts. */
export const TYPES = ["A", "AAAA", "PTR", "HTTPS", "SVCB", "MX", "TXT", "SRV", "SOA", "NS", "ANY"] as const;
export type QueryType = (typeof TYPES)[number];

const ETHERNET = 14;
const IP = 20;
const UDP = 8;
const HEADERS = ETHERNET + IP + UDP;
const TC_ACT_OK = 0;
/** Types without a name in dns-packet. */
const UNNAMED: Readonly<Partial<Record<QueryType, number>>> = { HTTPS: 65, SVCB: 64 };

export interface KernelAnswer {
  /** The counted event: "answered-a", "passed-unknown", ... */
  event: string;
  /** The matching entry; undefined without one. */
  entry: number | undefined;
  /** Absent when the query passes. */
  response?: DecodedPacket;
}

/** The message of a query with recursion desired, and EDNS(0) as resolvers send it. */
export function queryMessage(name: string, type: QueryType): Uint8Array {
  const number = UNNAMED[type];
  const message = encode({
    type: "query",
    id: 1,
    flags: 0x100,
    questions: [{ type: (number === undefined ? type : "A") as RecordType, name }],
    additionals: [
      {
        type: "OPT",
        name: ".",
        udpPayloadSize: 1232,
        extendedRcode: 0,
        ednsVersion: 0,
        flags: 0,
        flag_do: false,
        options: [],
      },
    ],
  });
  if (number !== undefined) message.writeUInt16BE(number, message.length - 11 - 4);
  return message;
}

/** An Ethernet frame with a DNS message from 127.0.0.1:5353 to 127.0.0.1:53. */
export function frameOf(message: Uint8Array): Uint8Array {
  const frame = new Uint8Array(new ArrayBuffer(HEADERS + message.length));
  const view = new DataView(frame.buffer);
  view.setUint16(12, 0x0800);
  frame[ETHERNET] = 0x45;
  view.setUint16(ETHERNET + 2, IP + UDP + message.length);
  frame.set([64, 17], ETHERNET + 8);
  frame.set([127, 0, 0, 1, 127, 0, 0, 1], ETHERNET + 12);
  view.setUint16(ETHERNET + IP, 5353);
  view.setUint16(ETHERNET + IP + 2, 53);
  view.setUint16(ETHERNET + IP + 4, UDP + message.length);
  frame.set(message, HEADERS);
  return frame;
}

/** The kernel's answer. Runs the pinned program; counts nothing. Throws KernelError. */
export function askKernel(explain: BpfProgram, message: Uint8Array): KernelAnswer {
  const { result, packet, cb } = explain.testPacket(frameOf(message));
  const entry = cb[1] ?? 0;
  return {
    event: eventOf(cb[0] ?? 0),
    entry: entry === 0 ? undefined : entry - 1,
    ...(result === TC_ACT_OK ? { response: decode(Buffer.from(packet.subarray(HEADERS))) } : {}),
  };
}
