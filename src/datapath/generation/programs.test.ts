import { expect, test } from "bun:test";
import { infoOf } from "../../kernel/info.ts";
import type { BpfMap } from "../../kernel/maps.ts";
import { BpfObject } from "../../kernel/object.ts";
import { asset } from "../../runtime/assets.ts";
import { GENERATION_MAPS, KEPT_MAPS, type MapName } from "../tables/tables.ts";
import { loadPrograms, ownCode } from "./programs.ts";

// A constant in a separate section becomes a map without a pin, and each load would create another one.
test.each(["connect", "release", "flush"])("%s uses only maps that are pinned", (name) => {
  const known = new Set<string>([...GENERATION_MAPS, ...KEPT_MAPS]);
  for (const suffix of [".bpf.o", ".compat.bpf.o"]) {
    using object = BpfObject.open(asset(name + suffix), name);
    expect(object.mapNames.filter((map) => !known.has(map))).toEqual([]);
  }
});

/** `verified_insns` of struct bpf_prog_info, in Linux 5.16 and later. */
const VERIFIED = { at: 216, end: 220 };

// It gives up at a million. With 300,000 Linux 6.1 needed minutes.
test.skipIf(process.getuid?.() !== 0)(
  "the verifier is done with each program after 100,000 instructions",
  () => {
    const maps = new Map<MapName, BpfMap>();
    const programs = loadPrograms(ownCode(), maps);
    try {
      const taken = [...programs].map(([hook, { fd }]): [string, number] => {
        const [verified = 0] = new Uint32Array(infoOf(fd, VERIFIED.end, "program"), VERIFIED.at, 1);
        return [hook, verified];
      });
      expect(taken.filter(([, verified]) => verified === 0 || verified > 100_000)).toEqual([]);
    } finally {
      for (const held of [...maps.values(), ...programs.values()]) held.close();
    }
  },
);
