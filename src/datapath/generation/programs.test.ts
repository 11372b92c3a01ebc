import { expect, test } from "bun:test";
import { BpfObject } from "../../kernel/object.ts";
import { asset } from "../../runtime/assets.ts";
import { GENERATION_MAPS, KEPT_MAPS } from "../tables/tables.ts";

// A constant that clang puts into a section of its own becomes a map without a pin: each load would make another one.
test.each(["connect", "release", "flush"])("%s uses only maps that are pinned", (name) => {
  const known = new Set<string>([...GENERATION_MAPS, ...KEPT_MAPS]);
  for (const suffix of [".bpf.o", ".compat.bpf.o"]) {
    using object = BpfObject.open(asset(name + suffix), name);
    expect(object.mapNames.filter((map) => !known.has(map))).toEqual([]);
  }
});
