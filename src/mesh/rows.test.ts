import { expect, test } from "bun:test";
import { Rows } from "./rows.ts";

test("names come and go as in a Map; rows are dense, and given again", () => {
  const rows = new Rows();
  const model = new Map<string, number>();
  let state = 7;
  const random = (below: number) => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return (state >>> 8) % below;
  };
  let most = 0;
  for (let i = 0; i < 30_000; i++) {
    const name = `ns/pod-${random(3_000)}`;
    if (random(3) === 0) {
      expect(rows.remove(name)).toBe(model.get(name));
      model.delete(name);
    } else {
      const row = rows.add(name);
      expect(row).toBe(model.get(name) ?? row);
      model.set(name, row);
      most = Math.max(most, model.size);
    }
    expect(rows.size).toBe(model.size);
  }
  expect(new Set(model.values()).size).toBe(model.size);
  expect(Math.max(...model.values())).toBeLessThan(most);
  expect([...rows]).toEqual([...model.values()].sort((a, b) => a - b));
  for (const [name, row] of model) expect([rows.find(name), rows.name(row)]).toEqual([row, name]);
  expect(rows.find("ns/pod-3000")).toBeUndefined();
});

test("a name is gone with its row", () => {
  const rows = new Rows();
  const row = rows.add("");
  expect([rows.find(""), rows.size]).toEqual([row, 1]);
  expect(rows.remove("")).toBe(row);
  expect([rows.find(""), rows.remove(""), rows.name(row), rows.size]).toEqual([undefined, undefined, "", 0]);
  // Graves alone do not make it grow, nor let a search go on for ever.
  for (let i = 0; i < 10_000; i++) {
    expect(rows.add(`a${i}`)).toBe(row);
    rows.remove(`a${i}`);
  }
  expect(rows.find("b")).toBeUndefined();
});
