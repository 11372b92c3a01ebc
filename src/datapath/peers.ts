/**
 * Callers by mutual TLS as the kernel counts them (bpf/maps/caller.h): the keys that stand for them in place of an address, and
 * the map that says who they are.
 */
import { createHash } from "node:crypto";
import { ERRNO, KernelError } from "../kernel/error.ts";
import { fixedText } from "../kernel/info.ts";
import type { BpfMap } from "../kernel/maps.ts";
import { addressBytes, formatAddress, parseAddress } from "../mesh/address.ts";
import * as layout from "./tables/layout.gen.ts";

/** What a caller has proved, and how. */
export interface Proof {
  by: "istio" | "hbone";
  /** A SPIFFE id. */
  principal: string;
}

/** A caller by mutual TLS. */
export interface Peer {
  /** Canonical; "::" of all others. */
  address: string;
  /** "istio spiffe://...", or the way alone of all others. */
  text: string;
}

const VALUE = layout.peer;
const ROOM = VALUE.fields.text.size * VALUE.fields.text.count - 1;
/** ff00::/64: no packet comes from there (RFC 4291, 2.7). */
const FIRST_BYTE = 0xff;
const PREFIX = "ff00::";
/** The last byte of a key without a hash. */
const OTHERS = { istio: 1, hbone: 2 } as const satisfies Record<Proof["by"], number>;

/** The key of a caller: 16 bytes, the same in every process. */
export function peerKey(address: string, { by, principal }: Proof): Uint8Array {
  const key = new Uint8Array(new ArrayBuffer(16));
  key[0] = FIRST_BYTE;
  key.set(createHash("sha256").update(`${address} ${by} ${principal}`).digest().subarray(0, 8), 8);
  return key;
}

/** The key of all that find no room, by the way. */
export function otherPeersKey(by: Proof["by"]): Uint8Array {
  const key = new Uint8Array(new ArrayBuffer(16));
  key[0] = FIRST_BYTE;
  key[15] = OTHERS[by];
  return key;
}

/** Inserts a caller, unless it is there. False: it finds no room. Throws KernelError, and RangeError for no address. */
export function putPeer(map: BpfMap, key: Uint8Array, address: string, { by, principal }: Proof): boolean {
  const text = new TextEncoder().encode(`${by} ${principal}`);
  // The text becomes a member of a workload's (src/telemetry/carried.ts).
  if (text.length > ROOM || /[;\s\p{Cc}]/u.test(principal)) return false;
  const value = new Uint8Array(new ArrayBuffer(VALUE.size));
  value.set(addressBytes(address), VALUE.fields.address.offset);
  value.set(text, VALUE.fields.text.offset);
  try {
    map.update(key, value, "new");
    return true;
  } catch (error) {
    if (!(error instanceof KernelError)) throw error;
    if (error.errno === ERRNO.EEXIST) return true;
    if (error.errno === ERRNO.E2BIG) return false;
    throw error;
  }
}

/** Whether the text of an address is such a key. */
export function isPeerKey(address: string): boolean {
  return address.startsWith(PREFIX);
}

/** Who a key, as the text of an address, stands for. "" as text: nobody knows any more. Throws KernelError. */
export function findPeer(map: BpfMap, key: string): Peer {
  for (const by of ["istio", "hbone"] as const)
    if (key === `${PREFIX}${OTHERS[by]}`) return { address: "::", text: by };
  const bytes = parseAddress(key);
  const value = new Uint8Array(new ArrayBuffer(VALUE.size));
  if (!bytes || !map.lookup(bytes, value)) return { address: "::", text: "" };
  const { address, text } = VALUE.fields;
  return {
    address: formatAddress(value.subarray(address.offset, address.offset + 16)),
    text: fixedText(value.subarray(text.offset, text.offset + text.size * text.count)),
  };
}
