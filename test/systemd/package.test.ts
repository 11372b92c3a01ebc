/** kmesh as a package: upgraded and removed by dpkg with the scripts of systemd/package. The tests are one life, in order. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buildDeb } from "../../build/deb.ts";
import { TUNNEL, TUNNEL_SOCKETS } from "../../src/cli/service/systemd.ts";
import { HOOK_ORDER } from "../../src/datapath/generation/pins.ts";
import { LISTENERS } from "../../src/tunnel/process/listeners.ts";
import { KMESH } from "../e2e/agent-lab.ts";
import { TestMesh } from "../lab/mesh-member.ts";
import { NetworkNamespace, ownName } from "../lab/namespace.ts";
import { OTHER_VERSION, otherBuild } from "../lab/other-build.ts";
import { eventually, output, run, sleep } from "../lab/process.ts";
import { fetchRoot, STRICT_PORT, SystemdMachine } from "./machine.ts";
import type { Tally } from "./tunnel-peer.ts";

setDefaultTimeout(120_000);

/** The machine's address for peers. */
const VM = "172.31.0.1";

const { root, missing } = fetchRoot();
const why = missing ?? (existsSync("/usr/bin/dpkg-deb") ? undefined : "needs /usr/bin/dpkg-deb");
if (why !== undefined) console.warn(`skipped: package: ${why}`);

