import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, relative } from "node:path";
import { parse } from "yaml";
import { readConfig } from "../../config/config.ts";
import { HBONE_PORT, STEERED_PORT, TUNNEL_PORT } from "../../mesh/tunnel-address.ts";
import { asset } from "../../runtime/assets.ts";
import { LISTENERS } from "../../tunnel/process/listeners.ts";
import { configTemplate } from "../config-file/config-file.ts";
import { EXIT } from "../framework/exit.ts";
import type { Step } from "../framework/plan.ts";
import { bootStep, dropInOf } from "./boot-order.ts";
import {
  enableStep,
  installedPaths,
  installSteps,
  type Paths,
  packageSteps,
  prefixOf,
  uninstallSteps,
  unitPath,
  unitsOf,
  unitTexts,
} from "./install-plan.ts";
import { GATE, SERVICE, TUNNEL, TUNNEL_SOCKETS } from "./systemd.ts";

let folder: string;
let paths: Paths;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kmesh-install-"));
  paths = installedPaths(join(folder, "root"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

/** The executable to install. */
function download(text: string): string {
  const path = join(folder, "download");
  writeFileSync(path, text);
  return path;
}

function plan(
  executable: string,
  unit = "[Unit]\n",
  documents: { path: string; text: string }[] = [],
): Step[] {
  return [
    ...installSteps(paths, {
      executable,
      units: { ...unitTexts("install"), "kmesh.service": unit, "kmesh-wait.service": "[Unit]\n" },
      documents,
    }),
    enableStep(paths),
  ];
}

async function perform(steps: readonly Step[]): Promise<string[]> {
  for (const { act } of steps) await act?.();
  return steps.map(({ action }) => action);
}

describe("install", () => {
  test("manual pages and completion come with it, and go with it", async () => {
    const path = join(prefixOf(paths), "share/man/man8/kmesh.8");
    const documents = [{ path, text: ".TH KMESH 8\n" }];
    await perform(plan(download("one"), undefined, documents));
    expect([readFileSync(path, "utf8"), statSync(path).mode & 0o777]).toEqual([".TH KMESH 8\n", 0o644]);
    const again = plan(download("one"), undefined, documents);
    expect(again.find(({ target }) => target === path)?.action).toBe("keep");
    await perform(uninstallSteps(paths, false));
    expect(existsSync(path)).toBe(false);
  });

  test("puts everything into place, and then has nothing to do", async () => {
    const source = download("one");
    const first = plan(source);
    expect(existsSync(paths.executable)).toBe(false);
    expect(await perform(first)).toEqual([...Array(9).fill("write"), "link"]);
    expect(readFileSync(paths.executable, "utf8")).toBe("one");
    expect(statSync(paths.executable).mode & 0o777).toBe(0o755);
    expect(readFileSync(paths.unit, "utf8")).toBe("[Unit]\n");
    expect(statSync(paths.config).mode & 0o777).toBe(0o600);
    expect(readlinkSync(paths.wanted)).toBe("../kmesh.service");
    expect(existsSync(paths.previous)).toBe(false);
    expect(await perform(plan(source))).toEqual(Array(10).fill("keep"));
    // From its own place, too.
    expect(await perform(plan(paths.executable))).toEqual(Array(10).fill("keep"));
  });

  test("an upgrade keeps the executable before it, and what the operator wrote", async () => {
    await perform(plan(download("one")));
    writeFileSync(paths.config, "istiod: a:1\n");
    expect(await perform(plan(download("two"), "[Unit]\nDescription=x\n"))).toEqual([
      "replace",
      "replace",
      ...Array(8).fill("keep"),
    ]);
    expect(readFileSync(paths.executable, "utf8")).toBe("two");
    expect(readFileSync(paths.previous, "utf8")).toBe("one");
    await perform(plan(download("three")));
    expect(readFileSync(paths.previous, "utf8")).toBe("two");
    expect(statSync(paths.previous).mode & 0o777).toBe(0o755);
    expect(readFileSync(paths.config, "utf8")).toBe("istiod: a:1\n");
  });

  test("goes on where one before was interrupted", async () => {
    mkdirSync(dirname(paths.executable), { recursive: true });
    writeFileSync(paths.executable, "one");
    writeFileSync(`${paths.executable}.new`, "half of tw");
    writeFileSync(`${paths.previous}.new`, "zero");
    await perform(plan(download("two")));
    expect(readFileSync(paths.executable, "utf8")).toBe("two");
    expect(readFileSync(paths.previous, "utf8")).toBe("one");
    expect(existsSync(`${paths.executable}.new`)).toBe(false);
    expect(existsSync(`${paths.previous}.new`)).toBe(false);
  });

  test("leaves a masked service alone", () => {
    mkdirSync(dirname(paths.unit), { recursive: true });
    symlinkSync("/dev/null", paths.unit);
    expect(() => plan(download("one"))).toThrow("masked");
  });
});

describe("a package", () => {
  /** All files below the root of this test. */
  async function unpack(): Promise<Paths> {
    const packaged = installedPaths(join(folder, "root"), "package");
    const parts = {
      executable: download("one"),
      units: unitTexts("package"),
      documents: [],
    };
    expect(await perform(packageSteps(packaged, parts))).toEqual(Array(8).fill("write"));
    return packaged;
  }

  test("has nothing in /usr/local and /etc, and is found by its unit", async () => {
    expect(installedPaths(join(folder, "root")).origin).toBe("install");
    const packaged = await unpack();
    expect(installedPaths(join(folder, "root"))).toEqual(packaged);
    const files = readdirSync(join(folder, "root"), { recursive: true, withFileTypes: true });
    expect(
      files
        .filter((file) => file.isFile())
        .map((file) => relative(folder, join(file.parentPath, file.name)))
        .sort(),
    ).toEqual([
      "root/usr/bin/kmesh",
      "root/usr/lib/systemd/system/kmesh-tunnel-hbone.socket",
      "root/usr/lib/systemd/system/kmesh-tunnel-inbound.socket",
      "root/usr/lib/systemd/system/kmesh-tunnel-inbound6.socket",
      "root/usr/lib/systemd/system/kmesh-tunnel.service",
      "root/usr/lib/systemd/system/kmesh-tunnel.socket",
      "root/usr/lib/systemd/system/kmesh-wait.service",
      "root/usr/lib/systemd/system/kmesh.service",
    ]);
    for (const name of [SERVICE, GATE, TUNNEL] as const) {
      const unit = unitPath(packaged, name);
      const text = readFileSync(unit, "utf8");
      expect(text).toMatch(/^ExecStart=\/usr\/bin\/kmesh (run|tunnel|wait .*)$/m);
      expect(text).not.toContain("/usr/local");
    }
  });

  test("keeps its files when kmesh is uninstalled; drop-ins and state go", async () => {
    const packaged = await unpack();
    await perform([bootStep(packaged.units, "a.service", "open")]);
    mkdirSync(packaged.state, { recursive: true });
    const steps = uninstallSteps(packaged, false);
    expect(steps.map(({ action, target }) => [action, target])).toEqual([
      ["remove", dropInOf(packaged.units, "a.service")],
      ...unitsOf(packaged).map((path) => ["keep", path]),
      ["keep", packaged.executable],
      ["remove", packaged.state],
    ]);
    await perform(steps);
    expect(existsSync(packaged.executable)).toBe(true);
    expect(readdirSync(packaged.units)).toEqual([]);
  });
});

describe("uninstall", () => {
  test("removes what install wrote, and then has nothing to do", async () => {
    await perform(plan(download("one")));
    await perform(plan(download("two")));
    mkdirSync(paths.state, { recursive: true });
    writeFileSync(join(paths.state, "snapshot"), "x");
    await perform(uninstallSteps(paths, false));
    const { origin: _, units, shipped: _folder, ...files } = paths;
    expect(readdirSync(units)).toEqual(["multi-user.target.wants"]);
    for (const path of Object.values(files))
      expect(lstatSync(path, { throwIfNoEntry: false })).toBeUndefined();
    expect(existsSync(dirname(paths.config))).toBe(false);
    expect(uninstallSteps(paths, false)).toEqual([]);
  });

  test("leaves a configuration that was edited, and what lies beside it", async () => {
    await perform(plan(download("one")));
    writeFileSync(join(dirname(paths.config), "token"), "x");
    await perform(uninstallSteps(paths, false));
    expect(existsSync(join(dirname(paths.config), "token"))).toBe(true);

    await perform(plan(download("one")));
    writeFileSync(paths.config, "istiod: a:1\n");
    await perform(uninstallSteps(paths, false));
    expect(readFileSync(paths.config, "utf8")).toBe("istiod: a:1\n");
    expect(existsSync(paths.executable)).toBe(false);
  });

  test("takes the units' drop-ins away first, but not one that was edited", async () => {
    await perform(plan(download("one")));
    const units = dirname(paths.unit);
    for (const unit of ["a.service", "b.service", "c.service"])
      await perform([bootStep(units, unit, unit === "a.service" ? "open" : "closed")]);
    writeFileSync(dropInOf(units, "c.service"), "[Unit]\n");
    const steps = uninstallSteps(paths, true);
    expect(steps.slice(0, 3).map(({ action, target }) => [action, target])).toEqual([
      ["remove", dropInOf(units, "a.service")],
      ["remove", dropInOf(units, "b.service")],
      ["keep", dropInOf(units, "c.service")],
    ]);
    await perform(steps);
    expect(readdirSync(units).sort()).toEqual(["c.service.d", "multi-user.target.wants"]);
  });

  test("--keep-state leaves state and configuration", async () => {
    await perform(plan(download("one")));
    mkdirSync(paths.state, { recursive: true });
    await perform(uninstallSteps(paths, true));
    expect(existsSync(paths.state)).toBe(true);
    expect(existsSync(paths.config)).toBe(true);
    expect(existsSync(paths.unit)).toBe(false);
  });
});

test("the configuration that is written says nothing yet, and each of its examples is right", () => {
  expect(parse(configTemplate())).toBeNull();
  expect(configTemplate()).not.toMatch(/^#[a-z-]+: *$/m);
  const path = join(folder, "config.yaml");
  const existing = { "/etc/kmesh/root-cert.pem": path, "/etc/kmesh/istio-token": path };
  let text = configTemplate().replace(/^#(?=\S)/gm, "");
  text = text.replace(/^workload-entry: .*$/m, "");
  for (const [from, to] of Object.entries(existing)) text = text.replace(from, to);
  writeFileSync(path, text);
  const config = readConfig({ flags: {}, env: {}, file: { path, required: true } });
  expect(config).toMatchObject({
    istiod: { host: "istiod.istio-system.svc", port: 15012 },
    hosts: { "istiod.istio-system.svc": ["192.0.2.1"] },
    labels: { app: "shop" },
    ports: [{ name: "http", containerPort: 8080 }],
    readinessProbe: { httpGet: { path: "/ready", port: 8080 } },
    locality: { region: "region", zone: "zone" },
    cgroups: ["/system.slice/shop.service"],
    units: ["nginx.service", "shop.service"],
    shadow: true,
  });
  expect(config.excludes).toHaveLength(2);
});

describe("the unit", () => {
  const unit = new TextDecoder().decode(asset("kmesh.service"));

  test("runs what install puts into place", () => {
    expect(unit).toContain(`ExecStart=${installedPaths().executable} run\n`);
    expect(unit).toContain("RuntimeDirectory=kmesh\n");
    expect(unit).toContain("StateDirectory=kmesh\n");
  });

  test("has nothing that detaches, or that takes away what the agent needs", () => {
    expect(unit).not.toMatch(
      /^(ExecStop|ExecStopPost|ProtectKernelTunables|MemoryDenyWriteExecute|PrivateTmp|MemoryMax)=/m,
    );
  });
});

describe("the unit that others wait for", () => {
  const gate = new TextDecoder().decode(asset("kmesh-wait.service"));

  test("asks anew each time, for as long as it takes, and nobody stops others by it", () => {
    expect(gate).toContain(`ExecStart=${installedPaths().executable} wait --timeout infinity\n`);
    for (const line of [
      "Type=oneshot",
      "TimeoutStartSec=infinity",
      "RefuseManualStop=yes",
      "StartLimitIntervalSec=0",
    ])
      expect(gate).toContain(`\n${line}\n`);
    expect(gate).not.toMatch(/^(RemainAfterExit|BindsTo|PartOf|Requires|ExecStop)=/m);
  });
});

describe("the tunnel's units", () => {
  const texts = unitTexts("install");
  const tunnel = texts[TUNNEL];

  test("the socket outlives every tunnel, and takes the machine's own connections alone", () => {
    for (const line of [
      "ListenStream=0.0.0.0:15001",
      "BindToDevice=lo",
      "FileDescriptorName=outbound",
      "TriggerLimitIntervalSec=0",
    ])
      expect(texts["kmesh-tunnel.socket"]).toContain(`\n${line}\n`);
  });

  test("each listener of the tunnel has a socket unit of its name and port, which starts the one service", () => {
    const sockets = TUNNEL_SOCKETS.map((name) => {
      const setting = (key: string) => new RegExp(`^${key}=(.*)$`, "m").exec(texts[name])?.[1] ?? "";
      expect(setting("Service")).toBe(TUNNEL);
      for (const unit of [TUNNEL, SERVICE] as const)
        expect(texts[unit]).toMatch(new RegExp(`^After=.*${name}`, "m"));
      expect(texts[SERVICE]).toMatch(new RegExp(`^Wants=.*${name}`, "m"));
      expect(tunnel).toMatch(new RegExp(`^Sockets=.*${name}`, "m"));
      return [setting("FileDescriptorName"), Number(/(\d+)$/.exec(setting("ListenStream"))?.[1])] as const;
    });
    expect(sockets.map(([name]) => name)).toEqual([...LISTENERS]);
    expect(sockets.map(([, port]) => port)).toEqual([TUNNEL_PORT, HBONE_PORT, STEERED_PORT, STEERED_PORT]);
    // An accepted connection has the device of its listener: what the kernel steers would answer by lo.
    expect(texts["kmesh-tunnel-inbound.socket"]).not.toMatch(/^BindToDevice=/m);
  });

  test("a stop or crash of the one that accepts cuts none that drains, and no core file holds keys", () => {
    expect(tunnel).toContain(`ExecStart=${installedPaths().executable} tunnel\n`);
    for (const line of ["KillMode=process", "LimitCORE=0", "UMask=0077"])
      expect(tunnel).toContain(`\n${line}\n`);
    expect(tunnel).not.toMatch(/^(ProtectKernelTunables|MemoryDenyWriteExecute|PrivateTmp)=/m);
  });

  test("what a second start can't mend is not tried again at once: flags, the machine, a port in use", () => {
    const codes = [EXIT.usage, EXIT.unsupported, EXIT.alreadyRunning].join(" ");
    expect(tunnel).toContain(`\nRestartPreventExitStatus=${codes}\n`);
  });
});
