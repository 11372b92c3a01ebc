/** What a cluster that grows and shrinks leaves of the tables, over real maps that nothing pins. */
import { describe, expect, test } from "bun:test";
import { complete } from "../../src/datapath/generation/pinned.ts";
import { loadPrograms, ownCode } from "../../src/datapath/generation/programs.ts";
import { ClusterTable } from "../../src/datapath/mesh-tables/cluster-table.ts";
import { SLOTS_PER_LINE } from "../../src/datapath/mesh-tables/descriptor.ts";
import { DeferredFree } from "../../src/datapath/tables/deferred-free.ts";
import { NameLines } from "../../src/datapath/tables/names.ts";
import { type MapName, Tables } from "../../src/datapath/tables/tables.ts";
import type { BpfMap } from "../../src/kernel/maps.ts";
import { cluster, endpoint } from "./mesh.ts";

const STEPS = 10_000;
/** A step adds or removes as many endpoints as a line of slots holds. */
const LARGEST = 100 * SLOTS_PER_LINE;
/** Steps that share a grace period. */
const A_PERIOD = 4;

/** Tables of this process alone, gone with it. */
function unpinnedTables(): Tables {
  const maps = new Map<MapName, BpfMap>();
  for (const program of loadPrograms(ownCode(), maps).values()) program.close();
  return new Tables(complete(maps));
}

describe.skipIf(process.getuid?.() !== 0)("tables", () => {
  test(`a cluster that grows and shrinks ${STEPS} times leaves the slots as large as it needs`, () => {
    const tables = unpinnedTables();
    const faults: unknown[] = [];
    // The kernel's grace periods have their own test; here 500 of them would only take time.
    const grace = new DeferredFree(
      (error) => faults.push(error),
      () => undefined,
    );
    const lines = new NameLines(tables.nameLines, [tables.clusterNames, tables.serviceNames]);
    const clusters = new ClusterTable(
      tables,
      lines,
      grace,
      () => true,
      () => 0,
    );
    const all = Array.from({ length: LARGEST }, (_, i) => endpoint(`10.0.${i >> 8}.${i & 255}:80`));
    try {
      clusters.putCluster(cluster("neighbour", all.slice(0, 3)));
      let earlier = 0;
      for (let step = 0; step < STEPS; step++) {
        const place = (step * SLOTS_PER_LINE) % (2 * LARGEST);
        const count = place < LARGEST ? place : 2 * LARGEST - place;
        clusters.putCluster(cluster("growing", all.slice(0, count + 1)));
        clusters.putCluster(cluster("neighbour", all.slice(0, 2 + (step % 7))));
        if (step % A_PERIOD === 0) grace.flush();
        if (step === STEPS / 10) earlier = tables.slots.capacity;
      }
      grace.flush();
      expect(faults).toEqual([]);
      // Five runs of a hundred lines are held or waiting at a time, and chunks double.
      expect(tables.slots.capacity).toBe(earlier);
      expect(tables.slots.capacity).toBeLessThan(2_000);
      expect(clusters.names().sort()).toEqual(["growing", "neighbour"]);
    } finally {
      grace.abandon();
      tables.discard();
    }
  }, 120_000);
});
