import { afterEach, expect, test } from "bun:test";
import { Listener } from "./listeners.ts";
import { type WorkerCount, Workers } from "./workers.ts";

const cleanup: (() => void)[] = [];
afterEach(() => {
  for (const end of cleanup.splice(0).reverse()) end();
});

/** Workers that write their pid and wait. `full` says whether this process uses a whole core from now on. */
async function start(count: WorkerCount, cores: number) {
  const lines: string[] = [];
  const state = { full: false, used: 0 };
  const listener = await Listener.open("outbound", { host: "127.0.0.1", port: 0 }, () => {});
  const workers = new Workers([listener], {
    count,
    command: ["sh", "-c", "exec sleep 60"],
    env: process.env,
    log: { info: (text) => void lines.push(text), warn: (text) => void lines.push(text) },
    cores,
    lookEvery: 5,
    used: () => {
      // More than the time that passes.
      state.used += state.full ? 1e9 : 0;
      return state.used;
    },
  });
  cleanup.push(() => {
    workers.drain();
    listener.close();
  });
  return { workers, state, lines };
}

async function until(holds: () => boolean, explain: () => string): Promise<void> {
  for (const end = performance.now() + 30_000; !holds(); await Bun.sleep(5))
    if (performance.now() > end) throw new Error(explain());
}

test("auto starts one process after another while a core is full, one for each core at most", async () => {
  const { workers, state, lines } = await start("auto", 3);
  await Bun.sleep(50);
  expect(workers.pids).toEqual([]);
  state.full = true;
  await until(
    () => workers.pids.length === 2,
    () => lines.join("\n"),
  );
  await Bun.sleep(50);
  expect(workers.pids.length).toBe(2);
  expect(lines).toEqual([
    "A core is full: the tunnel starts another process (2 in all)",
    "A core is full: the tunnel starts another process (3 in all)",
  ]);
});

test("auto starts nothing on one core", async () => {
  const { workers, state } = await start("auto", 1);
  state.full = true;
  await Bun.sleep(50);
  expect(workers.pids).toEqual([]);
});

test("one that dies is started again, while this process is idle, too; a drain ends all", async () => {
  const { workers, state, lines } = await start("auto", 3);
  state.full = true;
  await until(
    () => workers.pids.length === 2,
    () => lines.join("\n"),
  );
  state.full = false;
  const before = workers.pids;
  process.kill(before[0] ?? 0, "SIGKILL");
  await until(
    () => workers.pids.length === 2 && workers.pids.some((pid) => !before.includes(pid)),
    () => lines.join("\n"),
  );
  expect(workers.pids).toContain(before[1] ?? 0);
  expect(lines.at(-1)).toContain("A process of the tunnel has ended (SIGKILL)");
  workers.drain();
  await until(
    () => workers.pids.length === 0,
    () => `${workers.pids} go on`,
  );
});
