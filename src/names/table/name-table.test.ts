import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { hashOf } from "./name-table.ts";

test("the hash is the sum of byte i times M^i, mod 2^64", () => {
  for (let round = 0; round < 500; round++) {
    const multiplier = round === 0 ? 0xffffffffffffffffn : randomBytes(8).readBigUInt64LE() | 1n;
    const wire = new Uint8Array(randomBytes(1 + (round % 254)));
    if (round < 10) wire.fill(255);
    let sum = 0n;
    for (let i = wire.length - 1; i >= 0; i--)
      sum = BigInt.asUintN(64, sum * multiplier + BigInt(wire[i] ?? 0));
    expect(hashOf(wire, multiplier)).toBe(sum);
  }
});
