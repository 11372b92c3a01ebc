/** Hand-overs of the real single file under real connections. The agents here are nobody's children after the first. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { readStatus } from "../../src/admin/status.ts";
import { checksum } from "../../src/cli/service/executable.ts";
import type { Proof } from "../../src/handover/predecessor.ts";
import type { Entry } from "../../src/state/history.ts";
import { OTHER_VERSION, otherBuild } from "../lab/other-build.ts";
import { eventually, OwnedProcess, sleep } from "../lab/process.ts";
import { AgentLab, KMESH, missing, programsOf, SERVICE, type StatusJson, shop } from "./agent-lab.ts";

const why = missing();
if (why) console.warn(`skipped: hand-overs: ${why}`);

setDefaultTimeout(90_000);

describe.skipIf(why !== undefined)("a hand-over", () => {
  let lab: AgentLab;
  const pid = async () => (await lab.status()).pid ?? 0;
  /** Runs `body` under connections of both kinds, none of which may notice. Gives how many were made. */
  const unnoticed = async (body: () => Promise<void>): Promise<number> => {
    const storm = await lab.client("storm", { threads: 2 });
    const hold = await lab.client("hold", { count: 5 });
    await body();
    const [made, held] = await Promise.all([storm.end(), hold.end()]);
    expect(made.errors).toEqual({});
    expect(held).toMatchObject({ cut: 0, errors: {} });
    expect(Object.keys(made.peers)).toEqual([`${SERVICE} 80`]);
    return made.made;
  };
  const agents = () => lab.agents();
  /** Waits for the end of other agents: a killed one is there for a moment more. */
  const only = (pid: number) =>
    eventually(`${pid} is the only agent`, async () => agents().length === 1 && agents()[0] === pid);

  beforeAll(async () => {
    lab = await AgentLab.create(shop({ v1: 90, v2: 10 }));
    await lab.liveAgent();
  }, 60_000);
  afterAll(async () => {
    if (lab) expect(await lab.remove()).toEqual([]);
  }, 30_000);

  test("restart --graceful: another process, no write, no hook linked anew, and the kernel's own numbers", async () => {
    const before = await lab.status();
    const counted = governed(before);
    const made = await unnoticed(async () => {
      await sleep(200);
      const { code, stdout, stderr } = await lab.kmesh("restart", "--graceful", "--output=json");
      expect(code).toBe(0);
      expect(stderr).toContain("Successor is in sync: 3 services");
      const proof: Proof = JSON.parse(stdout);
      expect(proof).toMatchObject({
        failed: 0,
        refused: 0,
        map_writes: 0,
        relinked: 0,
        from_version: before.version,
        to_version: before.version,
        synced: true,
      });
      expect(proof.pid).not.toBe(before.pid);
      expect(proof.connections).toBeGreaterThan(10);
      expect(proof.gap_ms).toBeGreaterThan(0);
      expect(proof.gap_ms).toBeLessThan(1_000);
      expect(await lab.status()).toMatchObject({ alive: true, pid: proof.pid, adopted: true });
      // Without an agent, the file is what is known of them.
      const hosts = () => readStatus(join(lab.folder, "run"))?.names?.hosts;
      await eventually("the status file has the names", async () => hosts() === before.names?.hosts);
    });
    // The counters missed none of them.
    expect(governed(await lab.status()) - counted).toBe(made + 5);
    await only(await pid());
  });

  test("again and again, also with the configuration changed in between", async () => {
    await unnoticed(async () => {
      for (const share of [50, 90]) {
        const proof = await lab.json<Proof>("restart", "--graceful");
        expect(proof).toMatchObject({ failed: 0, refused: 0, map_writes: 0 });
        lab.configure(shop({ v1: share, v2: 100 - share }));
        await eventually("the change is live", async () => {
          const { by } = await lab.connect(20);
          return by.c === (20 * (100 - share)) / 100;
        });
      }
    });
    await only(await pid());
  });

  test("the text says the same", async () => {
    const { code, stdout } = await lab.kmesh("restart", "--graceful");
    expect(code).toBe(0);
    for (const line of [
      /^Restarted in \d/m,
      /^no agent in control for +[\d.]+ ms$/m,
      /^map writes +0$/m,
      /^failed +0$/m,
    ])
      expect(stdout).toMatch(line);
  });

  test("restart without the flag keeps the pid", async () => {
    const before = await lab.status();
    await unnoticed(async () => {
      const result = await lab.kmesh("restart", "--output=json");
      expect(JSON.parse(result.stdout)).toMatchObject({ pid: before.pid, service: null });
    });
    const after = await lab.status();
    expect(after.pid).toBe(before.pid ?? 0);
    expect(after.startedAt).not.toBe(before.startedAt);
    expect(after).toMatchObject({ adopted: true, alive: true });
  });

  test("a second one meanwhile is refused, and the first one comes to its end", async () => {
    const [one, two] = await Promise.all([
      lab.kmesh("restart", "--graceful", "--output=json"),
      sleep(20).then(() => lab.kmesh("restart", "--graceful", "--output=json")),
    ]);
    const codes = [one.code, two.code].sort();
    // The second may have come to the successor, when the first was over.
    if (codes[1] !== 0) {
      expect(codes).toEqual([0, 7]);
      expect(one.stderr + two.stderr).toMatch(/a restart is under way since|only about to take over/);
    }
    await eventually("one is left", async () => agents().length === 1);
  });

  test("a successor that does not get in sync in time is stopped, and the agent goes on", async () => {
    const before = await pid();
    await unnoticed(async () => {
      // istiod falls silent: it takes connections, and says nothing.
      lab.freezeControlPlane(true);
      const { code, stderr } = await lab.kmesh("restart", "--graceful", "--timeout=2");
      lab.freezeControlPlane(false);
      expect(code).toBe(6);
      expect(stderr).toContain("no restart: the successor was not ready within 2 s");
      expect(stderr).toContain("The previous agent continues");
      await only(before);
    });
    expect(await lab.status()).toMatchObject({ alive: true, pid: before });
    lab.configure(shop({ v1: 50, v2: 50 }));
    await eventually("the agent still follows istiod", async () => (await lab.connect(20)).by.c === 10);
    lab.configure(shop({ v1: 90, v2: 10 }));
    await eventually("and again", async () => (await lab.connect(20)).by.c === 2);
  });

  test("a successor that is killed, at any moment, changes nothing", async () => {
    const before = await pid();
    await unnoticed(async () => {
      for (const delay of [0, 30, 60, 90, 110]) {
        const restart = lab.kmesh("restart", "--graceful", "--output=json");
        const successor = await eventually("a successor", async () =>
          agents().find((each) => each !== before),
        );
        await sleep(delay);
        try {
          process.kill(successor, "SIGKILL");
        } catch {
          // It was not there any more, or yet.
        }
        const { code, stderr } = await restart;
        if (code === 0) break;
        // On a busy machine it may be killed while it is still a copy of the agent, before it executes the file.
        expect([code, stderr]).toEqual([6, expect.stringMatching(/no restart: (the successor|execve)/)]);
        await only(before);
        expect(await lab.status()).toMatchObject({ alive: true, pid: before });
        expect((await lab.connect(20)).made).toBe(20);
      }
    });
    if (agents().length === 0) await lab.liveAgent();
  });

  test("when the agent is killed meanwhile its successor carries on", async () => {
    const before = await pid();
    await unnoticed(async () => {
      lab.freezeControlPlane(true);
      const restart = lab.kmesh("restart", "--graceful");
      const successor = await eventually("a successor", async () => agents().find((each) => each !== before));
      await sleep(300);
      process.kill(before, "SIGKILL");
      const { code, stderr } = await restart;
      lab.freezeControlPlane(false);
      expect(code).not.toBe(0);
      expect(stderr).toMatch(/hung up|hangs|no agent/);
      await eventually("the successor is the agent", async () => {
        const status = await lab.status();
        return status.alive && status.pid === successor && (status.tables?.applies ?? 0) > 0;
      });
    });
    await only(await pid());
  });

  test("without istiod the successor takes over what the kernel holds", async () => {
    await lab.stopControlPlane();
    await eventually("istiod is missed", async () => (await lab.status()).stream?.connected === false);
    await unnoticed(async () => {
      const { code, stdout } = await lab.kmesh("restart", "--graceful", "--output=json");
      expect(code).toBe(0);
      expect(JSON.parse(stdout)).toMatchObject({ synced: false, map_writes: 0, failed: 0, refused: 0 });
      expect((await lab.status()).mesh).toMatchObject({ services: 3, current: false });
    });
    await lab.startControlPlane();
    await eventually("istiod is back", async () => (await lab.status()).stream?.synced === true, 30_000);
    expect((await lab.status()).tables?.writes).toBe(0);
  }, 60_000);

  test("an agent that hangs is told of, and does nothing later", async () => {
    const before = await pid();
    process.kill(before, "SIGSTOP");
    const { code, stderr } = await lab.kmesh("restart", "--graceful");
    expect([code, stderr]).toEqual([
      1,
      expect.stringContaining("the agent hangs: the agent said nothing for 10 s"),
    ]);
    expect((await lab.connect(20)).made).toBe(20);
    await sleep(500);
    process.kill(before, "SIGCONT");
    await sleep(500);
    await only(before);
    expect(await pid()).toBe(before);
  });

  test("history has all of them, starts after a crash too", async () => {
    const entries = (await lab.json<{ entries: Entry[] }>("history")).entries;
    expect(entries[0]).toMatchObject({ kind: "start", cause: "first start", result: "done" });
    const results = new Set(entries.map(({ kind, result }) => `${kind} ${result}`));
    for (const each of ["start done", "stop done", "restart done", "restart failed"])
      expect(results).toContain(each);
    expect(entries.find(({ result }) => result === "failed")?.reason).toContain("successor");
    const text = (await lab.kmesh("history")).stdout;
    expect(text).toMatch(/restart .* done .* gap [\d.]+ ms, \d+ connections, 0 failed/);

    process.kill(await pid(), "SIGKILL");
    await lab.liveAgent();
    expect((await lab.json<{ entries: Entry[] }>("history")).entries.at(-1)).toMatchObject({
      kind: "start",
      cause: "crash",
    });
  });

  test("with no agent each says so", async () => {
    process.kill(await pid(), "SIGTERM");
    await eventually("the agent is gone", async () => agents().length === 0);
    for (const args of [["restart"], ["restart", "--graceful"]]) {
      const { code, stderr } = await lab.kmesh(...args);
      expect([code, stderr]).toEqual([3, expect.stringContaining("no agent runs with")]);
    }
    expect((await lab.kmesh("history")).code).toBe(0);
  });

  test("a full state folder does not keep it from happening", async () => {
    // A folder in the file's place: nothing can be written there.
    await lab.liveAgent();
    const file = join(lab.folder, "state/history.json");
    rmSync(file, { force: true });
    mkdirSync(join(file, "full"), { recursive: true });
    expect((await lab.kmesh("restart", "--graceful")).code).toBe(0);
    expect((await lab.json<{ entries: Entry[] }>("history")).entries).toEqual([]);
    rmSync(file, { recursive: true });
    writeFileSync(join(lab.folder, "state/history.json"), "{");
    expect((await lab.kmesh("restart", "--graceful")).code).toBe(0);
    expect((await lab.json<{ entries: Entry[] }>("history")).entries.length).toBe(1);
  });
});

