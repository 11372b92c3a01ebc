/** The two sides of a hand-over, without tables: the successor is a script, so that it can go wrong at every step. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { eventually, sleep } from "../../test/lab/process.ts";
import { isLiving, spawnOrphan, type TaskIdentity } from "../kernel/process.ts";
import { Channel } from "./json-lines.ts";
import { type FromPredecessor, type FromSuccessor, handOver, type Predecessor } from "./predecessor.ts";
import { Succession, type Successor } from "./successor.ts";

let folder: string;
let done: string[];
let tasks: TaskIdentity[];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kmesh-handover-"));
  done = [];
  tasks = [];
});
afterEach(async () => {
  for (const task of tasks) if (isLiving(task)) process.kill(task.tgid, "SIGKILL");
  rmSync(folder, { recursive: true, force: true });
});

let connections = 0;
const totals = () => {
  connections += 10;
  return { connections, failed: 1, refused: 2 };
};

function predecessor(more: Partial<Predecessor> = {}): Predecessor {
  return {
    runDir: folder,
    synced: true,
    totals,
    pinnedTotals: totals,
    flush: async () => void done.push("flush"),
    pause: () => void done.push("pause"),
    resume: async () => void done.push("resume"),
    succeeded: (pid) => void done.push(`succeeded by ${pid === tasks[0]?.tgid ? "it" : pid}`),
    ...more,
  };
}

/** Says each line when the predecessor said that many things before; then stays, or ends with `over`. */
const SCRIPT = `
const [socket, steps, stays] = [process.env.SOCKET, JSON.parse(process.env.STEPS), process.env.STAYS];
const net = require("node:net").connect({ path: socket });
let heard = 0;
const say = () => { while (steps.length && steps[0][0] <= heard) {
  const [, message] = steps.shift();
  if (message === "die") process.exit(1);
  if (message === "kill") process.kill(process.pid, "SIGKILL");
  if (message === "hang up") { net.end(); return; }
  if (message.say === "hello") message.pid ??= process.pid;
  net.write(JSON.stringify(message) + "\\n");
} };
net.on("connect", say);
net.on("data", (data) => { heard += String(data).split("\\n").length - 1; say(); });
net.on("close", () => { if (!stays) process.exit(0); });
setInterval(() => {}, 1000);
`;

type Step = [after: number, message: object | "die" | "kill" | "hang up"];

const HELLO: Step = [0, { say: "hello", protocol: 1, version: "2", abi: "a" }];
const READY: Step = [1, { say: "ready", synced: true, services: 3, endpoints: 4 }];
const LIVE: Step = [2, { say: "live", writes: 5, relinked: 6 }];
const DONE: Step = [2, { say: "done" }];

function spawn(steps: Step[], stays = false) {
  return (socket: string): TaskIdentity => {
    const env = { SOCKET: socket, STEPS: JSON.stringify(steps), ...(stays ? { STAYS: "1" } : {}) };
    const task = spawnOrphan(process.execPath, [process.execPath, "-e", SCRIPT], env);
    tasks.push(task);
    return task;
  };
}

function attempt(
  steps: Step[],
  {
    timeout = 5_000,
    stays = false,
    ...more
  }: Partial<Predecessor> & { timeout?: number; stays?: boolean } = {},
) {
  const told: string[] = [];
  return {
    told,
    result: handOver(
      predecessor(more),
      { timeout, spawn: spawn(steps, stays), progress: (text) => told.push(text) },
      "1",
    ),
  };
}

test("all goes well: the proof, and the steps in their order", async () => {
  const { told, result } = attempt([HELLO, [1, { say: "progress", text: "half" }], READY, LIVE, DONE], {
    stays: true,
  });
  expect(await result).toMatchObject({
    connections: 10,
    failed: 0,
    refused: 0,
    map_writes: 5,
    relinked: 6,
    from_version: "1",
    to_version: "2",
    pid: tasks[0]?.tgid,
    synced: true,
  });
  expect(done).toEqual(["flush", "pause", "succeeded by it"]);
  expect(told).toEqual([
    `Successor started (pid ${tasks[0]?.tgid})`,
    "half",
    "Successor is in sync: 3 services, 4 endpoints",
  ]);
  expect(tasks.every(isLiving)).toBe(true);
  expect(existsSync(join(folder, "handover.sock"))).toBe(false);
});

