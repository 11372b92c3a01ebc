import { afterEach, expect, setSystemTime, test } from "bun:test";
import { openLog } from "../config/log.ts";
import { KeptGenerations } from "./retention.ts";

const DAY = 86_400_000;
const quiet = openLog("error");

/** What is kept for `keep` milliseconds. */
function kept(keep: number) {
  const datapath = {
    kept: ["0123456789abcdef"],
    removeKept(layout: string): void {
      this.kept = this.kept.filter((each) => each !== layout);
    },
  };
  return { datapath, generations: new KeptGenerations(datapath, quiet, keep) };
}

const sleep = (milliseconds: number) => new Promise((resolve) => setTimeout(resolve, milliseconds));

afterEach(() => {
  setSystemTime();
});

test("a clock that is set while they are kept makes it neither shorter nor longer", async () => {
  for (const jump of [DAY, -DAY]) {
    const { datapath, generations } = kept(150);
    const now = Date.now();
    generations.watch();
    setSystemTime(now + jump);
    await sleep(50);
    expect(datapath.kept).toHaveLength(1);
    await sleep(200);
    expect(datapath.kept).toHaveLength(0);
    setSystemTime();
  }
});

test("a start keeps what is left of the time; the whole of it when the clock was set back since", async () => {
  const old = kept(100);
  old.generations.watch(Date.now() - 60);
  const ahead = kept(100);
  ahead.generations.watch(Date.now() + DAY);
  await sleep(70);
  expect(old.datapath.kept).toHaveLength(0);
  expect(ahead.datapath.kept).toHaveLength(1);
  await sleep(80);
  expect(ahead.datapath.kept).toHaveLength(0);
});

test("what was kept for longer than that by the clock is removed at once, and nothing that governs is asked for it", async () => {
  const { datapath, generations } = kept(60_000);
  generations.watch(Date.now() - 365 * DAY);
  await sleep(10);
  expect(datapath.kept).toHaveLength(0);
});
