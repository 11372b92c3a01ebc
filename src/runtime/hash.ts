import { createHash } from "node:crypto";

interface BunHash {
  hash: { xxHash3(bytes: Uint8Array): bigint };
}

const bun = (globalThis as unknown as { Bun?: BunHash }).Bun;

/**
 * 64 bits that tell whether bytes changed. Differs between runtimes: compare only within one process, and never trust
 * it against an adversary.
 */
export const hash64: (bytes: Uint8Array) => bigint =
  bun === undefined
    ? (bytes) => createHash("sha1").update(bytes).digest().readBigUInt64LE(0)
    : (bytes) => bun.hash.xxHash3(bytes);
