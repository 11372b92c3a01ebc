import { expect, test } from "bun:test";
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { innerMap } from "../datapath/tables/inner-map.ts";
import { ensureBpffs, unpin } from "../kernel/bpffs.ts";
import { NAME_FLAGS } from "./name-table.ts";
import { closeNames, openNames, tableFolder } from "./pins.ts";
import { askKernel, queryMessage } from "./query.ts";

test.skipIf(process.getuid?.() !== 0)(
  "a table that contradicts itself is replaced by an empty one, and programs over it go on",
  () => {
    const bpffs = `/sys/fs/bpf/kmesh_pins_${process.pid}`;
    try {
      ensureBpffs(bpffs);
      mkdirSync(join(bpffs, "keep"));
      const before = openNames(bpffs);
      expect(before.unreadable).toBeUndefined();
      const host = "shop.demo.internal";
      before.table.apply([[host, { kind: "addresses", name: host, addresses: ["10.99.0.1"] }]]);
      before.table.flags = NAME_FLAGS.NAMES_ON | NAME_FLAGS.NAMES_EVERY_CGROUP;
      const explain = before.programs.get("names_explain");
      if (!explain) throw new Error("names_explain is missing");

      using hash = innerMap(before.maps.names);
      const entryOfNoRecord = BigUint64Array.of(0xffff_fff0n);
      hash?.updateBatch(
        new Uint8Array(BigUint64Array.of(7n).buffer),
        new Uint8Array(entryOfNoRecord.buffer),
        1,
      );
      const after = openNames(bpffs);
      expect(after.unreadable).toContain("no room for its entry 4294967280");
      expect(after.table.size).toBe(0);
      expect(after.table.flags & NAME_FLAGS.NAMES_ON).toBe(0);
      expect(askKernel(explain, queryMessage(host, "A")).response?.answers).toHaveLength(1);
      expect(existsSync(`${tableFolder(bpffs)}_new`)).toBe(false);
      closeNames(after);
      const again = openNames(bpffs);
      expect(again.unreadable).toBeUndefined();
      closeNames(again);
      closeNames(before);
    } finally {
      unpin(bpffs);
    }
  },
);
