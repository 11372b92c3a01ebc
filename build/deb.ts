/**
 * The Debian package of an executable, by the contract of systemd/package. The same arguments give the same bytes, whatever
 * the machine's umask and clock.
 */
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  chmodSync,
  copyFileSync,
  cpSync,
  lstatSync,
  lutimesSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname, join, relative } from "node:path";
import { gzipSync } from "node:zlib";

const ROOT = dirname(import.meta.dirname);

/** The maintainer field. It names no person, because anybody can build the package. */
const MAINTAINER = "kmesh maintainers <maintainers@kmesh.example.org>";

export interface Package {
  /** The executable that is shipped. */
  executable: string;
  /** An executable of the same sources that runs here: it writes the files. */
  runnable: string;
  /** Debian's name of an architecture: amd64 or arm64. */
  architecture: string;
  /** Debian's form of a version. */
  version: string;
  /** The lowest glibc with which the executable runs, as 2.34. */
  glibc: string;
  /** Seconds since 1970, the time stamp of every file. */
  time: number;
  /** The licences of what is inside, as text. */
  thirdParty: string;
  /** dpkg-deb's -Z and -z. */
  compression: readonly string[];
}

/** Writes the package to `out`. `work` is a temporary folder. */
export function buildDeb(what: Package, out: string, work: string): void {
  rmSync(work, { recursive: true, force: true });
  const tree = join(work, "tree");
  const control = join(tree, "DEBIAN");
  const doc = join(tree, "usr/share/doc/kmesh");
  try {
    command(what.runnable, ["install", `--root=${tree}`, "--package"]);
    copyFileSync(what.executable, join(tree, "usr/bin/kmesh"));
    writeDocuments(doc, what);
    write(
      join(tree, "usr/share/lintian/overrides/kmesh"),
      readFileSync(join(ROOT, "systemd/lintian-overrides")),
    );
    compressManuals(join(tree, "usr/share/man"));

    const files = filesBelow(tree);
    const sizes = files.map((file) => Math.ceil(statSync(file).size / 1024));
    cpSync(join(ROOT, "systemd/package"), control, { recursive: true });
    write(
      join(control, "control"),
      controlText(
        what,
        sizes.reduce((sum, size) => sum + size, 0),
      ),
    );
    write(
      join(control, "md5sums"),
      files.map((file) => `${hashOf("md5", file)}  ${relative(tree, file)}\n`).join(""),
    );
    normalize(tree, what.time);
    command(
      "dpkg-deb",
      ["--build", "--root-owner-group", "--threads-max=1", ...what.compression, tree, out],
      { SOURCE_DATE_EPOCH: String(what.time) },
    );
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

/** The checksum of a file in hexadecimal. */
export function hashOf(algorithm: "md5" | "sha256", path: string): string {
  return createHash(algorithm).update(readFileSync(path)).digest("hex");
}

function controlText({ version, architecture, glibc }: Package, size: number): string {
  return [
    "Package: kmesh",
    `Version: ${version}`,
    `Architecture: ${architecture}`,
    `Maintainer: ${MAINTAINER}`,
    `Installed-Size: ${size}`,
    `Depends: libc6 (>= ${glibc})`,
    "Recommends: ca-certificates",
    "Section: net",
    "Priority: optional",
    "Description: Istio service mesh data plane in the kernel",
    " kmesh joins a plain Linux machine to an Istio mesh. Small BPF programs choose",
    " the endpoint when an application connects, by tables that kmesh compiles from",
    " what a stock istiod sends to a sidecar. There is no proxy in the way.",
    " .",
    " The kernel must be 5.10 or newer, with BTF and cgroup2.",
    "",
  ].join("\n");
}

function writeDocuments(doc: string, { version, time, thirdParty }: Package): void {
  const template = (name: string) => readFileSync(join(ROOT, name));
  const changelog = [
    `kmesh (${version}) unstable; urgency=medium`,
    "",
    "  * What changed stands in CHANGELOG.md.",
    "",
    ` -- ${MAINTAINER}  ${new Date(time * 1000).toUTCString().replace("GMT", "+0000")}`,
    "",
  ].join("\n");
  write(join(doc, "changelog.gz"), gzip(Buffer.from(changelog)));
  write(join(doc, "CHANGELOG.md.gz"), gzip(template("CHANGELOG.md")));
  write(join(doc, "README.md.gz"), gzip(template("README.md")));
  write(join(doc, "THIRD-PARTY.gz"), gzip(Buffer.from(thirdParty)));
  write(join(doc, "copyright"), readFileSync(join(ROOT, "systemd/copyright")));
}

/** Debian's manuals are compressed. */
function compressManuals(folder: string): void {
  if (lstatSync(folder, { throwIfNoEntry: false }) === undefined) return;
  for (const file of filesBelow(folder).filter((path) => !path.endsWith(".gz"))) {
    write(`${file}.gz`, gzip(readFileSync(file)));
    rmSync(file);
  }
}

/** Without a name and a time in its head. */
function gzip(bytes: Buffer): Buffer {
  return gzipSync(bytes, { level: 9 });
}

/** One mode and one time for all, whoever builds. */
function normalize(tree: string, time: number): void {
  const all = [
    tree,
    ...readdirSync(tree, { recursive: true, encoding: "utf8" }).map((name) => join(tree, name)),
  ];
  // The deepest first: a folder's time changes with what is written into it.
  for (const path of all.sort().reverse()) {
    const stat = lstatSync(path);
    if (stat.isSymbolicLink()) {
      lutimesSync(path, time, time);
      continue;
    }
    const runs = stat.isDirectory() || path === join(tree, "usr/bin/kmesh") || isScript(path);
    chmodSync(path, runs ? 0o755 : 0o644);
    lutimesSync(path, time, time);
  }
}

function isScript(path: string): boolean {
  return /\/DEBIAN\/(pre|post)(inst|rm)$/.test(path);
}

function filesBelow(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .sort();
}

function write(path: string, content: string | Buffer): void {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, content);
}

function command(
  program: string,
  parameters: readonly string[],
  environment: Record<string, string> = {},
): void {
  const { status, stdout, stderr, error } = spawnSync(program, parameters, {
    encoding: "utf8",
    env: { ...process.env, ...environment },
  });
  if (status !== 0)
    throw new Error(`${program} ${parameters.join(" ")} failed: ${error?.message ?? `${stdout}${stderr}`}`);
}
