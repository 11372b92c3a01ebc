import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { readLayout } from "./btf.ts";
import { abiId, layoutModule, mergeLayouts } from "./layout.ts";

const sample = readLayout(readFileSync(join(import.meta.dir, "../dist/test/sample.bpf.o")));

test("fields lie where the compiler put them, through arrays, nested structs and anonymous unions", () => {
  expect(sample.structs.sample).toEqual({
    size: 40,
    fields: {
      count: { offset: 0, size: 8 },
      parts: { offset: 8, size: 8, count: 3, of: "sample_part" },
      kind: { offset: 32, size: 4, of: "sample_kind" },
      word: { offset: 36, size: 4 },
      bytes: { offset: 36, size: 1, count: 4 },
    },
  });
  expect(sample.structs.sample_part).toEqual({
    size: 8,
    fields: { first: { offset: 0, size: 4 }, second: { offset: 4, size: 4 } },
  });
  expect(sample.enums.sample_kind).toEqual({ SAMPLE_NONE: 0, SAMPLE_SOME: 7 });
});

test("maps come with their sizes, flags and templates", () => {
  expect(sample.maps).toEqual({
    counts: { type: 2, keySize: 4, valueSize: 40, maxEntries: 4, flags: 1024, value: "sample" },
    chunks: {
      type: 12,
      keySize: 4,
      valueSize: 4,
      maxEntries: 8,
      flags: 0,
      inner: { type: 2, keySize: 4, valueSize: 8, maxEntries: 1, flags: 5120 },
    },
    sockets: { type: 24, keySize: 4, valueSize: 8, maxEntries: 0, flags: 1, value: "sample_part" },
  });
});

test("the ABI's id follows every change and no mere order", () => {
  const id = abiId(sample);
  expect(id).toMatch(/^[0-9a-f]{16}$/);
  const { structs, enums, maps } = sample;
  expect(abiId({ maps: Object.fromEntries(Object.entries(maps).reverse()), enums, structs })).toBe(id);
  expect(
    abiId({ structs, maps, enums: { ...enums, sample_kind: { SAMPLE_NONE: 0, SAMPLE_SOME: 8 } } }),
  ).not.toBe(id);
});

test("two objects may share a definition, not a name", () => {
  expect(mergeLayouts({ a: sample, b: structuredClone(sample) })).toEqual(sample);
  const other = structuredClone(sample);
  const part = other.structs.sample_part;
  if (part !== undefined) part.size = 12;
  expect(() => mergeLayouts({ a: sample, b: other })).toThrow(
    "b defines sample_part (structs) unlike another object",
  );
});

test("the generated module is TypeScript that says the same", () => {
  const text = layoutModule(sample);
  const script = new Bun.Transpiler({ loader: "ts" }).transformSync(text);
  expect(script).toContain(abiId(sample));
  expect(text).toContain("export const sample_part = {");
  expect(text).toContain('"type": "array-of-maps"');
});

test("what has no BTF is refused", () => {
  const image = readFileSync(join(import.meta.dir, "../dist/libbpf.so"));
  expect(() => readLayout(image)).toThrow("no section .BTF");
});
