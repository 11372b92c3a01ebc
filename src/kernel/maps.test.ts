import { afterAll, describe, expect, test } from "bun:test";
import { readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { BPFFS, ensureBpffs, listPins, unpin } from "./bpffs.ts";
import { KernelError } from "./error.ts";
import { BpfMap, FLAG, type MapSpec } from "./maps.ts";
import { BpfObject } from "./object.ts";

const isRoot = process.getuid?.() === 0;
const pins = join(BPFFS, `kmesh-test-maps-${process.pid}`);
const SAMPLE = join(import.meta.dir, "../../dist/test/sample.bpf.o");

function u32(...numbers: number[]): Uint8Array<ArrayBuffer> {
  return new Uint8Array(new Uint32Array(numbers).buffer);
}

function code(action: () => unknown): string {
  try {
    action();
  } catch (error) {
    if (error instanceof KernelError) return error.code;
    throw error;
  }
  return "no error";
}

describe.skipIf(!isRoot)("BpfMap", () => {
  const opened: BpfMap[] = [];
  const create = (spec: Partial<MapSpec>): BpfMap => {
    const map = BpfMap.create({
      name: "t",
      type: "hash",
      keySize: 4,
      valueSize: 8,
      maxEntries: 16,
      ...spec,
    });
    opened.push(map);
    return map;
  };

  afterAll(() => {
    for (const map of opened) map.close();
    unpin(pins);
  });

  test("tells what it is", () => {
    const map = create({ name: "fifteen_letters", flags: FLAG.noPrealloc });
    expect(map.info).toEqual({
      id: map.info.id,
      name: "fifteen_letters",
      type: "hash",
      keySize: 4,
      valueSize: 8,
      maxEntries: 16,
      flags: 1,
    });
    const again = BpfMap.fromId(map.info.id);
    opened.push(again);
    expect(again.info).toEqual(map.info);
    expect(() => create({ name: "sixteen__letters" })).toThrow("over 15 bytes");
  });

  test("looks up, writes and deletes by the mode asked for", () => {
    const map = create({});
    const value = new Uint8Array(8);
    expect(map.lookup(u32(1), value)).toBeFalse();
    expect(code(() => map.update(u32(1), u32(7, 8), "exists"))).toBe("ENOENT");
    map.update(u32(1), u32(7, 8), "new");
    expect(code(() => map.update(u32(1), u32(7, 8), "new"))).toBe("EEXIST");
    expect(map.lookup(u32(1), value)).toBeTrue();
    expect(value).toEqual(u32(7, 8));
    expect(map.delete(u32(1))).toBeTrue();
    expect(map.delete(u32(1))).toBeFalse();
  });

  test("says when it is full, and by its name", () => {
    const map = create({ name: "small", maxEntries: 1 });
    map.update(u32(1), u32(1, 1));
    expect(() => map.update(u32(2), u32(1, 1))).toThrow(
      "bpf_map_update_elem(small): E2BIG: full at 1 entries",
    );
  });

  test("never lets the kernel write past a buffer", () => {
    const map = create({});
    expect(() => map.lookup(u32(1), new Uint8Array(7))).toThrow(RangeError);
    expect(() => map.lookup(new Uint8Array(3), new Uint8Array(8))).toThrow(RangeError);
    expect(() => map.updateBatch(u32(1, 2), new Uint8Array(15), 2)).toThrow(RangeError);
    const perCpu = create({ type: "percpu-array", valueSize: 4 });
    expect(perCpu.valueBytes % 8).toBe(0);
    expect(() => perCpu.lookup(u32(0), new Uint8Array(4))).toThrow(RangeError);
    expect(perCpu.lookup(u32(0), new Uint8Array(perCpu.valueBytes))).toBeTrue();
  });

  test.each([
    ["hash", FLAG.noPrealloc],
    ["lru-hash", 0],
    ["array", FLAG.mmapable],
  ] as const)("reads back all that a batch wrote: %s", (type, flags) => {
    const count = 70_000;
    const map = create({ type, flags, maxEntries: type === "lru-hash" ? count * 2 : count });
    const keys = u32(...Array(count).keys());
    const values = new Uint8Array(new BigUint64Array(count).map((_, index) => BigInt(index) * 3n).buffer);
    map.updateBatch(keys, values, count);

    const entries = map.entries();
    expect(entries.count).toBe(count);
    const foundKeys = new Uint32Array(entries.keys.buffer, entries.keys.byteOffset, count);
    const foundValues = new BigUint64Array(entries.values.buffer, entries.values.byteOffset, count);
    expect(foundKeys.every((key, index) => foundValues[index] === BigInt(key) * 3n)).toBeTrue();
    expect(new Set(foundKeys).size).toBe(count);
  });

  test("finds the longest prefix, and lists all", () => {
    const map = create({ type: "lpm-trie", keySize: 8, flags: FLAG.noPrealloc });
    const key = (bits: number, ...address: number[]): Uint8Array => Uint8Array.of(...u32(bits), ...address);
    map.updateBatch(Uint8Array.of(...key(8, 10, 0, 0, 0), ...key(16, 10, 1, 0, 0)), u32(1, 0, 2, 0), 2);
    const value = new Uint8Array(8);
    expect(map.lookup(key(32, 10, 1, 9, 9), value)).toBeTrue();
    expect(value).toEqual(u32(2, 0));
    expect(map.lookup(key(32, 11, 1, 9, 9), value)).toBeFalse();
    expect(map.entries().count).toBe(2);
    expect(map.delete(key(8, 10, 0, 0, 0))).toBeTrue();
  });

  test("does one by one what has no batch", () => {
    // A program array has none of the batch calls, on any kernel.
    const object = BpfObject.open(readFileSync(SAMPLE), "sample");
    object.skipProgram("unverifiable");
    object.load();
    const program = object.program("read_chunk");
    const map = create({ type: "prog-array", valueSize: 4 });
    map.updateBatch(u32(2, 5), u32(program.fd, program.fd), 2);
    const { keys, values, count } = map.entries();
    expect(count).toBe(2);
    expect(keys).toEqual(u32(2, 5));
    expect(values).toEqual(u32(program.info.id, program.info.id));
    program.close();
    object.close();
  });

  test("mixes inner arrays of several sizes", () => {
    const inner = (maxEntries: number): BpfMap =>
      create({ name: "inner", type: "array", maxEntries, flags: FLAG.mmapable | FLAG.innerMap });
    const small = inner(16);
    const large = inner(4096);
    const outer = create({ type: "array-of-maps", valueSize: 4, maxEntries: 4, inner: small });
    outer.update(u32(0), u32(small.fd));
    outer.update(u32(1), u32(large.fd));
    const value = new Uint8Array(4);
    expect(outer.lookup(u32(1), value)).toBeTrue();
    expect(value).toEqual(u32(large.info.id));
    expect(outer.lookup(u32(2), value)).toBeFalse();
  });

  test("shares memory: a store is there for look-ups, and the other way round", () => {
    // 12 bytes: elements lie 16 apart.
    const map = create({ type: "array", valueSize: 12, maxEntries: 1000, flags: FLAG.mmapable });
    const memory = map.mmap();
    expect(memory.byteLength).toBe(16_000);
    new BigUint64Array(memory)[2 * 999] = 0x1122334455667788n;
    const value = new Uint8Array(12);
    map.lookup(u32(999), value);
    expect(value).toEqual(u32(0x55667788, 0x11223344, 0));
    map.update(u32(3), u32(1, 2, 3));
    expect(new Uint32Array(memory, 48, 4)).toEqual(new Uint32Array([1, 2, 3, 0]));
    // The mapping outlives the descriptor.
    map.close();
    Bun.gc(true);
    expect(new Uint32Array(memory, 48, 1)[0]).toBe(1);
    expect(code(() => create({}).mmap())).not.toBe("no error");
  });

  test("is pinned, found again, and outlives its descriptor", () => {
    ensureBpffs(join(pins, "sub"));
    const path = join(pins, "sub/table");
    const map = create({});
    map.update(u32(1), u32(4, 2));
    map.pin(path);
    expect(code(() => map.pin(path))).toBe("EEXIST");
    expect(listPins(pins)).toEqual([path]);
    map.close();
    map.close();
    expect(() => map.fd).toThrow("closed");

    const again = BpfMap.fromPin(path);
    opened.push(again);
    const value = new Uint8Array(8);
    expect(again.lookup(u32(1), value)).toBeTrue();
    expect(value).toEqual(u32(4, 2));
    unpin(path);
    unpin(path);
    expect(code(() => BpfMap.fromPin(path))).toBe("ENOENT");
  });

  test("unpin touches nothing but pins", () => {
    const folder = `/tmp/kmesh-test-${process.pid}`;
    try {
      expect(() => ensureBpffs(folder)).toThrow("not on a bpffs");
      Bun.spawnSync(["mkdir", folder]);
      expect(() => unpin(folder)).toThrow("not on a bpffs");
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
    expect(() => ensureBpffs(join(pins, "with.dot"))).toThrow("dot");
  });
});
