import { expect, test } from "bun:test";
import { ReachWatch, type TunnelUse } from "./reach-watch.ts";

const use = (outbound: boolean, hbone: boolean, mtls: boolean): TunnelUse => ({
  outbound,
  reach: { hbone, mtls },
});

/** After how many checks `changed` is called; 0 when never. The sequence's last entry stays. */
async function checksUntil(told: TunnelUse, sequence: TunnelUse[]): Promise<number> {
  let count = 0;
  return new Promise((resolve) => {
    const read = () => {
      const now = sequence[Math.min(count, sequence.length - 1)] ?? told;
      count++;
      if (count > 20) {
        watch.stop();
        resolve(0);
      }
      return now;
    };
    const watch = new ReachWatch(told, read, () => resolve(count), 1);
  });
}

test("a way that is there counts soon, one that is gone only when it stays away, and a restart between not at all", async () => {
  const all = use(true, true, true);
  const none = use(false, false, false);
  expect(await checksUntil(none, [all])).toBe(2);
  expect(await checksUntil(none, [all, none, use(true, true, false)])).toBe(4);
  expect(await checksUntil(all, [none])).toBe(8);
  expect(await checksUntil(all, [use(true, false, true)])).toBe(8);
  expect(await checksUntil(all, [none, none, none, none, all])).toBe(0);
  expect(await checksUntil(all, [all])).toBe(0);
});
