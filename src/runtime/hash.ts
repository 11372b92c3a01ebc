import { createHash } from "node:crypto";

interface BunHash {
  hash: { xxHash32(bytes: Uint8Array, seed: number): number };
}

const bun = (globalThis as unknown as { Bun?: BunHash }).Bun;
const SEEDS = [0x9e3779b1, 0x85ebca77] as const;

/**
 * A 53-bit hash that detects changed bytes: a number, because a hundred thousand BigInts would be as many objects. It differs
 * between runtimes: compare hashes of one process only. It is not safe against an adversary.
 */
export const hash53: (bytes: Uint8Array) => number =
  bun === undefined
    ? (bytes) => createHash("sha1").update(bytes).digest().readUIntLE(0, 6)
    : (bytes) => bun.hash.xxHash32(bytes, SEEDS[0]) * 2 ** 21 + (bun.hash.xxHash32(bytes, SEEDS[1]) >>> 11);
