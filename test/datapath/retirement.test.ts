/** Rows are moved into sums exactly once, wherever the agent is killed. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import * as layout from "../../src/datapath/tables/layout.gen.ts";
import type { Maps } from "../../src/datapath/tables/tables.ts";
import { emptyMesh } from "../../src/mesh/model.ts";
import { readRetired, readTraffic } from "../../src/telemetry/counters/reading.ts";
import {
  addCounters,
  type Counters,
  encodeCounters,
  noCounters,
  readRows,
  viewOf,
} from "../../src/telemetry/counters/rows.ts";
import { Labels } from "../../src/telemetry/labels.ts";
import { pendingOf, Retirement, type RetirementStep } from "../../src/telemetry/retirement.ts";
import { DatapathLab } from "./lab.ts";
import { addCluster, addFrontend, endpoint } from "./mesh.ts";

setDefaultTimeout(90_000);
const root = process.getuid?.() === 0;
if (!root) console.warn("retirement tests are skipped: they need root");

describe.skipIf(!root)("retirement", () => {
  let lab: DatapathLab;
  let maps: Maps;
  let labels: Labels;
  beforeAll(async () => {
    lab = await DatapathLab.create();
    const mesh = emptyMesh();
    addCluster(mesh, "one", [endpoint("172.31.1.1:8080")]);
    addFrontend(mesh, "10.96.9.1:80", { kind: "cluster", cluster: "one" });
    lab.publish(mesh);
    maps = lab.datapath.tables.maps;
    labels = new Labels(lab.datapath.tables, undefined, true);
  });
  afterAll(async () => {
    await lab?.remove();
  });

  const put = (source: number, id: number, opened: number, ended: number) => {
    const key = new Uint8Array(new ArrayBuffer(layout.flow_key.size));
    const view = viewOf(key);
    const { fields } = layout.flow_key;
    view.setBigUint64(fields.source.offset, BigInt(source), true);
    view.setUint8(fields.direction.offset, layout.enums.flow_direction.FLOW_OUT);
    view.setUint32(fields.service.offset, 1, true);
    view.setUint32(fields.cluster.offset, 77, true);
    view.setUint32(fields.endpoint.offset, id, true);
    const value = new Uint8Array(new ArrayBuffer(layout.flow_row.size));
    const counters: Counters = { ...noCounters(), opened, sent: opened * 100, received: 7 };
    counters.ends[0] = ended;
    encodeCounters(counters, viewOf(value), 0);
    maps.flow_rows.update(key, value);
  };
  const total = () => {
    const sum = noCounters();
    const { rows, retired } = readTraffic(maps);
    for (const { counters } of [...rows, ...retired]) addCounters(sum, counters);
    return sum;
  };

  test.each(["recorded", "pending", "stored", "deleted"] as const)(
    "killed when it is %s",
    (step: RetirementStep) => {
      const id = 1000 + ["recorded", "pending", "stored", "deleted"].indexOf(step);
      put(5, id, 10, 10);
      put(6, id, 4, 4);
      const before = total();
      const first = new Retirement(maps, labels, (name) => {
        if (name === step) throw new Error("killed");
      });
      expect(() => first.mayReuse("endpoint", id)).toThrow("killed");
      first.close();
      // Who reads now, without an agent, reads what the next one will complete.
      expect(total()).toEqual(before);
      const second = new Retirement(maps, labels);
      expect(pendingOf(maps)).toBeUndefined();
      expect(total()).toEqual(before);
      expect(second.mayReuse("endpoint", id)).toBe(true);
      expect(total()).toEqual(before);
      expect(readRows(maps.flow_rows).filter(({ key }) => key.endpoint === id)).toEqual([]);
      second.close();
    },
  );

  test("what has a live connection stays, and its id is not given away", () => {
    put(5, 2000, 3, 2);
    const before = total();
    const retirement = new Retirement(maps, labels);
    expect(retirement.mayReuse("endpoint", 2000)).toBe(false);
    expect(retirement.mayReuse("cluster", 77)).toBe(false);
    expect(total()).toEqual(before);
    retirement.close();
  });

  test("ids that no row carries are free, and a name is kept", () => {
    const retirement = new Retirement(maps, labels);
    expect(retirement.mayReuse("endpoint", 12_345)).toBe(true);
    retirement.close();
    expect(readRetired(maps.retired_rows).map(({ service }) => service)).toContain("svc:80");
  });

  test("what finds no room among the names is added to one sum", () => {
    put(5, 3000, 4, 4);
    const before = total();
    const value = new Uint8Array(new ArrayBuffer(layout.retired_row.size));
    const key = new Uint8Array(new ArrayBuffer(layout.retired_key.size));
    const filled: Uint8Array[] = [];
    try {
      for (let label = 1n; ; label++) {
        viewOf(key).setBigUint64(layout.retired_key.fields.label.offset, label, true);
        maps.retired_rows.update(key, value);
        filled.push(key.slice());
      }
    } catch (error) {
      expect(String(error)).toContain("E2BIG");
    }
    // A source of which nothing was retired.
    put(999, 3001, 2, 2);
    const retirement = new Retirement(maps, labels);
    expect(retirement.mayReuse("endpoint", 3000)).toBe(true);
    expect(retirement.mayReuse("endpoint", 3001)).toBe(true);
    expect(total().opened).toBe(before.opened + 2);
    retirement.close();
    for (const each of filled) maps.retired_rows.delete(each);
  });
});