describe.skipIf(why !== undefined)("an upgrade", () => {
  const folder = mkdtempSync(join(tmpdir(), "kmesh-upgrade-"));
  const installed = join(folder, "kmesh");
  let lab: AgentLab;
  let wide: string;
  let bad: string;

  beforeAll(async () => {
    wide = await otherBuild("wide-layout");
    bad = await otherBuild("bad-probe");
    copyFileSync(KMESH, installed);
    lab = await AgentLab.create(shop({ v1: 90, v2: 10 }), [installed]);
    await lab.liveAgent();
  }, 120_000);
  afterAll(async () => {
    if (lab) expect(await lab.remove()).toEqual([]);
    rmSync(folder, { recursive: true, force: true });
  }, 30_000);

  test("to a version with another layout, back, and forward again: no connection notices", async () => {
    const storm = await lab.client("storm", { threads: 2 });
    const hold = await lab.client("hold", { count: 5 });
    const { version } = await lab.status();
    const up = await lab.json<Proof>("upgrade", wide);
    expect(up).toMatchObject({
      failed: 0,
      refused: 0,
      relinked: 5,
      to_version: OTHER_VERSION["wide-layout"],
    });
    expect((await lab.status()).executable).toBe(installed);
    const down = await lab.json<Proof>("rollback");
    expect(down).toMatchObject({ failed: 0, refused: 0, relinked: 5, to_version: version });
    expect(await lab.json<Proof>("rollback")).toMatchObject({ to_version: OTHER_VERSION["wide-layout"] });
    expect(await lab.json<Proof>("rollback")).toMatchObject({ to_version: version });
    const [made, held] = await Promise.all([storm.end(), hold.end()]);
    expect(made.errors).toEqual({});
    expect(held).toMatchObject({ cut: 0, errors: {} });
    expect((await lab.json<{ entries: Entry[] }>("history")).entries.map(({ kind }) => kind)).toEqual([
      "start",
      "upgrade",
      "rollback",
      "rollback",
      "rollback",
    ]);
  });

  const FLAW =
    "the new programs failed their probe: a connection to 192.0.2.1 port 80, which they were to lead to 127.0.0.1: " +
    "connect: ECONNREFUSED. They were attached nowhere: what governed before governs on";
  const pins = () => readdirSync(lab.bpffs, { recursive: true, encoding: "utf8" }).sort();

  test("to programs that lead connections astray: it fails at once, and nothing of it is left", async () => {
    const { pid, version } = await lab.status();
    const before = governed(await lab.status());
    const left = pins();
    const storm = await lab.client("storm", { threads: 2 });
    const hold = await lab.client("hold", { count: 5 });
    const began = performance.now();
    const { code, stderr } = await lab.kmesh("upgrade", bad);
    expect(performance.now() - began).toBeLessThan(15_000);
    expect([code, stderr]).toEqual([6, expect.stringContaining(`the successor gave up: ${FLAW}`)]);
    expect(stderr).toContain("The previous agent continues");
    expect(await lab.status()).toMatchObject({ alive: true, pid, version, executable: installed });
    expect(pins()).toEqual(left);
    const [made, held] = await Promise.all([storm.end(), hold.end()]);
    expect(made.errors).toEqual({});
    expect(held).toMatchObject({ cut: 0, errors: {} });
    expect(governed(await lab.status()) - before).toBe(made.made + 5);
    expect((await lab.json<{ entries: Entry[] }>("history")).entries.at(-1)).toMatchObject({
      kind: "upgrade",
      result: "failed",
    });
    // The agent follows istiod as before.
    lab.configure(shop({ v1: 50, v2: 50 }));
    await eventually("the change is live", async () => (await lab.connect(20)).by.c === 10);
  });

  test("such programs put into place and started: the version before governs, and log and status say why", async () => {
    const { pid } = await lab.status();
    const storm = await lab.client("storm", { threads: 2 });
    const left = pins();
    process.kill(pid ?? 0, "SIGTERM");
    await eventually("the agent is gone", async () => !(await lab.status()).alive);
    lab.program = [bad];
    const agent = lab.startAgent();
    await eventually("the probe failed", () => agent.output().includes(FLAW));
    const { kernel, tables } = await lab.statusOnce(
      "it says so",
      agent,
      (status) => !!status.tables?.lastError,
    );
    expect(tables?.lastError?.text).toBe(FLAW);
    expect(kernel?.foreign).toBeDefined();
    expect((await lab.kmesh("status")).stdout).toContain(FLAW);
    lab.configure(shop({ v1: 90, v2: 10 }));
    await sleep(500);
    // One line, however often istiod pushes.
    expect(agent.output().split(FLAW).length).toBe(2);
    await agent.stop();
    expect(pins()).toEqual(left);
    lab.program = [installed];
    await lab.liveAgent();
    await eventually("istiod is followed", async () => (await lab.connect(20)).by.c === 2);
    expect((await storm.end()).errors).toEqual({});
  });

  test("a file that is no kmesh for this machine is refused before anything is done", async () => {
    const { pid } = await lab.status();
    const text = join(folder, "text");
    writeFileSync(text, "#!/bin/sh\n", { mode: 0o755 });
    const cases: [string[], string][] = [
      [[join(folder, "none")], "does not exist"],
      [[folder], "is not a file"],
      [[text], "not an ELF file"],
      [["/bin/ls"], "is not a kmesh"],
      [[wide, `--sha256=${"0".repeat(64)}`], "is damaged or another one"],
    ];
    for (const [args, reason] of cases) {
      const { code, stderr } = await lab.kmesh("upgrade", ...args);
      expect([code, stderr]).toEqual([1, expect.stringContaining(reason)]);
    }
    expect((await lab.kmesh("upgrade", installed)).stdout).toContain("Nothing to do");
    expect((await lab.status()).pid).toBe(pid ?? 0);
  });

  test("a version for which the shared maps are something else is refused before anything changes", async () => {
    const other = await otherBuild("other-keep");
    const { pid, version } = await lab.status();
    const before = await programsOf(lab.bpffs);
    const { code, stderr } = await lab.kmesh("upgrade", other);
    expect([code, stderr]).toEqual([6, expect.stringContaining("endpoint_load: 32 bytes here")]);
    expect(await lab.status()).toMatchObject({ alive: true, pid, version });
    expect(await programsOf(lab.bpffs)).toEqual(before);
    expect(existsSync(`${installed}.next`)).toBe(false);
    expect(checksum(installed)).toBe(checksum(KMESH));
  }, 120_000);

  test("what a killed upgrade left is put away by the next", async () => {
    // Killed while it copied.
    writeFileSync(`${installed}.next`, "half of a");
    writeFileSync(`${installed}.previous.new`, "");
    expect(await lab.json<Proof>("upgrade", wide)).toMatchObject({
      to_version: OTHER_VERSION["wide-layout"],
    });
    for (const name of ["next", "previous.new"]) expect(existsSync(`${installed}.${name}`)).toBe(false);
    expect(checksum(`${installed}.previous`)).toBe(checksum(KMESH));

    // Killed while the agent handed over, which it goes on to do.
    const { pid } = await lab.status();
    const killed = new OwnedProcess({
      name: "rollback",
      log: join(folder, "rollback.log"),
      command: [installed, "rollback", ...lab.folders],
      netns: lab.namespace.path,
    });
    await eventually("a successor starts", () => killed.output().includes("Successor started"));
    await killed.stop("SIGKILL");
    await eventually("it takes over", async () => (await lab.status()).pid !== pid);
    expect((await lab.status()).executable).toBe(`${installed}.next`);
    expect((await lab.kmesh("rollback")).stderr).toContain("Finishing what was left");
    expect(checksum(installed)).toBe(checksum(wide));
    expect(checksum(`${installed}.previous`)).toBe(checksum(KMESH));
    expect(existsSync(`${installed}.next`)).toBe(false);
    expect((await lab.connect(20)).made).toBe(20);
  }, 60_000);
});

/** Connections to services that the kernel decided, ever. */
function governed({ kernel }: StatusJson): number {
  return (kernel?.services ?? [])
    .filter(({ service }) => service.startsWith("shop."))
    .reduce((sum, { redirected, passed }) => sum + redirected + passed, 0);
}
