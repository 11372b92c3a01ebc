import { expect, test } from "bun:test";
import { eventually } from "../../../test/lab/process.ts";
import { askEvery, askNoMore } from "./ping-clock.ts";

test("each is asked again and again until it ends, also by another; one that is added meanwhile waits its turn", async () => {
  const asked = [0, 0, 0, 0];
  const ends: (() => void)[] = [];
  const begin = (i: number, then = () => {}) => {
    const one = {
      ask() {
        asked[i] = (asked[i] ?? 0) + 1;
        then();
      },
    };
    askEvery(20, one);
    return () => askNoMore(20, one);
  };
  let added = -1;
  ends.push(
    begin(0, () => {
      if (added >= 0) return;
      ends[1]?.();
      ends.push(begin(3));
      added = asked[3] ?? 0;
    }),
    begin(1),
    begin(2),
  );
  await eventually("all were asked twice", () => [0, 2, 3].every((i) => (asked[i] ?? 0) >= 2));
  expect({ added, ended: asked[1] }).toEqual({ added: 0, ended: 0 });
  for (const end of ends) end();
  const before = [...asked];
  const last = begin(1);
  await eventually("a new clock runs", () => (asked[1] ?? 0) > 0);
  last();
  expect([asked[0], asked[2], asked[3]]).toEqual([before[0], before[2], before[3]]);
});
