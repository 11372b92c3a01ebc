/** The pinned set of live policies, for readers without an agent: the tunnel, `kmesh explain`, `kmesh status`. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { BpfMap } from "../kernel/maps.ts";
import type { Inbound } from "../mesh/inbound.ts";
import { inboundText, parseInbound } from "../mesh/inbound-text.ts";
import { type Judge, judgeOf } from "./decide.ts";

/** The path of a map that outlives layouts. */
export function keptInboundPin(bpffs: string, name: KeptInboundMap): string {
  return join(bpffs, "inbound", "keep", name);
}

export const KEPT_INBOUND_MAPS = [
  "inbound_listeners",
  "inbound_refusals",
  "inbound_recent",
  "inbound_number",
  "inbound_text",
] as const;
export type KeptInboundMap = (typeof KEPT_INBOUND_MAPS)[number];

/** The pinned content: the policies, and the number under which the kernel counts each policy's refusals. */
export interface PinnedSet {
  inbound: Inbound;
  numbers: ReadonlyMap<string, number>;
  /** The slot of the tables that were filled from it, 0 or 1; undefined: whoever wrote it did not say. */
  slot?: number | undefined;
  /** Whether established connections that it refuses are cut. */
  enforcesEstablished?: boolean;
}

/** Length of the text (4 bytes), slot + 1 or 0, flags, and two bytes that are 0. */
const HEADER = 8;
const SLOT_AT = 4;
const FLAGS_AT = 5;
const ENFORCES_ESTABLISHED = 1;
const PIECE = 4096;
const SLOT = new Uint8Array(4);

/** An inner map that holds the set. The caller closes it. */
export function encodeSet({ inbound, numbers, slot, enforcesEstablished }: PinnedSet): BpfMap {
  const text = new TextEncoder().encode(`${JSON.stringify([...numbers])}\n${inboundText(inbound)}`);
  const pieces = Math.ceil((HEADER + text.length) / PIECE);
  const bytes = new Uint8Array(new ArrayBuffer(pieces * PIECE));
  new DataView(bytes.buffer).setUint32(0, text.length);
  bytes[SLOT_AT] = slot === undefined ? 0 : slot + 1;
  bytes[FLAGS_AT] = enforcesEstablished ? ENFORCES_ESTABLISHED : 0;
  bytes.set(text, HEADER);
  const innerMapFlag = 4096;
  const map = BpfMap.create({
    name: "inbound_text",
    type: "array",
    keySize: 4,
    valueSize: PIECE,
    maxEntries: pieces,
    flags: innerMapFlag,
  });
  const keys = new Uint8Array(Uint32Array.from({ length: pieces }, (_, i) => i).buffer);
  map.updateBatch(keys, bytes, pieces);
  return map;
}

/** Throws RangeError for another kind of map. */
function decodeSet(map: BpfMap): PinnedSet {
  const { values, count } = map.entries();
  if (count === 0) throw new RangeError("the pinned policies are empty");
  const header = new DataView(values.buffer, values.byteOffset);
  const length = header.getUint32(0);
  const slot = header.getUint8(SLOT_AT);
  const text = new TextDecoder().decode(values.subarray(HEADER, HEADER + length));
  const end = text.indexOf("\n");
  const numbers: unknown = JSON.parse(text.slice(0, Math.max(end, 0)) || "[]");
  return {
    numbers: new Map(Array.isArray(numbers) ? (numbers as [string, number][]) : []),
    inbound: parseInbound(text.slice(end + 1)),
    slot: slot === 0 ? undefined : slot - 1,
    enforcesEstablished: (header.getUint8(FLAGS_AT) & ENFORCES_ESTABLISHED) !== 0,
  };
}

/** Reads the pinned set, and again when it was replaced. Owns its descriptors. */
export class PolicySet {
  readonly #outer: BpfMap;
  #id = 0;
  #set: PinnedSet | undefined;

  constructor(outer: BpfMap) {
    this.#outer = outer;
  }

  /** The id of the set that was read last. */
  get id(): number {
    return this.#id;
  }

  /** The live set; undefined while none was published. Throws RangeError, or KernelError when it can't be read. */
  read(): PinnedSet | undefined {
    for (let attempt = 0; ; attempt++) {
      const id = new Uint32Array(new ArrayBuffer(4));
      if (!this.#outer.lookup(SLOT, new Uint8Array(id.buffer))) return undefined;
      if (id[0] === this.#id) return this.#set;
      try {
        using map = BpfMap.fromId(id[0] ?? 0);
        this.#set = decodeSet(map);
        this.#id = id[0] ?? 0;
        return this.#set;
      } catch (error) {
        // The set was replaced meanwhile: read the new one.
        if (attempt >= 3) throw error;
      }
    }
  }

  /** The judge of the live set; one lookup if it did not change. Undefined and throws like `read`. */
  current(): Judge | undefined {
    const set = this.read();
    return set && judgeOf(set.inbound);
  }

  close(): void {
    this.#outer.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Undefined when no policies are pinned below this folder. The caller closes it. Throws KernelError. */
export function openPolicySet(bpffs: string): PolicySet | undefined {
  const pin = keptInboundPin(bpffs, "inbound_text");
  return existsSync(pin) ? new PolicySet(BpfMap.fromPin(pin)) : undefined;
}

/**
 * Offers the tunnel's listening TCP sockets: new connections to ports where mutual TLS is possible arrive there, with the
 * address and port that the peer asked for. `fd4` listens on an IPv4 address, `fd6` on an IPv6 one. The kernel withdraws a
 * socket that is closed. Gives false when no inbound tables are pinned (yet). Throws KernelError.
 */
export function offerListeners(bpffs: string, fd4: number | undefined, fd6: number | undefined): boolean {
  const pin = keptInboundPin(bpffs, "inbound_listeners");
  if (!existsSync(pin)) return false;
  using map = BpfMap.fromPin(pin);
  for (const [index, fd] of [fd4, fd6].entries()) {
    if (fd === undefined) continue;
    const key = new Uint8Array(Uint32Array.of(index).buffer);
    map.update(key, new Uint8Array(BigUint64Array.of(BigInt(fd)).buffer));
  }
  return true;
}
