import { expect, test } from "bun:test";
import { keepId, keptConflict, keptLayouts } from "./keep.ts";

const OWN = [
  "map loads: hash, key 4, value 32, 64 at most, flags 0",
  "load: 32 bytes",
  "load.live: 8 at 0",
  "load.refused: 8 x 2 at 8",
  "FLAG_ONE = 1",
];
const without = (start: string) => OWN.filter((line) => !line.startsWith(start));

test("two versions can live side by side while neither takes for something else what the other knows", () => {
  expect(keptConflict(OWN, OWN)).toBeUndefined();
  expect(keptConflict(OWN, [...OWN].reverse())).toBeUndefined();
  expect(
    keptConflict(OWN, [...OWN, "load.failed: 8 at 24", "map more: hash, key 4", "FLAG_TWO = 2"]),
  ).toBeUndefined();
  // From the older version's view, and from the newer one's.
  expect(keptConflict([...OWN, "load.failed: 8 at 24"], OWN)).toBeUndefined();
});

test.each([
  [[...without("load:"), "load: 40 bytes"], "load: 32 bytes here, load: 40 bytes there"],
  [[...without("load.live"), "load.live: 4 at 0"], "load.live: 8 at 0 here, load.live: 4 at 0 there"],
  [[...without("FLAG"), "FLAG_ONE = 2"], "FLAG_ONE = 1 here, FLAG_ONE = 2 there"],
  [[...without("map"), "map loads: hash, key 8"], "map loads: hash, key 8 there"],
  [
    [...without("load.refused"), "load.failed: 4 at 20"],
    "load.refused: 8 x 2 at 8 here, load.failed: 4 at 20 in its place there",
  ],
])("what can't live side by side: %#", (other, reason) => {
  expect(keptConflict(OWN, other)).toContain(reason);
});

test("this version's own are all there", () => {
  const lines = keptLayouts();
  for (const start of [
    "map sockets: sk-storage",
    "socket_state.asked: 16 at",
    "endpoint_load: ",
    "SOCKET_COUNTED = 2",
  ])
    expect(lines.some((line) => line.startsWith(start))).toBe(true);
  expect(lines.join("\n")).not.toMatch(/reserved|zero/);
  expect(keptConflict(lines, lines)).toBeUndefined();
  expect(keepId()).toMatch(/^[0-9a-f]{16}$/);
});
