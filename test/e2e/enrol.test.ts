/** `kmesh enrol`, `unenrol` and `wait` of the single file, with an agent and without. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { appendFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parse } from "yaml";
import { Locks } from "../../src/agent/locks.ts";
import { Authority } from "../lab/authority.ts";
import { eventually, type RunResult, run, sleep } from "../lab/process.ts";
import { AgentLab, KMESH, missing, shop } from "./agent-lab.ts";

const why = missing();
if (why) console.warn(`skipped: enrolment by command: ${why}`);

setDefaultTimeout(90_000);

describe.skipIf(why !== undefined)("enrolment by command", () => {
  let lab: AgentLab;
  let file: string;
  const kmesh = (...args: string[]) => {
    const folders = lab.folders.filter((flag) => !flag.startsWith("--config"));
    return run([KMESH, ...args, ...folders, `--config=${file}`], { netns: lab.namespace.path });
  };
  const folders = () => ({
    runDir: join(lab.folder, "run"),
    stateDir: join(lab.folder, "state"),
    bpffs: lab.bpffs,
  });
  const enrolled = async () => (await lab.status()).kernel?.settings?.units.map(({ unit }) => unit);

  beforeAll(async () => {
    lab = await AgentLab.create(shop({ v1: 90, v2: 10 }));
    file = join(lab.folder, "config.yaml");
    writeFileSync(file, "# mine\nunit:\n  - kmesh-one.service # first\n", { mode: 0o640 });
  }, 60_000);
  afterAll(async () => {
    if (lab) expect(await lab.remove()).toEqual([]);
  }, 30_000);

  test("nothing is governed before the first start, and wait ends with 8", async () => {
    expect(await kmesh("wait", "--timeout=0")).toMatchObject({ code: 8, stdout: "" });
    expect(await kmesh("enrol", "kmesh-two")).toMatchObject({ code: 0 });
    await lab.liveAgent(`--config=${file}`);
    expect(await enrolled()).toEqual(["kmesh-one.service", "kmesh-two.service"]);
    expect(await kmesh("wait")).toMatchObject({ code: 0, stdout: "", stderr: "" });
  });

  test("an agent takes it over at once, and again is no change", async () => {
    const { code, stdout } = await kmesh("enrol", "kmesh-three");
    expect({ code, stdout }).toEqual({
      code: 0,
      stdout: "governed from now on: kmesh-three.service\nReloaded unit\n",
    });
    expect(await enrolled()).toContain("kmesh-three.service");
    expect(await kmesh("enrol", "kmesh-three")).toMatchObject({
      code: 0,
      stdout: "governed already: kmesh-three.service\n",
    });
    expect(await kmesh("unenrol", "kmesh-two")).toMatchObject({ code: 0 });
    expect(await enrolled()).not.toContain("kmesh-two.service");
  });

  test("what the agent refuses leaves the file as it was", async () => {
    const before = readFileSync(file, "utf8");
    writeFileSync(file, `${before}shadow: perhaps\n`);
    const { code, stderr } = await kmesh("enrol", "kmesh-four");
    expect(code).toBe(1);
    expect(stderr).toContain('"perhaps" is neither true nor false');
    expect(readFileSync(file, "utf8")).toBe(`${before}shadow: perhaps\n`);
    writeFileSync(file, before);
  });

  describe("during a hand-over", () => {
    const excludes = async () => (await lab.status()).excludes ?? [];
    /** Has `body` done while a successor waits for istiod, which then answers, or does not before its time is over. */
    async function handingOver(answers: boolean, body: () => Promise<void>): Promise<RunResult> {
      const pid = await lab.agentPid();
      lab.freezeControlPlane(true);
      const restart = kmesh("restart", "--graceful", answers ? "--timeout=25" : "--timeout=3");
      try {
        await eventually("a successor", async () => lab.agents().find((each) => each !== pid));
        // It has read its configuration by now.
        await sleep(1_000);
        await body();
        if (!answers) await restart;
      } finally {
        lab.freezeControlPlane(false);
      }
      return restart;
    }

    test("SIGHUP is heeded by the successor when it took over", async () => {
      const before = await lab.agentPid();
      const { code } = await handingOver(true, async () => {
        appendFileSync(file, "exclude: [192.0.2.1/32]\n");
        process.kill(before, "SIGHUP");
        await sleep(300);
        expect(await excludes()).toEqual([]);
      });
      expect(code).toBe(0);
      expect(await lab.agentPid()).not.toBe(before);
      await eventually("the successor reloaded", async () => (await excludes()).join() === "192.0.2.1/32");
    });

    test("and by the agent itself when no successor took over", async () => {
      const pid = await lab.agentPid();
      const { code } = await handingOver(false, async () => {
        writeFileSync(file, readFileSync(file, "utf8").replace("192.0.2.1/32", "192.0.2.2/32"));
        process.kill(pid, "SIGHUP");
      });
      expect(code).toBe(6);
      expect(await lab.agentPid()).toBe(pid);
      await eventually("the agent reloaded", async () => (await excludes()).join() === "192.0.2.2/32");
    });

    test("enrol waits for its end", async () => {
      let enrolling: Promise<RunResult> | undefined;
      const { code } = await handingOver(true, async () => {
        enrolling = kmesh("enrol", "kmesh-later");
        await sleep(1_000);
        expect(await enrolled()).not.toContain("kmesh-later.service");
      });
      expect(code).toBe(0);
      const { code: done, stdout, stderr } = (await enrolling) ?? {};
      expect([done, stderr]).toEqual([0, expect.stringContaining("waiting for the end of a hand-over")]);
      expect(stdout).toContain("governed from now on: kmesh-later.service");
      expect(await enrolled()).toContain("kmesh-later.service");
      expect(await kmesh("unenrol", "kmesh-later")).toMatchObject({ code: 0 });
    });
  });

  test("without an agent the kernel's list is changed, and wait still says yes", async () => {
    process.kill(await lab.agentPid(), "SIGKILL");
    await eventually("no agent runs", async () => !(await lab.status()).alive);
    expect(await kmesh("wait", "--timeout=0")).toMatchObject({ code: 0 });
    expect(await kmesh("unenrol", "kmesh-one", "kmesh-three")).toMatchObject({ code: 0 });
    expect(await enrolled()).toEqual([]);
    expect(readFileSync(file, "utf8")).toContain("# mine\nunit:");
    expect(await kmesh("enrol", "kmesh-five")).toMatchObject({ code: 0 });
    expect(await enrolled()).toEqual(["kmesh-five.service"]);
  });

  describe("beside an agent that is just starting", () => {
    const unitsInFile = () => parse(readFileSync(file, "utf8")).unit;

    test("whenever enrol comes, agent and file agree", async () => {
      const unit = "kmesh-early.service";
      for (const [round, lead] of [-150, -75, 0, 75, 150, 225].entries()) {
        const order = round % 2 === 0 ? "enrol" : "unenrol";
        const enrolling = lead < 0 ? kmesh(order, unit) : undefined;
        if (enrolling) await sleep(-lead);
        const agent = lab.startAgent(`--config=${file}`);
        if (!enrolling) await sleep(lead);
        const { code, stderr } = await (enrolling ?? kmesh(order, unit));
        expect([lead, code, code === 0 ? "" : stderr]).toEqual([lead, 0, ""]);
        expect([lead, unitsInFile().includes(unit)]).toEqual([lead, order === "enrol"]);
        await lab.statusOnce("it serves", agent, ({ pid }) => pid === agent.pid);
        await eventually(
          "they agree",
          async () => String((await enrolled())?.sort()) === String(unitsInFile().sort()),
        );
        await agent.stop("SIGKILL");
      }
    });

    test("a command that has the locks for a moment does not keep it from starting", async () => {
      const locks = Locks.acquireBriefly(folders());
      const agent = lab.startAgent(`--config=${file}`);
      await eventually("it waits", async () => lab.agents().includes(agent.pid));
      await sleep(400);
      locks.release();
      await lab.statusOnce("it serves", agent, ({ pid }) => pid === agent.pid);
      await agent.stop("SIGKILL");
    });
  });

  test("several at once, and a join among them: each finds what the others wrote", async () => {
    const files = join(lab.folder, "files");
    mkdirSync(files);
    const claims = { aud: ["istio-ca"], sub: "system:serviceaccount:shop:vm", exp: Date.now() / 1000 + 3600 };
    const members = {
      "cluster.env":
        "ISTIO_META_CLUSTER_ID='Kubernetes'\nPOD_NAMESPACE='shop'\nSERVICE_ACCOUNT='vm'\nTRUST_DOMAIN='cluster.local'\n",
      "mesh.yaml": "defaultConfig:\n  discoveryAddress: istiod.istio-system.svc:15012\n",
      "root-cert.pem": new Authority(lab.folder).root,
      "istio-token": `x.${Buffer.from(JSON.stringify(claims)).toString("base64url")}.x`,
      hosts: "127.0.0.1 istiod.istio-system.svc\n",
    };
    for (const [name, text] of Object.entries(members)) writeFileSync(join(files, name), text);
    const units = ["kmesh-a", "kmesh-b", "kmesh-c", "kmesh-d"];
    const results = await Promise.all([
      ...units.map((unit) => kmesh("enrol", unit)),
      kmesh("unenrol", "kmesh-five"),
      kmesh("join", "--from", files),
    ]);
    expect(results.map(({ code, stderr }) => (code === 0 ? "" : stderr)).join("")).toBe("");
    const { unit, istiod } = parse(readFileSync(file, "utf8"));
    expect(unit.sort()).toEqual(units.map((name) => `${name}.service`));
    expect(istiod).toBe("istiod.istio-system.svc:15012");
    expect((await enrolled())?.sort()).toEqual(unit);
  });
});