describe("whatever goes wrong, the predecessor goes on and the successor is gone", () => {
  const cases: [string, Step[], string, string[]][] = [
    ["it ends before it says anything", [[0, "die"]], "ended before it was ready", []],
    ["it ends after its first word", [HELLO, [1, "die"]], "ended before it was ready", []],
    ["it is killed when it was ready", [HELLO, READY, [2, "kill"]], "ended", ["flush", "pause", "resume"]],
    [
      "it is killed when its tables are live",
      [HELLO, READY, LIVE, [2, "kill"]],
      "ended",
      ["flush", "pause", "resume"],
    ],
    ["it hangs up", [HELLO, [1, "hang up"]], "hung up", []],
    ["it gives up", [HELLO, [1, { say: "failed", reason: "no room" }]], "the successor gave up: no room", []],
    [
      "it gives up with the tables",
      [HELLO, READY, [2, { say: "failed", reason: "EPERM" }]],
      "EPERM",
      ["flush", "pause", "resume"],
    ],
    ["it skips a step", [HELLO, [1, { say: "done" }]], '"done" where "ready" was due', []],
    [
      "it is of another time",
      [[0, { say: "hello", protocol: 2, version: "9", abi: "" }]],
      "hands over in another way",
      [],
    ],
    [
      "it takes for something else what all versions share",
      [[0, { say: "hello", protocol: 1, version: "9", abi: "a", keep: ["endpoint: 64 bytes"] }], READY],
      "in keep/ .endpoint: 32 bytes here, endpoint: 64 bytes there.",
      [],
    ],
    [
      "another answers",
      [[0, { say: "hello", protocol: 1, version: "9", abi: "", pid: 1 }]],
      "pid 1 answered in its place",
      [],
    ],
  ];
  for (const [name, steps, reason, expected] of cases)
    test(name, async () => {
      const { result } = attempt(steps, { stays: true });
      expect(await result.catch((error: Error) => `${error.name}: ${error.message}`)).toMatch(
        new RegExp(`^NotHandedOver: .*${reason}`),
      );
      expect(done).toEqual(expected);
      expect(tasks.some(isLiving)).toBe(false);
      expect(existsSync(join(folder, "handover.sock"))).toBe(false);
    });

  test("it is too late", async () => {
    const { result } = attempt([HELLO], { timeout: 300, stays: true });
    expect(await result.catch(String)).toContain("not ready within 0.3 s");
    expect(done).toEqual([]);
    expect(tasks.some(isLiving)).toBe(false);
  });

  test("it can't be started", async () => {
    const options = { timeout: 1_000, progress: () => {} };
    const none = (): TaskIdentity => spawnOrphan("/does/not/exist", ["x"], {});
    const error = await handOver(predecessor(), { ...options, spawn: none }, "1").catch(String);
    expect(error).toContain("execve(/does/not/exist): ENOENT");
    expect(done).toEqual([]);
  });

  test("the tables can't be taken back: said, too", async () => {
    const resume = () => Promise.reject(new Error("the lock is another's"));
    const { result } = attempt([HELLO, READY, [2, "die"]], { resume });
    expect(await result.catch(String)).toContain("could not be taken back: the lock is another's");
  });
});

test("counters that can't be read at the end don't undo what is done", async () => {
  const pinnedTotals = () => {
    throw new Error("EPERM");
  };
  const { told, result } = attempt([HELLO, READY, LIVE, DONE], { pinnedTotals });
  expect((await result).connections).toBe(0);
  expect(told.at(-1)).toContain("EPERM");
});

