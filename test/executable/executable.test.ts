/** The single file by itself: what it needs of a machine, and what it must not take from the folder it is started in. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { unpin } from "../../src/kernel/bpffs.ts";
import { ownName, TestCgroup } from "../lab/namespace.ts";
import { eventually, OwnedProcess, run } from "../lab/process.ts";

const KMESH = join(import.meta.dir, "../../dist/kmesh");
const why =
  process.getuid?.() !== 0
    ? "needs root"
    : existsSync(KMESH)
      ? undefined
      : `${KMESH} is missing: run ./build/compile`;
if (why) console.warn(`skipped: the single file: ${why}`);

describe.skipIf(why !== undefined)("dist/kmesh", () => {
  let folder: string;

  beforeAll(() => {
    // Not in /tmp, which the tests hide.
    folder = mkdtempSync("/var/tmp/kmesh-executable-");
  });
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  test("needs nothing but glibc", async () => {
    expect(await libraries()).toSatisfy((all) =>
      all.every((path) => /^(ld-linux.*|lib(c|m|dl|pthread|rt))\.so\.\d$/.test(path.split("/").at(-1) ?? "")),
    );
  });

  test("takes no code and no settings from the folder that it is started in", async () => {
    const trap = join(folder, "trap");
    mkdirSync(trap);
    const sprung = join(trap, "sprung");
    writeFileSync(
      join(trap, "preload.ts"),
      `require("node:fs").writeFileSync(${JSON.stringify(sprung)}, "");`,
    );
    writeFileSync(join(trap, "bunfig.toml"), 'preload = ["./preload.ts"]\n');
    writeFileSync(join(trap, ".env"), "KMESH_RUN_DIR=/from-dot-env\n");
    const { code, stdout } = await run([
      "env",
      "-C",
      trap,
      KMESH,
      "status",
      `--state-dir=${trap}`,
      "--config=/dev/null",
    ]);
    expect(code).not.toBe(1);
    expect(stdout).not.toContain("/from-dot-env");
    expect(existsSync(sprung)).toBeFalse();
  });

  test("runs in a root folder with glibc alone, where /tmp can neither be written nor executed from", async () => {
    const root = join(folder, "root");
    for (const name of ["proc", "sys", "tmp", "run", "etc", "var/lib"])
      mkdirSync(join(root, name), { recursive: true });
    for (const path of await libraries()) {
      mkdirSync(join(root, dirname(path)), { recursive: true });
      copyFileSync(realpathSync(path), join(root, path));
    }
    copyFileSync(KMESH, join(root, "kmesh"));
    const cgroup = TestCgroup.create("exe");
    const bpffs = `/sys/fs/bpf/${ownName("x")}`;
    const agent = new OwnedProcess({
      name: "kmesh",
      log: join(folder, "agent.log"),
      command: [
        ...["unshare", "--mount", "--net", "sh", "-c"],
        // Port 1 of a fresh namespace: nobody answers, and the agent must start all the same.
        `mount --rbind /proc ${root}/proc && mount --rbind /sys ${root}/sys &&
         mount -t tmpfs -o ro,noexec none ${root}/tmp &&
         exec chroot ${root} /kmesh run --istiod=127.0.0.1:1 --plaintext --ip=172.31.0.1 --cgroup=${cgroup.path} --bpffs=${bpffs}`,
      ],
    });
    try {
      await eventually("the agent says that it runs", () => {
        if (agent.status !== undefined) throw new Error(`kmesh ended: ${agent.status}\n${agent.tail()}`);
        return /kmesh runs/.test(agent.output());
      });
      // libbpf was loaded and the objects were verified.
      expect(existsSync(`${bpffs}/keep`)).toBeTrue();
    } finally {
      await agent.stop("SIGKILL");
      unpin(bpffs);
      await cgroup.remove();
    }
  }, 30_000);
});

/** What the dynamic linker loads for it, by path. */
async function libraries(): Promise<string[]> {
  const { stdout } = await run(["ldd", KMESH]);
  const paths = [...stdout.matchAll(/(\/\S+)/g)].map((match) => match[1] ?? "");
  expect(paths.length).toBeGreaterThan(1);
  return [...new Set(paths)];
}
