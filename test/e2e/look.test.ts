/** Who may look at an agent, who may not, and what they are told; the agent's log level while it runs. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { chmodSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { askAgent, orderAgent } from "../../src/admin/client.ts";
import { adminSocket, readerSocket } from "../../src/admin/status.ts";
import { COMMANDS } from "../../src/cli/commands.ts";
import { loadAll } from "../../src/cli/framework/command.ts";
import { eventually, type OwnedProcess, type RunResult, run } from "../lab/process.ts";
import { AgentLab, KMESH, missing, shop } from "./agent-lab.ts";

const why = missing();
if (why) console.warn(`skipped: looking at an agent: ${why}`);

/** No group of this machine has it. */
const GROUP = 54_321;

describe.skipIf(why !== undefined)("an agent that is looked at", () => {
  let lab: AgentLab;
  let agent: OwnedProcess;
  let runDir = "";

  beforeAll(async () => {
    lab = await AgentLab.create(shop({ v1: 90, v2: 10 }));
    runDir = join(lab.folder, "run");
    chmodSync(lab.folder, 0o755);
    // Who reads its log goes away after the first line.
    lab.program = ["bash", "-c", 'exec "$@" 2> >(head -1 > /dev/null)', "bash", KMESH];
    agent = await lab.liveAgent(`--admin-group=${GROUP}`);
    lab.program = [KMESH];
  }, 60_000);
  afterAll(async () => {
    if (lab) expect(await lab.remove()).toEqual([]);
  }, 30_000);

  function asUser(group: number, ...args: string[]): Promise<RunResult> {
    const user = ["setpriv", "--reuid=65534", `--regid=${group}`, "--clear-groups"];
    return run([...user, KMESH, ...args], {
      netns: lab.namespace.path,
      env: { KMESH_BPFFS: lab.bpffs, KMESH_STATE_DIR: `${lab.folder}/state`, KMESH_RUN_DIR: runDir },
    });
  }

  test("members of admin-group see status, explain and dump", async () => {
    const status = await asUser(GROUP, "status", "-o", "json");
    expect([status.code, status.stderr]).toEqual([0, ""]);
    expect(JSON.parse(status.stdout)).toMatchObject({ schema: 1, alive: true, pid: agent.pid, damage: [] });
    expect((await asUser(GROUP, "status", "shop.demo")).stdout).toContain("shop.demo.svc.cluster.local:80");
    expect((await asUser(GROUP, "explain", "shop.demo:80")).stdout).toContain("127.1.0.3:8080");
    expect((await asUser(GROUP, "dump", "tables")).stdout).toContain("10.96.0.10:80");
    expect((await asUser(GROUP, "log-level", "debug")).code).toBe(4);
  });

  test("the group's socket takes no order, and the other one is closed to it", async () => {
    expect([statSync(runDir).mode & 0o777, statSync(runDir).gid]).toEqual([0o710, GROUP]);
    for (const path of ["/reload", "/restart", "/log-level"]) {
      const order = orderAgent(readerSocket(runDir), path, { level: "debug" }, () => {}, 1_000);
      expect(await order.catch((error) => error.status)).toBeOneOf([404, 405]);
    }
    const knock = `python3 -c 'import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])' ${adminSocket(runDir)}`;
    const user = ["setpriv", "--reuid=65534", `--regid=${GROUP}`, "--clear-groups", "sh", "-c", knock];
    expect((await run(user)).stderr).toContain("Permission denied");
    expect(await askAgent(adminSocket(runDir), "/log-level")).toEqual({ level: "info", configured: "info" });
  });

  test("others are told to use root, by every command", async () => {
    const words: Record<string, string[]> = {
      dump: ["tables"],
      explain: ["a:1"],
      resolve: ["a"],
      enrol: ["a.service"],
      unenrol: ["a.service"],
      upgrade: ["/bin/true"],
      config: ["diff"],
      completion: ["bash"],
    };
    const commands = (await loadAll(COMMANDS)).filter(({ hidden }) => !hidden);
    for (const { name } of commands) {
      const { code, stderr } = await asUser(65_534, name, ...(words[name] ?? []));
      if (["version", "completion"].includes(name)) expect([name, code, stderr]).toEqual([name, 0, ""]);
      else
        expect([name, code, stderr]).toEqual([
          name,
          4,
          expect.stringMatching(/needs root.*\n {2}Run it .*sudo/),
        ]);
    }
  }, 30_000);

  test("what shows itself again and again ends when nobody can see it", async () => {
    for (const command of ["topology --watch", "status --watch"]) {
      const line = `"$0" ${command} ${lab.folders.join(" ")} | head -1 > /dev/null; exit "\${PIPESTATUS[0]}"`;
      expect([command, (await run(["bash", "-c", line, KMESH], { netns: lab.namespace.path })).code]).toEqual(
        [command, 0],
      );
    }
  }, 20_000);

  test("a port that a service lacks is named with those that it has", async () => {
    const wrong = await lab.kmesh("explain", "shop.demo:81", "--output=json");
    expect(wrong.code).toBe(2);
    expect(JSON.parse(wrong.stdout)).toEqual({
      schema: 1,
      error: {
        message: "shop.demo has no port 81; it has 80",
        next: "kmesh status lists the services.",
        exit: 2,
      },
    });
    expect((await lab.kmesh("explain", "10.96.0.10:81")).stdout).toContain(
      "10.96.0.10 is an address of shop.demo.svc.cluster.local, which has no such port; it has 80",
    );
  });

  test("doctor HOST:PORT tries each endpoint, and names the one that fails", async () => {
    const well = await lab.kmesh("doctor", "shop.demo:80");
    expect([well.code, well.stdout]).toEqual([0, expect.stringContaining("3 endpoints: all answer.")]);
    const mesh = shop({ v1: 90, v2: 10 });
    // Nothing listens at port 8081.
    const dead = { address: "127.1.0.3", port: 8081, subset: "v2" };
    const services = mesh.services.map((each) => ({ ...each, endpoints: [...each.endpoints, dead] }));
    lab.configure({ ...mesh, services });
    const found = await eventually("the fourth endpoint", async () => {
      const { code, stdout } = await lab.kmesh("doctor", "shop.demo:80", "-o", "json");
      return code === 1 && JSON.parse(stdout);
    });
    expect(found).toMatchObject({ schema: 1, ok: false, destinations: [{ verdict: "redirect" }] });
    const failing = found.destinations[0].endpoints.filter(({ state }: { state: string }) => state !== "ok");
    expect(failing).toEqual([
      expect.objectContaining({
        address: "127.1.0.3",
        port: 8081,
        error: expect.objectContaining({ code: "ECONNREFUSED", text: "nothing listens there" }),
      }),
    ]);
    expect((await lab.kmesh("doctor", "shop.demo:80")).stdout).toContain("1 of 4 endpoints fails.");
    expect((await lab.kmesh("doctor", "shop.demo:81")).stderr).toContain(
      "shop.demo has no port 81; it has 80",
    );
  }, 30_000);

  test("bug-report writes one archive, without the secrets that lie around", async () => {
    const secrets = ["hunter-probe", "hunter-metadata", "hunter-comment", "PRIVATE-hunter-key"];
    const config = join(lab.folder, "secret.yaml");
    writeFileSync(
      config,
      [
        `istiod: 127.0.0.1:15010 # ${secrets[2]}`,
        "plaintext: true",
        `metadata: {APP_PASSWORD: ${secrets[1]}}`,
        `readiness-probe: {httpGet: {port: 8080, httpHeaders: [{name: Authorization, value: ${secrets[0]}}]}}`,
        `bpffs: ${lab.bpffs}`,
        `state-dir: ${lab.folder}/state`,
        `run-dir: ${runDir}`,
      ].join("\n"),
    );
    writeFileSync(
      join(lab.folder, "state", "key.pem"),
      `-----BEGIN PRIVATE KEY-----\n${secrets[3]}\n-----END PRIVATE KEY-----\n`,
    );
    const path = join(lab.folder, "report.tar.gz");
    const { code, stdout } = await run([KMESH, "bug-report", path, "--config", config], {
      netns: lab.namespace.path,
    });
    expect([code, stdout]).toEqual([0, expect.stringMatching(/report\.tar\.gz \(\d+ files, \d+ KB\)/)]);
    expect(statSync(path).mode & 0o777).toBe(0o600);
    const all = await run(["tar", "-xzOf", path]);
    for (const secret of [...secrets, "PRIVATE KEY"])
      expect([secret, all.stdout.includes(secret)]).toEqual([secret, false]);
    for (const kept of [
      "shop.demo.svc.cluster.local",
      "127.1.0.3",
      '"schema": 1',
      'APP_PASSWORD: "[left out]"',
    ])
      expect([kept, all.stdout.includes(kept)]).toEqual([kept, true]);
    const names = (await run(["tar", "-tzf", path])).stdout;
    for (const name of ["status.json", "doctor.json", "dump/tables.json", "journal.txt", "kernel/uname.txt"])
      expect(names).toContain(`/${name}\n`);
  }, 60_000);

  test("the log level changes while the agent runs, which nobody's log reader ends", async () => {
    const said = await lab.kmesh("log-level", "debug", "--output=json");
    expect(JSON.parse(said.stdout)).toEqual({ schema: 1, level: "debug", configured: "info" });
    expect((await lab.kmesh("log-level")).stdout).toBe("debug (the next start takes info)\n");
    expect((await lab.kmesh("log-level", "loud")).code).toBe(2);
    expect((await lab.kmesh("log-level", "info")).stdout).toBe("info\n");
    // Lines without a reader since the first one.
    expect(agent.status).toBeUndefined();
    await agent.stop("SIGTERM");
    agent = await lab.liveAgent();
    expect((await lab.kmesh("log-level", "debug")).code).toBe(0);
    lab.configure(shop({ v1: 50, v2: 50 }));
    await lab.statusOnce("another push", agent, ({ tables }) => (tables?.applies ?? 0) > 1);
    expect(lab.said("The log level is debug now, instead of info").length).toBe(1);
    expect(statSync(runDir).mode & 0o777).toBe(0o700);
    expect((await asUser(GROUP, "status")).code).toBe(4);
  }, 30_000);
});
