/** build/release in a fresh clone of the commit: the files, that they are what they say, and that they can be made again. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { createHash } from "node:crypto";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Lock, packageName, runtimePackages, type Sbom } from "../../build/sbom.ts";
import { output, run } from "../lab/process.ts";

const ROOT = join(import.meta.dirname, "../..");
setDefaultTimeout(60_000);

const why = process.getuid?.() === 0 ? undefined : "needs root";
if (why !== undefined) console.warn(`skipped: release: ${why}`);

describe.skipIf(why !== undefined)("a release", () => {
  const folder = mkdtempSync(join(tmpdir(), "kmesh-release-"));
  const clone = join(folder, "clone");
  const files = join(clone, "dist/release");
  let commit: { short: string; time: number };
  let version: string;
  let debianVersion: string;

  /** A clone of the commit, with what npm installed by its lock file. */
  async function checkOut(where: string): Promise<void> {
    await output(["git", "-c", `safe.directory=${ROOT}`, "clone", "--quiet", ROOT, where], {
      timeoutMs: 60_000,
    });
    // Nothing writes to it, so links will do; across file systems they can't.
    const from = join(ROOT, "node_modules");
    const { code: linked } = await run(["cp", "-al", from, where], { timeoutMs: 60_000 });
    if (linked !== 0) await output(["cp", "-a", from, where], { timeoutMs: 60_000 });
  }

  beforeAll(async () => {
    const git = async (...args: string[]) =>
      (await output(["git", "-c", `safe.directory=${ROOT}`, "-C", ROOT, ...args])).trim();
    const number: unknown = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8")).version;
    const [short = "", time = ""] = (await git("log", "-1", "--abbrev=12", "--format=%h %ct")).split(" ");
    commit = { short, time: Number(time) };
    const tagged = (await git("tag", "--points-at", "HEAD")).split("\n").includes(`v${number}`);
    version = tagged ? `${number}` : `${number}+${short}`;
    const stamp = new Date(commit.time * 1000).toISOString().replace(/\D/g, "").slice(0, 14);
    debianVersion = tagged ? `${number}` : `${number}~${stamp}.${short}`;
    await checkOut(clone);
    // lintian is a part of it: a finding fails it.
    const { code, stdout, stderr } = await run([join(clone, "build/release")], { timeoutMs: 480_000 });
    const said = stderr + stdout;
    expect([code, said]).toEqual([0, said]);
  }, 500_000);
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  const file = (name: string) => join(files, name);
  const single = (architecture: string) => file(`kmesh-${version}-linux-${architecture}`);
  const deb = (architecture: string) => file(`kmesh_${debianVersion}_${architecture}.deb`);
  const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");

  test("has these files, and the sums of all others are in SHA256SUMS", async () => {
    const names = readdirSync(files).sort();
    expect(names).toEqual(
      [
        "SHA256SUMS",
        `kmesh-${version}-licenses.txt`,
        `kmesh-${version}-linux-arm64`,
        `kmesh-${version}-linux-x64`,
        `kmesh-${version}.cdx.json`,
        `kmesh_${debianVersion}_amd64.deb`,
        `kmesh_${debianVersion}_arm64.deb`,
      ].sort(),
    );
    const checked = await output(["sha256sum", "--check", "--strict", "SHA256SUMS"], { cwd: files });
    expect(checked.trim().split("\n").sort()).toEqual(
      names.filter((name) => name !== "SHA256SUMS").map((name) => `${name}: OK`),
    );
  });

  test("a release of a changed work tree is refused", async () => {
    const path = join(clone, "README.md");
    const before = readFileSync(path, "utf8");
    writeFileSync(path, `${before}\n`);
    const { code, stderr } = await run([join(clone, "build/release")]);
    writeFileSync(path, before);
    expect([code, stderr]).toEqual([1, expect.stringContaining("the work tree differs from the commit")]);
  });

  test("the executable is, byte for byte, what another folder makes of the commit", async () => {
    const status = await output(["git", "-c", `safe.directory=${ROOT}`, "-C", ROOT, "status", "--porcelain"]);
    // build/test has just made it in this folder, unless it is not what is committed.
    const other = status === "" ? ROOT : join(folder, "another/clone");
    if (other !== ROOT) await checkOut(other);
    await output([join(other, "build/compile")], { timeoutMs: 200_000 });
    expect(sha256(readFileSync(single("x64")))).toBe(sha256(readFileSync(join(other, "dist/kmesh"))));
  }, 300_000);

  test("each executable is for its architecture and needs nothing but glibc", async () => {
    for (const [architecture, machine, other] of [
      ["x64", "Advanced Micro Devices X86-64", "arm64"],
      ["arm64", "AArch64", "x64"],
    ] as const) {
      const head = await output(["readelf", "--wide", "--file-header", "--dynamic", single(architecture)]);
      expect(head).toMatch(new RegExp(`Machine: +${machine}`));
      const needed = [...head.matchAll(/\(NEEDED\).*\[(.*)\]/g)].map(([, name]) => name);
      expect(needed.length).toBeGreaterThan(1);
      for (const name of needed) expect(name).toMatch(/^(ld-linux-.*|lib(c|m|dl|pthread|rt))\.so\.\d$/);
      // The bundler writes the architecture into the code.
      const bytes = readFileSync(single(architecture));
      expect(bytes.includes(`architecture:"${architecture}"`)).toBe(true);
      expect(bytes.includes(`architecture:"${other}"`)).toBe(false);
    }
  });

  test("the one for this machine runs and says its version; both have the same BPF objects and layout", async () => {
    const own = process.arch === "arm64" ? "arm64" : "x64";
    const about = JSON.parse(await output([single(own), "version", "--output=json"]));
    expect(about).toMatchObject({ program: "kmesh", architecture: own });
    expect(about.version).toBe(`${version.split("+")[0]}+${commit.short}`);
    const objects = readdirSync(join(clone, "dist/bpf")).filter((name) => name.endsWith(".bpf.o"));
    expect(objects.length).toBeGreaterThan(3);
    for (const architecture of ["x64", "arm64"]) {
      const bytes = readFileSync(single(architecture));
      for (const name of objects)
        expect([name, bytes.includes(readFileSync(join(clone, "dist/bpf", name)))]).toEqual([name, true]);
    }
  });

  test("kmesh upgrade takes it with its sum, and refuses a damaged one before it runs", async () => {
    const own = single(process.arch === "arm64" ? "arm64" : "x64");
    const upgrade = () => run([own, "upgrade", own, `--run-dir=${folder}`, "--config=/dev/null"]);
    // Nobody runs there: it came as far as asking.
    expect((await upgrade()).code).toBe(3);
    const sums = readFileSync(file("SHA256SUMS"), "utf8");
    const line = sums.split("\n").find((text) => text.endsWith(own.slice(files.length + 1))) ?? "";
    try {
      writeFileSync(file("SHA256SUMS"), sums.replace(line, `${"0".repeat(64)}${line.slice(64)}`));
      const { code, stderr } = await upgrade();
      expect([code, stderr]).toEqual([1, expect.stringContaining("is damaged or another one")]);
    } finally {
      writeFileSync(file("SHA256SUMS"), sums);
    }
  });

  test.each([
    ["amd64", "x64"],
    ["arm64", "arm64"],
  ])("the package for %s ships that executable, the units and documents", async (debian, architecture) => {
    const field = async (name: string) => (await output(["dpkg-deb", "--field", deb(debian), name])).trim();
    expect(await field("Package")).toBe("kmesh");
    expect(await field("Architecture")).toBe(debian);
    expect(await field("Version")).toBe(debianVersion);
    expect(await field("Depends")).toMatch(/^libc6 \(>= 2\.\d+\)$/);
    const list = await output(["dpkg-deb", "--contents", deb(debian)], { cwd: "/" });
    const rows = list
      .trim()
      .split("\n")
      .map((row) => /^(\S+) (\S+) +\d+ (\S+ \S+) \.\/(.*)$/.exec(row) ?? []);
    const time = new Date(commit.time * 1000).toISOString().replace("T", " ").slice(0, 16);
    for (const [row = "", mode = "", owner, when, path = ""] of rows) {
      expect([row, owner]).toEqual([row, "root/root"]);
      // In UTC, as is the machine of a build.
      if (new Date().getTimezoneOffset() === 0) expect([row, when]).toEqual([row, time]);
      const kind = mode.startsWith("d")
        ? "drwxr-xr-x"
        : path === "usr/bin/kmesh"
          ? "-rwxr-xr-x"
          : "-rw-r--r--";
      expect([row, mode]).toEqual([row, kind]);
      expect([path, /^(etc|usr\/local)\//.test(path)]).toEqual([path, false]);
    }
    const paths = rows.map(([, , , , path]) => path);
    for (const path of [
      "usr/bin/kmesh",
      "usr/lib/systemd/system/kmesh.service",
      "usr/lib/systemd/system/kmesh-wait.service",
      "usr/lib/systemd/system/kmesh-tunnel.service",
      "usr/lib/systemd/system/kmesh-tunnel.socket",
      "usr/share/man/man8/kmesh.8.gz",
      "usr/share/bash-completion/completions/kmesh",
      "usr/share/doc/kmesh/copyright",
      "usr/share/doc/kmesh/changelog.gz",
      "usr/share/doc/kmesh/THIRD-PARTY.gz",
    ])
      expect(paths).toContain(path);
    const root = join(folder, debian);
    await output(["dpkg-deb", "--raw-extract", deb(debian), root]);
    expect(sha256(readFileSync(join(root, "usr/bin/kmesh")))).toBe(
      sha256(readFileSync(single(architecture))),
    );
    for (const script of readdirSync(join(ROOT, "systemd/package")))
      expect(readFileSync(join(root, "DEBIAN", script), "utf8")).toBe(
        readFileSync(join(clone, "systemd/package", script), "utf8"),
      );
    await output(["md5sum", "--check", "--quiet", "DEBIAN/md5sums"], { cwd: root });
    rmSync(root, { recursive: true });
  });

  test("the bill of materials names every package that is inside, with its version and licence", () => {
    const bill = JSON.parse(readFileSync(file(`kmesh-${version}.cdx.json`), "utf8")) as Sbom;
    expect(bill).toMatchObject({ bomFormat: "CycloneDX", specVersion: "1.6" });
    expect(bill.metadata.component).toMatchObject({ name: "kmesh", version });
    expect(bill.metadata.timestamp).toBe(new Date(commit.time * 1000).toISOString());
    expect(bill.serialNumber).toMatch(
      /^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/,
    );

    const listed = new Set(bill.components.map(({ name, version }) => `${name} ${version}`));
    const lock = JSON.parse(readFileSync(join(clone, "package-lock.json"), "utf8")) as Lock;
    const inside = runtimePackages(lock);
    expect(inside.length).toBeGreaterThan(20);
    for (const [path] of inside) {
      const installed = JSON.parse(readFileSync(join(clone, path, "package.json"), "utf8"));
      expect([path, listed.has(`${packageName(path)} ${installed.version}`)]).toEqual([path, true]);
    }
    for (const name of Object.keys(lock.packages[""]?.dependencies ?? {}))
      expect(bill.components.map((component) => component.name)).toContain(name);
    for (const name of ["bun", "libbpf", "libelf", "zlib1g"]) {
      const component = bill.components.find((one) => one.name === name);
      expect([name, component?.version]).toEqual([name, expect.stringMatching(/^\d+\.[\d.]+/)]);
    }
    for (const { name, licenses } of bill.components)
      expect([name, licenses[0].expression]).toEqual([name, expect.stringMatching(/^[A-Z0-9][\w.\- ]+$/)]);

    const refs = new Set([
      bill.metadata.component["bom-ref"],
      ...bill.components.map((one) => one["bom-ref"]),
    ]);
    expect(refs.size).toBe(bill.components.length + 1);
    for (const { ref, dependsOn } of bill.dependencies)
      for (const name of [ref, ...dependsOn]) expect([name, refs.has(name)]).toEqual([name, true]);
  });

  test("is newer for dpkg than that of an earlier commit, and older than the tag", async () => {
    const number = version.split("+")[0] ?? "";
    const compare = (one: string, relation: string, other: string) =>
      run(["dpkg", "--compare-versions", one, relation, other]);
    expect((await compare(`${number}~20200101000000.ffffffffffff`, "lt", debianVersion)).code).toBe(0);
    expect((await compare(debianVersion, "le", number)).code).toBe(0);
    expect(existsSync(deb("amd64"))).toBe(true);
  });
});
