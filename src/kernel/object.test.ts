import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { BpfMap, FLAG } from "./maps.ts";
import { BpfObject } from "./object.ts";

const isRoot = process.getuid?.() === 0;
const SAMPLE = join(import.meta.dir, "../../dist/test/sample.bpf.o");

function u32(...numbers: number[]): Uint8Array {
  return new Uint8Array(new Uint32Array(numbers).buffer);
}

describe.skipIf(!isRoot)("BpfObject", () => {
  test("lists what it holds before anything is loaded", () => {
    using object = BpfObject.open(readFileSync(SAMPLE), "sample");
    expect([...object.mapNames].sort()).toEqual(["chunks", "counts", "sockets"]);
    expect([...object.programNames].sort()).toEqual([
      "count_connect",
      "read_chunk",
      "refuse_connect",
      "unverifiable",
    ]);
    expect(() => object.map("counts")).toThrow("sample:counts is not loaded");
    expect(() => object.skipProgram("none")).toThrow("bpf_object__find_program_by_name(sample:none): ENOENT");
  });

  test("refuses what is no object, with libbpf's reason", () => {
    expect(() => BpfObject.open(new Uint8Array(64), "rubbish")).toThrow(/LIBBPF_FORMAT: .*not a proper ELF/);
    const cut = readFileSync(SAMPLE).subarray(0, 900);
    expect(() => BpfObject.open(cut, "cut")).toThrow("bpf_object__open_mem(cut)");
  });

  test("a refused program's error ends with the verifier's verdict", () => {
    using object = BpfObject.open(readFileSync(SAMPLE), "sample");
    expect(() => object.load()).toThrow(/bpf_object__load\(sample\).*unverifiable.*invalid mem access/s);
  });

  test("takes maps that exist already", () => {
    using object = BpfObject.open(readFileSync(SAMPLE), "sample");
    const mine = { name: "chunks", type: "array-of-maps", keySize: 4, valueSize: 4, maxEntries: 8 } as const;
    const inner = {
      name: "inner",
      type: "array",
      keySize: 4,
      valueSize: 8,
      flags: FLAG.mmapable | FLAG.innerMap,
    } as const;
    using chunk = BpfMap.create({ ...inner, maxEntries: 1 });
    using larger = BpfMap.create({ ...inner, maxEntries: 64 });
    using chunks = BpfMap.create({ ...mine, inner: chunk });
    object.skipProgram("unverifiable");
    object.useMap("chunks", chunks);
    object.load();
    // A program run without a hook reads what was put into the map given to it.
    using program = object.program("read_chunk");
    const packet = new Uint8Array(64);
    expect(program.testRun(packet).result).toBe(0xffffffff);
    chunks.update(u32(0), u32(larger.fd));
    new BigUint64Array(larger.mmap())[0] = 77n;
    expect(program.testRun(packet, 3).result).toBe(77);
  });

  test("a map of another shape is refused by name", () => {
    using object = BpfObject.open(readFileSync(SAMPLE), "sample");
    using wrong = BpfMap.create({ name: "wrong", type: "array", keySize: 4, valueSize: 8, maxEntries: 1 });
    expect(() => object.useMap("counts", wrong)).toThrow(
      "bpf_map__reuse_fd(sample:counts): EINVAL: type, key, value, flags are 2, 4, 8, 0, and 2, 4, 40, 1024 in the object",
    );
  });

  test("what it gave out lives on after it", () => {
    const object = BpfObject.open(readFileSync(SAMPLE), "sample");
    object.skipProgram("unverifiable");
    object.load();
    const map = object.map("counts");
    object.close();
    object.close();
    expect(map.lookup(u32(0), new Uint8Array(map.info.valueSize))).toBeTrue();
    map.close();
    expect(() => object.load()).toThrow("closed");
  });
});
