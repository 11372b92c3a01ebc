import { afterEach, expect, test } from "bun:test";
import { SelfTestFailed } from "../datapath/generation/self-test.ts";
import { emptyMesh, type Mesh } from "../mesh/model.ts";
import { LiveTables, type Tables } from "./live-tables.ts";

const RETRY = 20;
const PATIENCE = 60;
const report = { frontends: 0, clusters: 0, writes: 7, milliseconds: 1, relinked: 0 };

/** Tables that are not live. Writes succeed or fail as `answers` says; the last answer repeats. */
function tables(answers: (() => ReturnType<Tables["publish"]>)[]) {
  const written: Mesh[] = [];
  const told: string[] = [];
  const lines: string[] = [];
  const snapshot = { mesh: emptyMesh(), writtenAt: new Date(0) };
  const datapath = { governs: false, takesOver: false, readBack: () => {} };
  const ownership: Tables = {
    datapath,
    adopted: false,
    before: undefined,
    acquire: () => {},
    acquireWithin: async () => {},
    release: () => {},
    publish(mesh) {
      written.push(mesh);
      const answer = answers.length > 1 ? answers.shift() : answers[0];
      return answer?.() ?? report;
    },
  };
  const live = new LiveTables(
    {
      ownership,
      snapshots: { load: () => snapshot, changed: () => {}, hold: () => {}, pause: () => {} },
      reporter: { applied: () => void told.push("applied"), restored: () => void told.push("restored") },
      log: { error: (line) => void lines.push(line) },
      changed: () => {},
    },
    RETRY,
    PATIENCE,
  );
  open.push(live);
  return { live, datapath, snapshot, written, told, lines };
}

const open: LiveTables[] = [];
afterEach(() => {
  for (const live of open.splice(0)) live.stop();
});

const full = () => {
  throw new Error("no room in the map");
};
const works = () => report;

test("a snapshot that can't be written is told of and tried again", async () => {
  const { live, snapshot, written, told, lines } = tables([full, full, works]);
  live.begin();
  expect(live.status().tables.lastError?.text).toBe("no room in the map");
  expect(lines).toEqual(["The snapshot can't be made live: no room in the map. Next try in 0.02 s."]);
  expect(live.mesh).toBeUndefined();
  await live.live;
  expect(written).toEqual([snapshot.mesh, snapshot.mesh, snapshot.mesh]);
  expect(live.status()).toMatchObject({ snapshot: { writes: 7 }, mesh: { current: false } });
  expect(live.status().tables.lastError).toBeUndefined();
  await Bun.sleep(3 * RETRY);
  expect(written).toHaveLength(3);
  expect(told).toEqual(["restored"]);
});

test("istiod's push ends that, also when it can't be written itself at first", async () => {
  const { live, written, told } = tables([full, full, works]);
  live.begin();
  const mesh = emptyMesh();
  live.publish(mesh, { everything: true });
  await live.live;
  expect(written.slice(1).every((each) => each === mesh)).toBe(true);
  expect(live.status()).toMatchObject({ mesh: { current: true }, tables: { applies: 1 } });
  await Bun.sleep(3 * RETRY);
  expect(written).toHaveLength(3);
  expect(told).toEqual(["applied"]);
});

test("programs that failed their probe are tried again, and the snapshot goes on being one", async () => {
  const selfTestFailed = new SelfTestFailed("connect4 leads nowhere");
  selfTestFailed.retryAfter = RETRY;
  const { live, written, told, lines } = tables([() => ({ ...report, selfTestFailed }), works]);
  live.begin();
  expect(live.status()).toMatchObject({
    snapshot: { writes: 7 },
    tables: { applies: 0, lastError: { text: selfTestFailed.message } },
  });
  await Bun.sleep(3 * RETRY);
  expect(written).toHaveLength(2);
  expect(live.status()).toMatchObject({ snapshot: { writes: 7 }, mesh: { current: false } });
  expect(live.status().tables.lastError).toBeUndefined();
  expect(told).toEqual(["restored"]);
  expect(lines).toEqual([`${selfTestFailed.message}. Next try in 0.02 s.`]);
});

test("a successor gives up with the reason, over nothing and over another version's tables", () => {
  for (const takesOver of [false, true]) {
    const { live, datapath } = tables([full]);
    Object.assign(datapath, { takesOver, governs: takesOver });
    expect(() => live.takeOver()).toThrow(new Error("no room in the map"));
  }
});

test("an agent that takes tables back by which nothing governs tries its snapshot again", async () => {
  const { live, written, snapshot } = tables([full, works]);
  live.begin();
  live.pause();
  await Bun.sleep(2 * RETRY);
  expect(written).toHaveLength(1);
  live.takeBack();
  expect(live.mesh).toBe(snapshot.mesh);
});

test("the tables of another version govern until a push is whole, or for a while", async () => {
  const partial: Mesh = { ...emptyMesh(), pending: { ports: "all", fallback: true } };
  const patient = tables([works]);
  Object.assign(patient.datapath, { takesOver: true, governs: true });
  patient.live.publish(partial, { everything: true });
  patient.live.publish(partial, { everything: true });
  expect([patient.written, patient.live.behind]).toEqual([[], true]);
  const whole = emptyMesh();
  patient.live.publish(whole, { everything: true });
  expect(patient.written).toEqual([whole]);
  const waiting = tables([works]);
  Object.assign(waiting.datapath, { takesOver: true, governs: true });
  waiting.live.publish(partial, { everything: true });
  expect(waiting.written).toEqual([]);
  await Bun.sleep(2 * PATIENCE);
  expect(waiting.written).toEqual([partial]);
  expect(waiting.lines[0]).toContain("still unknown after 0.06 s");
  const own = tables([works]);
  own.live.publish(partial, { everything: true });
  expect(own.written).toEqual([partial]);
});
