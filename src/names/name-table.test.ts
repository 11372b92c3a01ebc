import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { ERRNO, KernelError } from "../kernel/error.ts";
import { BpfMap } from "../kernel/maps.ts";
import { BpfObject } from "../kernel/object.ts";
import { asset } from "../runtime/assets.ts";
import * as layout from "./layout.gen.ts";
import { hashOf, type NameMaps, NameTable } from "./name-table.ts";

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

test.skipIf(process.getuid?.() !== 0)("adds again what the hash did not take", () => {
  using object = BpfObject.open(asset("names.compat.bpf.o"), "names");
  object.load();
  const maps = Object.fromEntries(
    Object.keys(layout.maps).map((name) => [name, object.map(name)]),
  ) as unknown as NameMaps;
  const table = new NameTable(maps);
  const changes = ["a.example", "*.b.example"].map(
    (name) => [name, { kind: "addresses" as const, name, addresses: ["10.0.0.1"] }] as const,
  );
  const { updateBatch } = BpfMap.prototype;
  try {
    BpfMap.prototype.updateBatch = () => {
      throw new KernelError("bpf_map_update_batch", ERRNO.ENOMEM, "names");
    };
    expect(() => table.apply(changes)).toThrow("ENOMEM");
    BpfMap.prototype.updateBatch = updateBatch;
    expect(table.apply(changes).writes).toBe(2);
    const other = new NameTable(maps);
    expect([...other.names()].sort()).toEqual(["*.b.example", "a.example"]);
    other.close();
  } finally {
    BpfMap.prototype.updateBatch = updateBatch;
    table.close();
    for (const map of Object.values(maps)) map.close();
  }
});
