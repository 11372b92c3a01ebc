/** Programs loaded ahead: they serve only over the very maps that are pinned when they are wanted. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readdirSync, readlinkSync, renameSync } from "node:fs";
import { pinnedMaps } from "../../src/datapath/generation/pinned.ts";
import { generationFolder, HOOK_ORDER } from "../../src/datapath/generation/pins.ts";
import { PreloadedPrograms } from "../../src/datapath/generation/preload.ts";
import { ownCode } from "../../src/datapath/generation/programs.ts";
import { KEPT_MAPS } from "../../src/datapath/tables/tables.ts";
import { preloadAhead } from "../../src/datapath/takeover.ts";
import { DatapathLab } from "./lab.ts";

setDefaultTimeout(60_000);
const root = process.getuid?.() === 0;
if (!root) console.warn("the tests of programs loaded ahead are skipped: they need root");

describe.skipIf(!root)("a head start", () => {
  let lab: DatapathLab;
  beforeAll(async () => {
    lab = await DatapathLab.create();
  });
  afterAll(async () => {
    await lab?.remove();
  });

  const pins = () => readdirSync(lab.bpffs, { recursive: true, encoding: "utf8" }).sort();
  /** Those of the kernel's programs, maps and links that this process has. */
  const descriptors = () =>
    readdirSync("/proc/self/fd").filter((fd) => {
      try {
        return readlinkSync(`/proc/self/fd/${fd}`).includes("bpf");
      } catch {
        return false;
      }
    }).length;
  const idsOf = (maps: ReturnType<typeof pinnedMaps>) =>
    [...maps].map(([name, { info }]) => `${name} ${info.id}`).sort();

  test("is taken only when other programs run", () => {
    expect(preloadAhead(lab.bpffs)).toBeUndefined();
  });

  test("over the maps that are pinned it is given once, and nothing of it is pinned", () => {
    const before = pins();
    const start = PreloadedPrograms.load(lab.bpffs, ownCode());
    const pinned = pinnedMaps(lab.bpffs);
    const loaded = start.take(pinned);
    expect([...(loaded?.programs.keys() ?? [])].sort()).toEqual([...HOOK_ORDER].sort());
    expect(loaded && idsOf(loaded.maps)).toEqual(idsOf(pinned));
    expect(start.take(pinned)).toBeUndefined();
    expect(pins()).toEqual(before);
    for (const held of [...pinned.values(), ...(loaded ? [...loaded.maps.values()] : [])]) held.close();
    for (const program of loaded?.programs.values() ?? []) program.close();
  });

  test("when the second object can't be loaded, no program of the first stays open", () => {
    const { images, hash } = ownCode();
    const broken = { images: [...images.slice(0, 1), new Uint8Array(64)], hash };
    const before = descriptors();
    expect(() => PreloadedPrograms.load(lab.bpffs, broken)).toThrow("bpf_object__open_mem");
    expect(descriptors()).toBe(before);
  });

  test("beside another layout it has tables of its own, and the kept ones are those of both", () => {
    lab.datapath.close();
    renameSync(generationFolder(lab.bpffs), generationFolder(lab.bpffs, "0123456789abcdef"));
    const start = PreloadedPrograms.load(lab.bpffs, ownCode());
    const pinned = pinnedMaps(lab.bpffs);
    expect([...pinned.keys()].sort()).toEqual([...KEPT_MAPS].sort());
    const loaded = start.take(pinned);
    for (const [name, { info }] of pinned) expect(loaded?.maps.get(name)?.info.id).toBe(info.id);
    expect(loaded?.maps.has("targets")).toBe(true);
    for (const map of [...pinned.values(), ...(loaded ? [...loaded.maps.values()] : [])]) map.close();
    for (const program of loaded?.programs.values() ?? []) program.close();
  });

  test("once tables of this layout were pinned by somebody else it is of no use", () => {
    const start = PreloadedPrograms.load(lab.bpffs, ownCode());
    renameSync(generationFolder(lab.bpffs, "0123456789abcdef"), generationFolder(lab.bpffs));
    const pinned = pinnedMaps(lab.bpffs);
    expect(start.take(pinned)).toBeUndefined();
    start.close();
    for (const map of pinned.values()) map.close();
  });
});