describe("a successor", () => {
  /** A predecessor that says what it is told to. */
  async function answered(candidate: Partial<Successor>) {
    const path = join(folder, "p.sock");
    const { createServer } = await import("node:net");
    const opened = Promise.withResolvers<Channel<FromSuccessor, FromPredecessor>>();
    const server = createServer((socket) => opened.resolve(new Channel(socket)));
    await new Promise<void>((resolve) => server.listen(path, resolve));
    const succession = await Succession.answer(path);
    if (!succession) throw new Error("nobody answered");
    const channel = await opened.promise;
    server.close();
    const result = succession.take({
      synced: new Promise(() => {}),
      size: () => ({ services: 1, endpoints: 2 }),
      take: async () => {
        done.push("take");
        return { writes: 0, relinked: 0 };
      },
      serve: async () => void done.push("serve"),
      ...candidate,
    });
    result.catch(() => {});
    expect(await channel.receive()).toMatchObject({ say: "hello", pid: process.pid });
    return { channel, succession, result };
  }

  test("takes nothing before it may", async () => {
    const { channel, result } = await answered({ synced: Promise.resolve() });
    channel.send({ say: "welcome", synced: true, patience: 1_000 });
    expect(await channel.receive()).toEqual({ say: "ready", synced: true, services: 1, endpoints: 2 });
    await sleep(50);
    expect(done).toEqual([]);
    channel.send({ say: "yours" });
    await result;
    expect(done).toEqual(["take", "serve"]);
    expect([await channel.receive(), await channel.receive()]).toMatchObject([
      { say: "live" },
      { say: "done" },
    ]);
    channel.close();
  });

  test("waits for istiod while the other one is in sync, and not for long when it is not", async () => {
    const one = await answered({});
    one.channel.send({ say: "welcome", synced: true, patience: 200 });
    expect(await Promise.race([one.channel.receive(), sleep(300).then(() => "silence")])).toBe("silence");
    one.channel.close();
    await one.result;
    const two = await answered({});
    two.channel.send({ say: "welcome", synced: false, patience: 200 });
    expect(await two.channel.receive()).toMatchObject({ say: "ready", synced: false });
    two.channel.close();
    await two.result;
  });

  test("carries on when the other one is gone", async () => {
    for (const said of [0, 1]) {
      done = [];
      const { channel, result, succession } = await answered({ synced: Promise.resolve() });
      if (said === 1) {
        channel.send({ say: "welcome", synced: true, patience: 1_000 });
        expect(await channel.receive()).toMatchObject({ say: "ready" });
      }
      channel.close();
      await result;
      expect(done).toEqual(["take", "serve"]);
      await succession.acknowledged();
    }
  });

  test("is a start like any other when nobody waits", async () => {
    expect(await Succession.answer(join(folder, "none.sock"))).toBeUndefined();
  });

  test("tells why it can't", async () => {
    const take = async () => {
      throw new Error("EBUSY");
    };
    const { channel, result, succession } = await answered({ synced: Promise.resolve(), take });
    channel.send({ say: "welcome", synced: true, patience: 1_000 });
    await channel.receive();
    channel.send({ say: "yours" });
    succession.failed(await result.catch((error) => error));
    expect(await channel.receive()).toEqual({ say: "failed", reason: "EBUSY" });
    channel.close();
  });
});

test("a channel that is fed with something else is at its end", async () => {
  const path = join(folder, "c.sock");
  const { createServer } = await import("node:net");
  const server = createServer((socket) => socket.write('{"say":"yours"}\n{"say":\n'));
  await new Promise<void>((resolve) => server.listen(path, resolve));
  const channel = await Channel.open<FromPredecessor, FromSuccessor>(path);
  expect(await channel.receive()).toEqual({ say: "yours" });
  expect(await channel.receive()).toBeUndefined();
  await eventually("it is over", () => channel.ended.then(() => true));
  server.close();
});
