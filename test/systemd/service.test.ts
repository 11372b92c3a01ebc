/** kmesh.service under a real systemd. The tests are one life, in order. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { TUNNEL_SOCKETS } from "../../src/cli/service/systemd.ts";
import { HOOK_ORDER } from "../../src/datapath/generation/pins.ts";
import { Authority } from "../lab/authority.ts";
import { OTHER_VERSION, otherBuild } from "../lab/other-build.ts";
import { eventually } from "../lab/process.ts";
import { fetchRoot, SERVICE, SystemdMachine } from "./machine.ts";

setDefaultTimeout(60_000);

const { root, missing: why } = fetchRoot();
if (why !== undefined) console.warn(`skipped: systemd: ${why}`);

const HOOKS = [...HOOK_ORDER].sort();

describe.skipIf(why !== undefined)("kmesh.service", () => {
  let machine: SystemdMachine;
  let links: Record<string, number>;
  const says = (text: string) =>
    eventually(`the journal has: ${text}`, async () => (await machine.journal()).includes(text));

  beforeAll(async () => {
    machine = await SystemdMachine.boot(root);
  }, 120_000);
  afterAll(async () => {
    if (machine) expect(await machine.remove()).toEqual([]);
  }, 60_000);

  test("install tells what it would do, and does nothing", async () => {
    const text = await machine.output(machine.download, "install", "--dry-run");
    expect(text).toStartWith("Dry run");
    for (const line of [
      "/usr/local/bin/kmesh",
      "/etc/systemd/system/kmesh.service",
      "/etc/kmesh/config.yaml",
    ])
      expect(text).toContain(`write   ${line}`);
    expect(text).toContain("systemctl daemon-reload");
    expect(text).toContain("systemctl enable kmesh.service");
    expect(machine.exists("/usr/local/bin/kmesh")).toBe(false);
    expect(machine.exists("/etc/kmesh")).toBe(false);
  });

  test("installed without a configuration, it is not started, and says what is missing", async () => {
    const result = await machine.run(machine.download, "install", "--start");
    expect(result.code).toBe(2);
    expect(result.stderr).toContain(
      "is installed and enabled, and was not started: istiod's address is missing",
    );
    expect(result.stderr).toContain("/etc/kmesh/config.yaml");
    expect(await machine.property("ActiveState")).toBe("inactive");
    expect(await machine.output(machine.download, "install")).toContain(
      "can't start yet, at boot neither: istiod's",
    );
  });

  test("started unconfigured it waits longer each time, until the file changes; one that is wrong is not tried again", async () => {
    expect((await machine.run("systemctl", "start", "kmesh")).code).toBe(1);
    expect(await machine.property("ExecMainStatus")).toBe("11");
    await says("The last 2 starts failed: this one waits 2 s, or until /etc/kmesh/config.yaml changes");
    await says("The last 3 starts failed: this one waits 6 s");
    const restarts = Number(await machine.property("NRestarts"));
    const changed = performance.now();
    // A root that the operator can read, and the service can't: check, doctor and the service say the same.
    await machine.output("install", "-m", "600", "/dev/null", "/root/ca.pem");
    machine.configure({ ca: "/root/ca.pem" });
    await machine.until("ActiveState", (state) => state === "failed");
    expect(performance.now() - changed).toBeLessThan(5_000);
    expect(await machine.property("ExecMainStatus")).toBe("2");
    const words = "key ca: /root/ca.pem can't be seen by kmesh.service (ProtectHome=yes hides /root)";
    expect(await machine.journal()).toContain(words);
    const check = await machine.run("kmesh", "config", "check");
    expect([check.code, check.stdout.includes(words)]).toEqual([2, true]);
    expect((await machine.run("kmesh", "doctor")).stdout).toContain(words);
    await Bun.sleep(2_500);
    expect(Number(await machine.property("NRestarts"))).toBe(restarts);
    expect(await machine.governs()).toBe(false);

    // The sandbox is that of the unit with its drop-ins.
    const dropIn = "/run/systemd/system/kmesh.service.d";
    await machine.output("mkdir", "-p", dropIn);
    machine.write(`${dropIn}/home.conf`, "[Service]\nProtectHome=read-only\n");
    expect((await machine.run("kmesh", "config", "check")).stdout).not.toContain("can't be seen");
    await machine.output("rm", "-r", dropIn);
  });

  test("configured, it starts, is ready once it governs, and says so in its status", async () => {
    machine.configure();
    await machine.output("kmesh", "install", "--start");
    expect(await machine.property("ActiveState")).toBe("active");
    links = await machine.links();
    expect(Object.keys(links).sort()).toEqual(HOOKS);
    expect(await machine.governs()).toBe(true);
    expect(await machine.until("StatusText", (text) => text.includes("in sync"))).toMatch(
      /^Governing \d+ services, \d+ endpoints; in sync with istiod at 127\.0\.0\.1:15010$/,
    );
    // Nothing that systemd had to ignore.
    expect(await machine.output("systemd-analyze", "verify", "/etc/systemd/system/kmesh.service")).toBe("");
    expect((await machine.run("kmesh", "status")).stdout).toContain("attached: ");
  });

  test("installed again, there is nothing to do", async () => {
    const pid = await machine.property("MainPID");
    const { steps } = JSON.parse(await machine.output("kmesh", "install", "--start", "--output=json"));
    expect(new Set(steps.map((step: { action: string }) => step.action))).toEqual(new Set(["keep"]));
    expect(await machine.property("MainPID")).toBe(pid);
  });

  test("stands where the boot needs it, in as small a room as it can have", async () => {
    const late = await machine.output(
      "systemctl",
      "show",
      "--value",
      "--property=After",
      "network-pre.target",
    );
    expect(late.trim().split(" ")).toContain("kmesh.service");
    expect((await machine.property("After")).split(" ")).not.toContain("sysinit.target");
    const analysed = await machine.run("systemd-analyze", "security", "--threshold=32", "kmesh.service");
    expect(analysed.stdout).toMatch(/Overall exposure level for kmesh.service: [0-3]\.\d/);
    expect(analysed.code).toBe(0);
  });

  test("systemctl stop leaves everything attached; the next start takes it over without a write", async () => {
    await machine.output("systemctl", "stop", "kmesh");
    expect(await machine.property("Result")).toBe("success");
    expect(await machine.links()).toEqual(links);
    expect(await machine.governs()).toBe(true);
    const dead = await machine.run("kmesh", "status");
    expect(dead.code).toBe(3);
    expect(dead.stdout).toContain("The last one");

    // A manifest of a later version is refused once, not every 2 s.
    const manifest = "/var/lib/kmesh/manifest.json";
    await machine.output(
      "bash",
      "-c",
      `cp -p ${manifest} /root/ && sed -i 's/"version": 1,/"version": 99,/' ${manifest}`,
    );
    expect((await machine.run("systemctl", "start", "kmesh")).code).toBe(1);
    expect(await machine.property("ExecMainStatus")).toBe("9");
    await Bun.sleep(2_500);
    expect([await machine.property("NRestarts"), await machine.property("ActiveState")]).toEqual([
      "0",
      "failed",
    ]);
    expect(await machine.links()).toEqual(links);
    await machine.output("cp", "-p", "/root/manifest.json", manifest);

    await machine.output("systemctl", "start", "kmesh");
    expect(await adopted(machine)).toEqual({ adopted: true, writes: 0 });
    expect(await machine.links()).toEqual(links);
  });

  test("systemctl restart leaves everything attached", async () => {
    const pid = await machine.property("MainPID");
    await machine.output("systemctl", "restart", "kmesh");
    expect(await machine.property("MainPID")).not.toBe(pid);
    expect(await adopted(machine)).toEqual({ adopted: true, writes: 0 });
    expect(await machine.links()).toEqual(links);
    expect(await machine.governs()).toBe(true);
  });

  test("members of admin-group may look, from inside the sandbox too", async () => {
    const file = "/etc/kmesh/config.yaml";
    const look = ["setpriv", "--reuid=65534", "--regid=65534", "--groups=4", "kmesh", "status", "--brief"];
    expect((await machine.run(...look)).code).toBe(4);
    await machine.output("bash", "-c", `cp -p ${file} /root/ && echo 'admin-group: adm' >> ${file}`);
    await machine.output("systemctl", "restart", "kmesh");
    expect(await machine.output("stat", "-c", "%a %G", "/run/kmesh", "/run/kmesh/status.sock")).toBe(
      "710 adm\n770 adm\n",
    );
    expect(await machine.output(...look)).toContain("hooks     all attached");
    await machine.output("cp", "-p", "/root/config.yaml", file);
    await machine.output("systemctl", "restart", "kmesh");
    expect((await machine.run(...look)).code).toBe(4);
    expect(await machine.output("stat", "-c", "%a", "/run/kmesh")).toBe("700\n");
  });

  test("restart --graceful: another main process of a unit that stays active, and a watchdog that goes on", async () => {
    const dropIn = "/run/systemd/system/kmesh.service.d";
    await machine.output("mkdir", "-p", dropIn);
    machine.write(`${dropIn}/short.conf`, "[Service]\nWatchdogSec=2s\n");
    await machine.output("systemctl", "daemon-reload");
    await machine.output("systemctl", "restart", "kmesh");
    const pid = await machine.property("MainPID");
    const restarts = await machine.property("NRestarts");
    const text = await machine.output("kmesh", "restart", "--graceful", "--output=json");
    expect(JSON.parse(text)).toMatchObject({ map_writes: 0, relinked: 0, failed: 0, refused: 0 });
    const next = await machine.until("MainPID", (now) => now !== pid);
    expect(next).toBe(`${JSON.parse(text).pid}`);
    // Longer than the watchdog's patience.
    await Bun.sleep(4_500);
    expect(await machine.property("ActiveState")).toBe("active");
    expect(await machine.property("MainPID")).toBe(next);
    expect(await machine.property("NRestarts")).toBe(restarts);
    expect(await machine.property("StatusText")).toContain("in sync");
    expect(await machine.links()).toEqual(links);
    expect(await machine.governs()).toBe(true);
    // systemd knows it as its own: a stop is SIGTERM, and waits for the end.
    await machine.output("systemctl", "stop", "kmesh");
    expect(await machine.property("Result")).toBe("success");
    expect((await machine.journal()).trimEnd()).toContain(
      "SIGTERM: the agent ends, what the kernel holds stays",
    );
    await machine.output("rm", "-r", dropIn);
    await machine.output("systemctl", "daemon-reload");
    await machine.output("systemctl", "start", "kmesh");
    expect(await adopted(machine)).toEqual({ adopted: true, writes: 0 });
  });

  test("upgrade to a version with another layout and rollback: the unit stays active, and starts from its name", async () => {
    machine.put("/root/kmesh-wide", await otherBuild("wide-layout"));
    await machine.output("chmod", "+x", "/root/kmesh-wide");
    const version = async () => JSON.parse(await machine.output("kmesh", "status", "--output=json")).version;
    const before = await version();
    let trials = 1;
    for (const [args, expected] of [
      [["upgrade", "/root/kmesh-wide"], OTHER_VERSION["wide-layout"]],
      [["rollback"], before],
    ] as const) {
      const proof = JSON.parse(await machine.output("kmesh", ...args, "--output=json"));
      expect(proof).toMatchObject({ to_version: expected, failed: 0, refused: 0, relinked: 5 });
      await machine.until("MainPID", (now) => now === `${proof.pid}`);
      // In a cgroup below the unit's own, although the sandbox has all others read-only.
      expect((await machine.journal()).split("led connections right on trial").length).toBe(++trials);
      expect(await machine.property("ActiveState")).toBe("active");
      expect(await version()).toBe(expected);
      expect(await machine.governs()).toBe(true);
    }
    await machine.output("systemctl", "restart", "kmesh");
    expect(await version()).toBe(before);
    expect(await machine.links()).toEqual(links);
  }, 120_000);

  test("install --start of another version hands over; when its unit is new too, it is then restarted", async () => {
    const wide = "/root/kmesh-wide";
    const version = async () => JSON.parse(await machine.output("kmesh", "status", "--output=json")).version;
    const before = {
      version: await version(),
      active: await machine.property("ActiveEnterTimestampMonotonic"),
    };
    const text = await machine.output(wide, "install", "--start");
    expect(text).toContain(
      "replace /usr/local/bin/kmesh (the agent that runs hands over to it first; the one before",
    );
    expect(text).toContain(`Handed over from ${before.version} to ${OTHER_VERSION["wide-layout"]} (pid `);
    await machine.until("StatusText", (status) => status.includes("in sync"));
    expect(await version()).toBe(OTHER_VERSION["wide-layout"]);
    expect(await machine.property("ActiveEnterTimestampMonotonic")).toBe(before.active);
    expect(await machine.governs()).toBe(true);
    expect(await machine.output("kmesh", "install", "--start")).not.toContain("replace");

    // Another unit than this version's, and what an upgrade left that was killed.
    await machine.output(
      "bash",
      "-c",
      "echo '# old' >>/etc/systemd/system/kmesh.service; echo half >/usr/local/bin/kmesh.next",
    );
    await machine.output("systemctl", "daemon-reload");
    const back = JSON.parse(await machine.output(machine.download, "install", "--start", "--output=json"));
    expect(back.proof).toMatchObject({ to_version: before.version, failed: 0, refused: 0 });
    expect(back.steps.at(-1)).toMatchObject({ target: "systemctl restart kmesh.service" });
    expect(machine.exists("/usr/local/bin/kmesh.next")).toBe(false);
    expect(await version()).toBe(before.version);
    expect(await machine.property("NeedDaemonReload")).toBe("no");
    expect(await machine.links()).toEqual(links);
    expect(await machine.governs()).toBe(true);

    // Put into place without --start: the next one has the agent take it.
    await machine.output(wide, "install");
    expect(await version()).toBe(before.version);
    expect(await machine.output("kmesh", "install", "--start")).toContain("run     kmesh restart --graceful");
    expect(await version()).toBe(OTHER_VERSION["wide-layout"]);
    await machine.output("kmesh", "rollback");
    expect(await version()).toBe(before.version);
  }, 120_000);

  test("killed, it comes back and takes over", async () => {
    const pid = await machine.property("MainPID");
    const restarts = Number(await machine.property("NRestarts"));
    await machine.output("bash", "-c", `kill -9 ${pid}`);
    expect(await machine.governs()).toBe(true);
    await machine.until("NRestarts", (count) => Number(count) === restarts + 1);
    await machine.until("ActiveState", (state) => state === "active");
    expect(await adopted(machine)).toEqual({ adopted: true, writes: 0 });
    expect(await machine.links()).toEqual(links);
  });

  test("systemctl reload takes over what can change, and says what can't", async () => {
    machine.configure({ exclude: ["203.0.113.0/24"], namespace: "elsewhere" });
    const pid = await machine.property("MainPID");
    await machine.output("systemctl", "reload", "kmesh");
    await says("Reloaded exclude. A restart is needed for namespace");
    expect((await status(machine)).kernel.settings.exclusions.join()).toContain("203.0.113.0/24");

    machine.configure({ exclude: [`${SERVICE}/32`] });
    await machine.output("systemctl", "reload", "kmesh");
    await eventually("the service is excluded", async () => !(await machine.governs()));

    machine.configure({ cgroup: ["/does-not-exist"] });
    await machine.output("systemctl", "reload", "kmesh");
    await says("Not reloaded, all stays as it was: there is no cgroup /does-not-exist");
    expect(await machine.governs()).toBe(false);
    machine.write("/etc/kmesh/config.yaml", "istiod: [");
    await machine.output("systemctl", "reload", "kmesh");
    await says("Not reloaded, all stays as it was: /etc/kmesh/config.yaml");
    expect(await machine.governs()).toBe(false);

    machine.configure({ "access-log": "journal", "access-log-format": "json" });
    await machine.output("systemctl", "reload", "kmesh");
    await eventually("the service is governed again", () => machine.governs());
    const command = ["journalctl", "--identifier=kmesh-access", "--no-pager", "--output=json"];
    const entry = await eventually("the journal has the connection", async () => {
      const [first = ""] = (await machine.output(...command)).split("\n");
      return first === "" ? undefined : first;
    });
    // It is the agent's entry, by what journald itself knows of the writer.
    expect(JSON.parse(entry)).toMatchObject({
      _SYSTEMD_UNIT: "kmesh.service",
      PRIORITY: "6",
      MESSAGE: expect.stringMatching(
        /^\{"time":.*"unit":"run-[^"]+\.service".*"received":11,.*"end":"closed"/,
      ),
    });
    machine.configure();
    await machine.output("systemctl", "reload", "kmesh");
    // The order to reload is given when systemctl returns; the agent may be at it.
    await machine.until("ActiveState", (state) => state === "active");
    expect(await machine.property("MainPID")).toBe(pid);
  });

  test("the watchdog is fed, and ends an agent that is stuck", async () => {
    const dropIn = "/run/systemd/system/kmesh.service.d";
    await machine.output("mkdir", "-p", dropIn);
    machine.write(`${dropIn}/short.conf`, "[Service]\nWatchdogSec=2s\n");
    await machine.output("systemctl", "daemon-reload");
    await machine.output("systemctl", "restart", "kmesh");
    const pid = await machine.property("MainPID");
    await Bun.sleep(4_500);
    expect(await machine.property("MainPID")).toBe(pid);
    await machine.output("bash", "-c", `kill -STOP ${pid}`);
    expect(await machine.governs()).toBe(true);
    await machine.until("MainPID", (now) => now !== pid && now !== "0");
    await machine.until("ActiveState", (state) => state === "active");
    expect(await machine.journal()).toContain("Watchdog timeout");
    expect(await machine.links()).toEqual(links);
  });

  test("a unit that must not run outside the mesh starts while it governs", async () => {
    machine.write(
      "/run/systemd/system/shop.service",
      ["[Service]", "Type=oneshot", "ExecStart=/bin/true"].join("\n"),
    );
    const text = await machine.output("kmesh", "enrol", "shop", "--at-boot=closed");
    expect(text).toContain("governed already: the whole machine is");
    expect(text).toContain("write   /etc/systemd/system/shop.service.d/50-kmesh.conf (at boot: closed)");
    expect((await machine.run("systemctl", "start", "shop")).code).toBe(0);
  });

  test("down stops the service too, or it would come back", async () => {
    expect(await machine.output("kmesh", "down", "--yes")).toContain("kmesh.service was stopped");
    expect(await machine.property("ActiveState")).toBe("inactive");
    expect(await machine.links()).toEqual({});
    expect(await machine.governs()).toBe(false);
    // What starts now starts kmesh, and waits for it.
    await machine.output("systemctl", "start", "shop");
    expect(Object.keys(await machine.links()).sort()).toEqual(HOOKS);
  });

  test("uninstall says what it would do, then detaches and takes it all away", async () => {
    const plan = await machine.output("kmesh", "uninstall", "--dry-run");
    expect(plan).toContain(`detach  ${machine.bpffs}`);
    expect(await machine.property("ActiveState")).toBe("active");
    expect(await machine.governs()).toBe(true);

    const asked = await machine.run("kmesh", "uninstall");
    expect(asked.code).toBe(2);
    expect(asked.stderr).toContain("--yes");
    expect(await machine.governs()).toBe(true);

    const text = await machine.output("kmesh", "uninstall", "--yes");
    expect(text).toContain("keep    /etc/kmesh/config.yaml (edited since install wrote it)");
    expect(await machine.links()).toEqual({});
    expect(await machine.governs()).toBe(false);
    for (const path of [
      "/usr/local/bin/kmesh",
      "/etc/systemd/system/kmesh.service",
      "/etc/systemd/system/kmesh-wait.service",
      "/etc/systemd/system/kmesh-tunnel.service",
      ...TUNNEL_SOCKETS.map((name) => `/etc/systemd/system/${name}`),
      "/var/lib/kmesh",
      "/run/kmesh",
    ])
      expect(machine.exists(path)).toBe(false);
    expect(await machine.property("LoadState")).toBe("not-found");
    // Nothing would ever come for which it could wait.
    expect(text).toContain("remove  /etc/systemd/system/shop.service.d/50-kmesh.conf (at boot: closed)");
    expect(machine.exists("/etc/systemd/system/shop.service.d")).toBe(false);
    expect((await machine.run("systemctl", "start", "shop")).code).toBe(0);

    expect(await machine.output(machine.download, "uninstall", "--yes")).toContain("Nothing to do");
  });

  test("installed from istioctl's files alone, it runs by what it kept of them, before there is a network", async () => {
    await machine.output("rm", "-r", "/etc/kmesh");
    const folder = mkdtempSync(join(tmpdir(), "kmesh-files-"));
    const root = new Authority(folder).root;
    rmSync(folder, { recursive: true });
    const claims = { aud: ["istio-ca"], sub: "system:serviceaccount:shop:vm", exp: Date.now() / 1000 + 3600 };
    const files = {
      "cluster.env":
        "ISTIO_META_CLUSTER_ID='Kubernetes'\nPOD_NAMESPACE='shop'\nSERVICE_ACCOUNT='vm'\nTRUST_DOMAIN='cluster.local'\n",
      "mesh.yaml": "defaultConfig:\n  discoveryAddress: istiod.istio-system.svc:15012\n",
      "root-cert.pem": root,
      "istio-token": `x.${Buffer.from(JSON.stringify(claims)).toString("base64url")}.x`,
      hosts: "127.0.0.1 istiod.istio-system.svc\n",
    };
    await machine.output("mkdir", "-m", "700", "/root/files");
    for (const [name, text] of Object.entries(files)) machine.write(`/root/files/${name}`, text);
    await machine.output(machine.download, "install", "--from", "/root/files");
    await machine.output("rm", "-r", "/root/files");
    expect(await machine.property("ActiveState")).toBe("active");
    expect(await machine.output("stat", "-c", "%a %U", "/var/lib/kmesh/istio-token")).toBe("600 root\n");
    expect(await machine.output("kmesh", "config", "check")).toContain("/etc/kmesh/config.yaml");
    await machine.output("systemctl", "restart", "kmesh");
    await says("no address that peers could reach");
    await machine.output("kmesh", "uninstall", "--yes");
  });
});

interface StatusJson {
  adopted: boolean;
  tables: { applies: number; writes: number };
  kernel: { settings: { exclusions: string[] } };
}

async function status(machine: SystemdMachine): Promise<StatusJson> {
  return JSON.parse(await machine.output("kmesh", "status", "--output=json"));
}

/** What the agent that runs found and wrote, once istiod's first push is in. */
async function adopted(machine: SystemdMachine): Promise<{ adopted: boolean; writes: number }> {
  return eventually("istiod's first push is live", async () => {
    const { adopted, tables } = await status(machine);
    return tables.applies > 0 && { adopted, writes: tables.writes };
  });
}
