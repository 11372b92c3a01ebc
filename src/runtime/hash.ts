import { createHash } from "node:crypto";

interface BunHash {
  hash: { xxHash3(bytes: Uint8Array): bigint };
}

const bun = (globalThis as unknown as { Bun?: BunHash }).Bun;

/**
 * A 64-bit hash that detects changed bytes. It differs between runtimes: compare hashes of one process only. It is
 * not safe against an adversary.
 */
export const hash64: (bytes: Uint8Array) => bigint =
  bun === undefined
    ? (bytes) => createHash("sha1").update(bytes).digest().readBigUInt64LE(0)
    : (bytes) => bun.hash.xxHash3(bytes);
