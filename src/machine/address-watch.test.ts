import { expect, test } from "bun:test";
import { setTimeout as sleep } from "node:timers/promises";
import { AddressWatch, mainFirst } from "./address-watch.ts";

/** The calls of a watch that finds these addresses in turn; the last one repeats. */
async function changes(told: string[], looks: string[][]): Promise<string[][]> {
  const heard: string[][] = [];
  let i = 0;
  const read = () => looks[Math.min(i++, looks.length - 1)] ?? [];
  const watch = new AddressWatch(told, read, (addresses) => heard.push(addresses), 2);
  while (i < looks.length + 3 && heard.length === 0) await sleep(1);
  watch.stop();
  return heard;
}

test("the main address stays first while the machine has it", () => {
  expect(mainFirst(["10.0.0.1", "10.0.0.2"], "10.0.0.2")).toEqual(["10.0.0.2", "10.0.0.1"]);
  expect(mainFirst(["10.0.0.1"], "10.0.0.2")).toEqual(["10.0.0.1"]);
  expect(mainFirst(["10.0.0.1"], undefined)).toEqual(["10.0.0.1"]);
});

test("the first address after none, another one, one more", async () => {
  expect(await changes([], [[], [], ["10.0.0.1"]])).toEqual([["10.0.0.1"]]);
  expect(await changes(["10.0.0.1"], [["10.0.0.2"]])).toEqual([["10.0.0.2"]]);
  expect(await changes(["10.0.0.2"], [["10.0.0.1", "10.0.0.2"]])).toEqual([["10.0.0.2", "10.0.0.1"]]);
});

test("what is there for one look, another order and no address at all are no change", async () => {
  expect(await changes(["10.0.0.1"], [["10.0.0.2"], ["10.0.0.1"]])).toEqual([]);
  expect(await changes(["10.0.0.1"], [[]])).toEqual([]);
  expect(await changes(["10.0.0.1"], [["10.0.0.1"]])).toEqual([]);
});
