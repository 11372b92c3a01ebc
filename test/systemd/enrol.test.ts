/** Units that are enrolled by name, without an agent and at boot. The tests are one life, in order. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { eventually } from "../lab/process.ts";
import { fetchRoot, SystemdMachine } from "./machine.ts";

setDefaultTimeout(120_000);

const { root, missing: why } = fetchRoot();
if (why !== undefined) console.warn(`skipped: units: ${why}`);

describe.skipIf(why !== undefined)("units that are enrolled by name", () => {
  let machine: SystemdMachine;

  beforeAll(async () => {
    machine = await SystemdMachine.boot(root, true);
    await machine.addApplications("early", "shut");
    await eventually("the machine is governed", () => machine.governs(), 30_000);
  }, 180_000);
  afterAll(async () => {
    if (machine) expect(await machine.remove()).toEqual([]);
  }, 60_000);

  const shown = (unit: string, property: string) => machine.property(property, unit);
  const answered = (unit: string) => machine.answered(unit);

  async function redirected(): Promise<number> {
    const { kernel } = JSON.parse((await machine.run("kmesh", "status", "--output=json")).stdout);
    return kernel.services.find(({ service }: { service: string }) => service.startsWith("shop.")).redirected;
  }

  /** As `systemctl mask` does for a unit that comes from elsewhere. */
  async function masked(during: () => Promise<void>): Promise<void> {
    const unit = "/etc/systemd/system/kmesh.service";
    await machine.output(
      "bash",
      "-c",
      `mv ${unit} /root/ && ln -s /dev/null ${unit} && systemctl daemon-reload`,
    );
    try {
      await during();
    } finally {
      await machine.output("bash", "-c", `mv /root/kmesh.service ${unit} && systemctl daemon-reload`);
    }
  }

  test("enrol tells what it would write, then writes it, and again there is nothing to do", async () => {
    const file = "/etc/systemd/system/early.service.d/50-kmesh.conf";
    const plan = await machine.output("kmesh", "enrol", "--only", "early", "--dry-run");
    expect(plan).toContain(`write   ${file} (at boot: open)`);
    expect(machine.exists(file)).toBe(false);
    const text = await machine.output("kmesh", "enrol", "--only", "early");
    expect(text).toContain("governed from now on: early.service");
    expect(text).toContain("run     systemctl daemon-reload");
    expect(machine.exists(file)).toBe(true);
    expect((await shown("early.service", "After")).split(" ")).toContain("kmesh.service");
    expect(await machine.output("kmesh", "enrol", "early")).toBe("governed already: early.service\n");
    // As if the one before had been killed before it told systemd.
    await machine.output("touch", "-d", "now + 1 min", file);
    expect(await machine.output("kmesh", "enrol", "early")).toContain("run     systemctl daemon-reload");
    expect(await machine.output("kmesh", "status")).toContain(
      "open (rather outside the mesh than not at all): early.service",
    );
    await machine.output("systemctl", "start", "early", "shut");
    expect(await answered("early")).toBe(true);
    expect(await machine.unanswered("shut")).toBe(true);
  });

  test("restarted while the agent is dead, a unit stays governed, each connection counted", async () => {
    await masked(async () => {
      await machine.output("bash", "-c", `kill -9 ${await machine.property("MainPID")}`);
      await machine.until("ActiveState", (state) => state === "failed" || state === "inactive");
      expect((await machine.run("kmesh", "status")).code).toBe(3);
      const pid = await shown("early.service", "MainPID");
      const cgroup = await shown("early.service", "ControlGroupId");
      await machine.output("systemctl", "restart", "early");
      expect(await shown("early.service", "MainPID")).not.toBe(pid);
      expect(Number(cgroup)).toBeGreaterThan(0);
      expect(await shown("early.service", "ControlGroupId")).not.toBe(cgroup);
      const before = await redirected();
      expect(await answered("early")).toBe(true);
      expect(await redirected()).toBeGreaterThan(before);
      // Others are not.
      expect(await machine.unanswered("shut")).toBe(true);
      expect(await machine.property("MainPID")).toBe("0");
    });
    await machine.output("systemctl", "start", "kmesh");
  });

  test("closed: neither a stop nor a restart of kmesh stops a unit, and what is pinned is enough to start it", async () => {
    const text = await machine.output("kmesh", "enrol", "shut", "--at-boot", "closed");
    expect(text).toContain("write   /etc/systemd/system/shut.service.d/50-kmesh.conf (at boot: closed)");
    expect(await machine.output("kmesh", "enrol", "shut")).toBe("governed already: shut.service\n");
    const pids = () => Promise.all(["early.service", "shut.service"].map((unit) => shown(unit, "MainPID")));
    await machine.output("systemctl", "restart", "shut");
    const before = await pids();
    expect(await answered("shut")).toBe(true);
    await machine.output("systemctl", "restart", "kmesh");
    await machine.output("kmesh", "restart", "--graceful");
    await machine.output("systemctl", "stop", "kmesh");
    const refused = await machine.run("systemctl", "stop", "kmesh-wait");
    expect(refused.stderr).toContain("may be requested by dependency only");
    expect(await pids()).toEqual(before);
    expect(await shown("kmesh-wait.service", "ActiveState")).toBe("inactive");
    await masked(async () => {
      await machine.output("systemctl", "restart", "shut");
      expect(await answered("shut")).toBe(true);
    });
    await machine.output("systemctl", "start", "kmesh");
    // Nothing that systemd had to ignore.
    for (const unit of ["kmesh-wait", "early", "shut"])
      expect(await machine.output("systemd-analyze", "verify", `/etc/systemd/system/${unit}.service`)).toBe(
        "",
      );
    const analysed = await machine.run("systemd-analyze", "security", "--threshold=32", "kmesh-wait.service");
    expect(analysed.stdout).toMatch(/Overall exposure level for kmesh-wait.service: [0-3]\.\d/);
  });

  test("at boot the snapshot governs before either starts, while istiod is not there yet", async () => {
    await machine.reboot();
    for (const unit of ["early", "shut"]) {
      expect(await shown(`${unit}.service`, "ActiveState")).toBe("active");
      expect(await answered(unit)).toBe(true);
      expect(await machine.wasOutside(unit)).toBe(false);
      const [ready, started] = await Promise.all([
        shown("kmesh.service", "ActiveEnterTimestampMonotonic"),
        shown(`${unit}.service`, "ExecMainStartTimestampMonotonic"),
      ]);
      expect(Number(started)).toBeGreaterThan(Number(ready));
    }
  });

  test("kmesh can't come up at boot: open starts, closed waits and starts when kmesh comes", async () => {
    machine.write("/etc/kmesh/config.yaml", "plaintext: true\n");
    await machine.reboot("starting");
    await eventually("kmesh tried", async () => Number(await machine.property("NRestarts")) > 0, 30_000);
    expect(await shown("early.service", "ActiveState")).toBe("active");
    expect(await machine.unanswered("early")).toBe(true);
    expect(await shown("shut.service", "ActiveState")).toBe("inactive");
    await eventually(
      "the closed unit waits for kmesh-wait.service",
      async () => {
        const jobs = await machine.output("systemctl", "list-jobs", "--no-legend");
        if (!/shut\.service +start +waiting/.test(jobs) || !/kmesh-wait\.service +start +running/.test(jobs))
          throw new Error(`the jobs are:\n${jobs}`);
        return true;
      },
      30_000,
    );
    expect((await machine.run("kmesh", "wait", "--timeout=0")).code).toBe(8);

    machine.configure({ unit: ["early.service", "shut.service"] });
    await eventually(
      "the closed unit starts",
      async () => (await shown("shut.service", "ActiveState")) === "active",
      30_000,
    );
    expect(await answered("shut")).toBe(true);
    // None of its connections was outside the mesh, not the first either.
    expect(await machine.wasOutside("shut")).toBe(false);
    expect(await machine.wasOutside("early")).toBe(true);
    expect(await answered("early")).toBe(true);
    await eventually(
      "the boot ends",
      async () => (await machine.run("systemctl", "is-system-running")).stdout.trim() === "running",
    );
  });

  test("unenrol takes the drop-in away, and leaves the unit running", async () => {
    const pid = await shown("shut.service", "MainPID");
    const text = await machine.output("kmesh", "unenrol", "shut");
    expect(text).toContain("remove  /etc/systemd/system/shut.service.d/50-kmesh.conf");
    expect(machine.exists("/etc/systemd/system/shut.service.d")).toBe(false);
    expect(await shown("shut.service", "Requires")).not.toContain("kmesh");
    expect(await shown("shut.service", "MainPID")).toBe(pid);
  });
});