describe.skipIf(why !== undefined)("kmesh as a package", () => {
  const folder = mkdtempSync(join(tmpdir(), "kmesh-package-"));
  let machine: SystemdMachine;

  /** Makes the package of an executable as build/release does, /root/NAME.deb inside. */
  async function pack(name: string, executable: string, version: string): Promise<string> {
    const file = join(folder, `${name}.deb`);
    const work = join(folder, name);
    const architecture = (await output(["dpkg", "--print-architecture"])).trim();
    buildDeb(
      {
        ...{ executable, runnable: executable, architecture, version, glibc: "2.34", time: 1_700_000_000 },
        ...{ thirdParty: "none\n", compression: ["-Znone"] },
      },
      file,
      work,
    );
    machine.put(`/root/${name}.deb`, file);
    return `/root/${name}.deb`;
  }

  const version = async () => JSON.parse(await machine.output("kmesh", "status", "--output=json")).version;

  beforeAll(async () => {
    machine = await SystemdMachine.boot(root);
    await machine.addApplications("shop");
  }, 120_000);
  afterAll(async () => {
    rmSync(folder, { recursive: true, force: true });
    if (machine) expect(await machine.remove()).toEqual([]);
  }, 60_000);

  test("installed, it is enabled, and not started before it has a configuration", async () => {
    await machine.output("dpkg", "--install", await pack("old", KMESH, "1"));
    expect((await machine.output("systemctl", "is-enabled", "kmesh")).trim()).toBe("enabled");
    expect(await machine.property("ActiveState")).toBe("inactive");
    expect(machine.exists("/etc/systemd/system/kmesh.service")).toBe(false);
    await machine.output("mkdir", "-p", "/etc/kmesh");
    machine.configure();
    await machine.output("systemctl", "start", "kmesh");
    await eventually("it governs", () => machine.governs(), 20_000);
    await machine.output("kmesh", "enrol", "shop", "--at-boot=closed");
    await machine.output("systemctl", "start", "shop");
    expect(await machine.answered("shop")).toBe(true);
  });

  test("an upgrade whose successor refuses the configuration leaves the agent before alone", async () => {
    const file = await pack("new", await otherBuild("wide-layout"), "2");
    const config = "/etc/kmesh/config.yaml";
    const running = async () => [await version(), await machine.property("MainPID")];
    const before = await running();
    await machine.output(
      "bash",
      "-c",
      `cp -p ${config} /root/good.yaml && echo 'shadow: perhaps' >> ${config}`,
    );
    const { code, stdout, stderr } = await machine.run("dpkg", "--install", file);
    expect(stdout + stderr).toContain("the previous version continues; repair the fault above");
    expect(code).toBe(0);
    expect(await running()).toEqual(before);
    expect(await machine.property("NRestarts")).toBe("0");
    await machine.output("cp", "-p", "/root/good.yaml", config);
  });

  test("an upgrade hands over: the unit stays active, no connection is outside the mesh", async () => {
    const before = {
      pid: await machine.property("MainPID"),
      active: await machine.property("ActiveEnterTimestampMonotonic"),
      shop: await machine.property("MainPID", "shop.service"),
    };
    const links = await machine.links();
    await machine.wasOutside("shop");
    const text = await machine.output("dpkg", "--install", "/root/new.deb");
    expect(text).toMatch(/no agent in control for +\d/);
    expect(await version()).toBe(OTHER_VERSION["wide-layout"]);
    await machine.until("MainPID", (pid) => pid !== before.pid && pid !== "0");
    expect(await machine.property("ActiveEnterTimestampMonotonic")).toBe(before.active);
    expect(await machine.property("NRestarts")).toBe("0");
    expect(await machine.links()).toEqual(links);
    expect(await machine.property("MainPID", "shop.service")).toBe(before.shop);
    expect(await machine.answered("shop")).toBe(true);
    expect(await machine.wasOutside("shop")).toBe(false);
  });

  test("its files change with the package alone", async () => {
    await machine.output("cp", "/usr/bin/kmesh", "/root/other");
    for (const [command, text] of [
      [["kmesh", "upgrade", "/root/other"], "/usr/bin/kmesh belongs to the package kmesh"],
      [["kmesh", "rollback"], "/usr/bin/kmesh belongs to the package kmesh"],
      [["/root/other", "install"], "kmesh is installed here as a package"],
    ] as const) {
      const { code, stderr } = await machine.run(...command);
      expect([command, code, stderr]).toEqual([command, 1, expect.stringContaining(text)]);
    }
    await machine.output("rm", "/root/other");
  });

  test("where the agent is stuck, systemd starts the new one", async () => {
    const before = await version();
    await machine.output("bash", "-c", `kill -STOP ${await machine.property("MainPID")}`);
    await machine.output("dpkg", "--install", "/root/old.deb");
    await machine.until("ActiveState", (state) => state === "active");
    expect(await version()).not.toBe(before);
    expect(Object.keys(await machine.links()).sort()).toEqual([...HOOK_ORDER].sort());
    expect(await machine.answered("shop")).toBe(true);
    expect(await machine.wasOutside("shop")).toBe(false);
  });

  describe("its tunnel", () => {
    const mesh = new TestMesh();
    const peerFile = join(folder, "peer.json");
    let far: NetworkNamespace;
    const states = () => Promise.all(TUNNEL_SOCKETS.map((name) => machine.property("ActiveState", name)));
    const asPeer = (seconds: number) =>
      output(
        [
          process.execPath,
          join(import.meta.dirname, "tunnel-peer.ts"),
          peerFile,
          VM,
          `${STRICT_PORT}`,
          `${seconds}`,
        ],
        { netns: far.path, timeoutMs: 30_000 },
      ).then((text): Tally => JSON.parse(text.trim().split("\n").at(-1) ?? ""));
    /** What a peer without TLS gets. */
    const plaintext = () =>
      run(["bash", "-c", `exec 3<>/dev/tcp/${VM}/${STRICT_PORT} && echo hello >&3 && head -n1 <&3`], {
        netns: far.path,
        timeoutMs: 5_000,
      });

    beforeAll(async () => {
      writeFileSync(peerFile, JSON.stringify(mesh.issue("web")), { mode: 0o600 });
      far = await NetworkNamespace.create("far");
      const device = ownName("v");
      await machine.network(
        "ip",
        "link",
        "add",
        device,
        "type",
        "veth",
        "peer",
        "name",
        "vm",
        "netns",
        far.name,
      );
      await machine.network("ip", "addr", "add", `${VM}/24`, "dev", device);
      await machine.network("ip", "link", "set", device, "up");
      await far.ip("addr", "add", "172.31.0.2/24", "dev", "vm");
      await far.ip("link", "set", "vm", "up");
    });
    afterAll(async () => {
      await far?.remove();
      mesh.close();
    });

    test("the agent starts it where a port demands mutual TLS; a peer comes in, plaintext does not", async () => {
      expect(await states()).toEqual(TUNNEL_SOCKETS.map(() => "active"));
      expect(await machine.property("ActiveState", TUNNEL)).toBe("inactive");
      machine.enrolIn(mesh, "vm");
      machine.configure({ tunnel: "on" });
      await machine.output("systemctl", "restart", "kmesh");
      await eventually(
        "the tunnel runs",
        async () => (await machine.property("ActiveState", TUNNEL)) === "active",
      );
      await eventually("a peer is served", async () => (await asPeer(0.2)).served > 0, 15_000, 200);
      expect((await plaintext()).stdout).toBe("");
      const { tunnels } = JSON.parse((await machine.run("kmesh", "status", "--output=json")).stdout);
      const names = tunnels[0].listening.map(({ name }: { name: string }) => name);
      expect(names.sort()).toEqual([...LISTENERS].sort());
    });

    test("killed again and again while peers connect, it refuses nobody", async () => {
      const peer = asPeer(4);
      for (let i = 0; i < 3; i++) {
        await sleep(900);
        await machine.output("systemctl", "kill", "--signal=KILL", TUNNEL);
      }
      const { served, failed, cut } = await peer;
      expect({ failed }).toEqual({ failed: {} });
      expect(served).toBeGreaterThan(20);
      // Four connections at once, three crashes.
      expect(cut).toBeLessThanOrEqual(12);
      console.info(`tunnel killed 3 times: ${served} served, 0 connects failed, ${cut} cut`);
    });

    test("with everything of kmesh dead plaintext is refused, and mutual TLS too", async () => {
      await machine.output("systemctl", "stop", ...TUNNEL_SOCKETS, TUNNEL);
      await machine.output("systemctl", "kill", "--signal=KILL", "kmesh");
      await machine.output("systemctl", "stop", "kmesh");
      expect((await plaintext()).stderr).toContain("refused");
      expect((await asPeer(0.2)).failed).toEqual({ ECONNREFUSED: expect.any(Number) });
      await machine.output("systemctl", "start", "kmesh");
      expect(await states()).toEqual(TUNNEL_SOCKETS.map(() => "active"));
      await eventually("a peer is served again", async () => (await asPeer(0.2)).served > 0, 15_000, 200);
    });
  });

  test("a removal detaches and leaves state and configuration; a purge takes them, too", async () => {
    await machine.output("dpkg", "--remove", "kmesh");
    expect(await machine.links()).toEqual({});
    expect(await machine.property("LoadState")).toBe("not-found");
    for (const path of [
      "/usr/bin/kmesh",
      "/usr/lib/systemd/system/kmesh.service",
      "/usr/lib/systemd/system/kmesh-wait.service",
      "/usr/lib/systemd/system/kmesh-tunnel.service",
      ...TUNNEL_SOCKETS.map((name) => `/usr/lib/systemd/system/${name}`),
      "/etc/systemd/system/shop.service.d",
    ])
      expect(machine.exists(path)).toBe(false);
    for (const path of ["/etc/kmesh/config.yaml", "/var/lib/kmesh"]) expect(machine.exists(path)).toBe(true);
    // The application goes on, and may start again.
    expect(await machine.property("ActiveState", "shop.service")).toBe("active");
    expect((await machine.run("systemctl", "restart", "shop")).code).toBe(0);
    await machine.output("dpkg", "--purge", "kmesh");
    for (const path of [
      "/etc/kmesh",
      "/var/lib/kmesh",
      "/etc/systemd/system/multi-user.target.wants/kmesh.service",
    ])
      expect(machine.exists(path)).toBe(false);
  });

  test("it does not unpack over what kmesh install wrote, whose unit would win", async () => {
    machine.put("/root/kmesh", KMESH);
    await machine.output("/root/kmesh", "install");
    const { code, stderr } = await machine.run("dpkg", "--install", "/root/old.deb");
    expect([code, stderr]).toEqual([1, expect.stringContaining("has put kmesh here already")]);
    const next = /^ {2}(rm .*)$/m.exec(stderr)?.[1] ?? "";
    await machine.output("bash", "-c", next);
    await machine.output("dpkg", "--install", "/root/old.deb");
    expect(await machine.property("FragmentPath")).toEndWith("/lib/systemd/system/kmesh.service");
  });
});
