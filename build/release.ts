/** Assembles the files of a release. Run by build/release: COMMIT-TIME HOST LIBBPF-OF-X64 LIBBPF-OF-ARM64. */
import { spawnSync } from "node:child_process";
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { buildDeb, hashOf } from "./deb.ts";
import { type Library, type Lock, packageName, runtimePackages, sbomOf } from "./sbom.ts";

const ROOT = dirname(import.meta.dirname);
const [time = "", host = "", ...archives] = process.argv.slice(2);
const ARCHITECTURES = [
  { name: "x64", debian: "amd64" },
  { name: "arm64", debian: "arm64" },
];
/** gzip takes seconds; xz takes minutes and saves a fifth. lintian refuses zstd. */
const COMPRESSION = ["-Zgzip", "-z6"];

process.chdir(ROOT);
const seconds = Number(time);
const full = readFileSync("dist/version", "utf8");
const [number = "", commit = ""] = full.split("+");
const tagged = git("tag", "--points-at", "HEAD").split("\n").includes(`v${number}`);
const version = tagged ? number : full;
// Debian sorts ~ before the end of the text, so a build before the tag is older than the tag, and later commits are newer.
const debianVersion = tagged ? number : `${number}~${stamp(seconds)}.${commit}`;

const lock = JSON.parse(readFileSync("package-lock.json", "utf8")) as Lock;
const [firstLibraries, ...otherLibraries] = archives.map(libraries);
if (
  firstLibraries === undefined ||
  otherLibraries.some((list) => JSON.stringify(list) !== JSON.stringify(firstLibraries))
)
  fail(
    "the two libbpf.so are not made of the same versions: remove the libbpf-* folders of kmesh's cache, and again",
  );

const out = "dist/release";
const part = `${out}.part`;
rmSync(part, { recursive: true, force: true });
mkdirSync(part);
const thirdParty = licences(archives[0] ?? "");
for (const { name, debian } of ARCHITECTURES) {
  const built = name === host ? "dist" : `dist/${name}`;
  const executable = join(part, `kmesh-${version}-linux-${name}`);
  copyFileSync(join(built, "kmesh"), executable);
  chmodSync(executable, 0o755);
  say(`packing kmesh_${debianVersion}_${debian}.deb`);
  buildDeb(
    {
      executable,
      runnable: "dist/kmesh",
      architecture: debian,
      version: debianVersion,
      glibc: glibcOf([executable, join(built, "libbpf.so")]),
      time: seconds,
      thirdParty,
      compression: COMPRESSION,
    },
    join(part, `kmesh_${debianVersion}_${debian}.deb`),
    join(part, "work"),
  );
}
const bill = sbomOf(version, seconds, lock, firstLibraries);
writeFileSync(join(part, `kmesh-${version}.cdx.json`), `${JSON.stringify(bill, null, 2)}\n`);
writeFileSync(join(part, `kmesh-${version}-licenses.txt`), thirdParty);
const sums = readdirSync(part)
  .sort()
  .map((name) => `${hashOf("sha256", join(part, name))}  ${name}\n`);
writeFileSync(join(part, "SHA256SUMS"), sums.join(""));
rmSync(out, { recursive: true, force: true });
renameSync(part, out);
say(`${out} has kmesh ${version}`);

/** The components of libbpf.so and the executable that are not npm packages. */
function libraries(archive: string): Library[] {
  const source = new Map(
    readFileSync(join(archive, "sources"), "utf8")
      .trim()
      .split("\n")
      .map((line) => line.split(" ") as [string, string, string])
      .map(([name, source, version]) => [name, { source, version }]),
  );
  const debian = (name: string, license: string): Library => {
    const { source: from = "", version = "" } = source.get(name) ?? {};
    return {
      name,
      // Without Debian's epoch and revision.
      version: version.replace(/^\d+:/, "").replace(/-[^-]*$/, ""),
      license,
      purl: `pkg:deb/debian/${from}@${encodeURIComponent(version)}?arch=source`,
    };
  };
  const libbpf = /libbpf-([\d.]+)-/.exec(archive)?.[1] ?? fail(`${archive} has no version in its name`);
  const bun = lock.packages["node_modules/bun"]?.version ?? fail("package-lock.json has no bun");
  return [
    { name: "bun", version: bun, license: "MIT", purl: `pkg:npm/bun@${bun}` },
    {
      name: "libbpf",
      version: libbpf,
      license: "LGPL-2.1-only OR BSD-2-Clause",
      purl: `pkg:github/libbpf/libbpf@v${libbpf}`,
    },
    debian("libelf", "GPL-2.0-or-later OR LGPL-3.0-or-later"),
    debian("zlib1g", "Zlib"),
  ];
}

/** The licence texts of all components that have one. */
function licences(archive: string): string {
  const texts = [
    ["libbpf", readFileSync(join(archive, "LICENSE.BSD-2-Clause"), "utf8")],
    ["libelf", readFileSync(join(archive, "libelf.copyright"), "utf8")],
    ["zlib", readFileSync(join(archive, "zlib.copyright"), "utf8")],
    ...runtimePackages(lock).map(([path, { version, license }]) => {
      const file = readdirSync(path).find((name) => /^(licen[cs]e|copying)(\.|$)/i.test(name));
      const text = file === undefined ? `${license}\n` : readFileSync(join(path, file), "utf8");
      return [`${packageName(path)} ${version} (${license})`, text];
    }),
    ["bun (MIT)", "https://bun.com/docs/project/license lists the licences of the runtime.\n"],
  ];
  return texts.map(([name, text = ""]) => `==== ${name}\n\n${text.trim()}\n`).join("\n");
}

/** The highest version of glibc's symbols that the files need. */
function glibcOf(files: readonly string[]): string {
  const { status, stdout } = spawnSync("readelf", ["--wide", "--version-info", ...files], {
    encoding: "utf8",
    maxBuffer: 64 << 20,
  });
  if (status !== 0) fail("readelf can't read the executables");
  const minors = [...stdout.matchAll(/\bGLIBC_2\.(\d+)/g)].map(([, minor]) => Number(minor));
  return `2.${Math.max(...minors)}`;
}

/** A commit's time as digits, UTC. */
function stamp(seconds: number): string {
  return new Date(seconds * 1000).toISOString().replace(/\D/g, "").slice(0, 14);
}

function git(...parameters: string[]): string {
  return spawnSync("git", ["-c", `safe.directory=${ROOT}`, ...parameters], {
    encoding: "utf8",
  }).stdout.trim();
}

function say(text: string): void {
  process.stderr.write(`release: ${text}\n`);
}

function fail(text: string): never {
  say(text);
  process.exit(1);
}
