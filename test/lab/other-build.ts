/**
 * Other versions of kmesh, to upgrade to: the source as it is now, changed in a few lines, compiled outside of the
 * checkout. Results are kept by what they are made of.
 */
import { createHash } from "node:crypto";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { run } from "./process.ts";

const ROOT = join(import.meta.dirname, "../..");
const CACHE = join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "kmesh/other-builds");
/** Results that are kept of each variant: other checkouts use the same folder. */
const KEPT = 6;
/** Since a result was asked for: a test of another checkout may run it still, milliseconds. */
const IN_USE = 1_800_000;

/** What the executable is made of. */
const SOURCES = [
  "bpf",
  "build",
  "proto",
  "src",
  "systemd",
  "package.json",
  "package-lock.json",
  "tsconfig.json",
];

/** A line of the source, and its replacement. */
type Change = readonly [file: string, from: RegExp, to: string];

/** Members of the tables that are not shared move and become wider, and lines of slots longer; the same of names: other ABIs. */
const WIDE: readonly Change[] = [
  ["bpf/maps/tables.h", /^struct settings \{$/m, "struct settings {\n\t__u64 moved[5];"],
  [
    "bpf/maps/tables.h",
    /^struct descriptor \{\n\t__u8 kind;$/m,
    "struct descriptor {\n\t__u64 moved[3];\n\t__u32 kind;",
  ],
  ["bpf/maps/tables.h", /^\t__u8 balance;$/m, "\t__u32 balance;"],
  ["bpf/maps/tables.h", /^\t__u8 reason;/m, "\t__u32 reason;"],
  ["bpf/maps/tables.h", /^#define SLOTS_PER_LINE 16$/m, "#define SLOTS_PER_LINE 32"],
  ["bpf/maps/names.h", /^struct names_settings \{$/m, "struct names_settings {\n\t__u64 moved[2];"],
  ["bpf/maps/names.h", /^#define INLINE_NAME 48$/m, "#define INLINE_NAME 32"],
];

const VARIANTS = {
  /** Version 0.2.0-test, whose tables have another layout. */
  "wide-layout": [["package.json", /"version": "[^"]+"/, '"version": "0.2.0-test"'], ...WIDE],
  /** Version 0.3.0-test, the same layout as wide-layout; it sends connections to the port beside the endpoint's. */
  "bad-probe": [
    ["package.json", /"version": "[^"]+"/, '"version": "0.3.0-test"'],
    ...WIDE,
    [
      "bpf/connect.bpf.c",
      /ctx->user_port = made\.endpoint->port;/g,
      "ctx->user_port = bpf_htons(bpf_ntohs(made.endpoint->port) + 1);",
    ],
  ],
  /** Version 0.4.0-test, whose map layouts in keep/ differ. */
  "other-keep": [
    ["package.json", /"version": "[^"]+"/, '"version": "0.4.0-test"'],
    ["bpf/maps/keep.h", /^struct endpoint_load \{$/m, "struct endpoint_load {\n\t__u64 moved;"],
  ],
  /** Version 0.0.9-test, as of before there were names: it leaves what is pinned of them alone. */
  "no-names": [
    ["package.json", /"version": "[^"]+"/, '"version": "0.0.9-test"'],
    ["src/cli/commands/version.ts", /^ *names: NAMES_ABI,$/m, ""],
    [
      "src/agent/agent.ts",
      /\.\.\.\{ dns, excludes: dnsExcludes,/,
      '...{ dns: "off" as const, excludes: dnsExcludes,',
    ],
    ["src/names/names.ts", /detachEverywhere\(linkFolder\(this\.#options\.bpffs\)\);/, ""],
    ["src/names/names.ts", /^ *removeOthers\(this\.#options\.bpffs\);$/m, ""],
  ],
} as const satisfies Record<string, readonly Change[]>;

export type OtherBuild = keyof typeof VARIANTS;

/** The version that a variant says it has. */
export const OTHER_VERSION: Record<OtherBuild, string> = {
  "wide-layout": "0.2.0-test",
  "bad-probe": "0.3.0-test",
  "other-keep": "0.4.0-test",
  "no-names": "0.0.9-test",
};

/**
 * The path of another kmesh; it takes about 15 s when it has to be made. Call build/compile before. Where nothing can be
 * made, KMESH_OTHER_BUILDS names a folder that has it: VARIANT/kmesh.
 * Rejects when a change no longer fits the source, or when it does not compile.
 */
export async function otherBuild(variant: OtherBuild): Promise<string> {
  const given = process.env.KMESH_OTHER_BUILDS;
  if (given !== undefined) return join(given, variant, "kmesh");
  const folder = join(CACHE, `${variant}-${sourceHash(variant)}`);
  const path = join(folder, "kmesh");
  if (!existsSync(path)) await make(variant, folder);
  const now = new Date();
  utimesSync(folder, now, now);
  prune(variant);
  return path;
}

async function make(variant: OtherBuild, folder: string): Promise<void> {
  const work = mkdtempSync(join(tmpdir(), "kmesh-build-"));
  try {
    for (const name of SOURCES)
      cpSync(join(ROOT, name), join(work, name), { recursive: true, preserveTimestamps: true });
    for (const change of VARIANTS[variant]) apply(work, change);
    mkdirSync(join(work, "dist"));
    cpSync(join(ROOT, "dist/libbpf.so"), join(work, "dist/libbpf.so"), { preserveTimestamps: true });
    symlinkSync(join(ROOT, "node_modules"), join(work, "node_modules"));
    // build/compile without build/setup: what this installs is there, and is not the copy's to change.
    const script = '. build/env.sh; export LIBBPF INCLUDE OUT TARGET; exec "$BUN" build/compile.ts';
    const result = await run(["bash", "-c", script, join(work, "build/compile")], {
      cwd: work,
      timeoutMs: 180_000,
    });
    if (result.code !== 0) throw new Error(`${variant} does not compile: ${result.stdout}${result.stderr}`);
    mkdirSync(CACHE, { recursive: true });
    const made = mkdtempSync(join(CACHE, "new-"));
    cpSync(join(work, "dist/kmesh"), join(made, "kmesh"), { preserveTimestamps: true });
    try {
      renameSync(made, folder);
    } catch (error) {
      // Another test has made the same at the same time.
      rmSync(made, { recursive: true });
      if (!existsSync(join(folder, "kmesh"))) throw error;
    }
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

function apply(work: string, [file, from, to]: Change): void {
  const path = join(work, file);
  const text = readFileSync(path, "utf8");
  const changed = text.replace(from, to);
  if (changed === text) throw new Error(`${file} has no ${from} any more: mend test/lab/other-build.ts`);
  writeFileSync(path, changed);
}

function sourceHash(variant: OtherBuild): string {
  const hash = createHash("sha256").update(VARIANTS[variant].map((change) => change.join("\n")).join("\n"));
  for (const file of SOURCES.flatMap(filesAt)) hash.update(file).update(readFileSync(join(ROOT, file)));
  return hash.digest("hex").slice(0, 16);
}

/** Files of the checkout below a path, sorted: neither tests nor what is generated. */
function filesAt(path: string): string[] {
  if (!statSync(join(ROOT, path)).isDirectory()) return [path];
  const names = readdirSync(join(ROOT, path), { recursive: true, encoding: "utf8" }).sort();
  return names
    .map((name) => join(path, name))
    .filter(
      (file) => !/\.(test|gen)\.(ts|js)$|\.gen\.d\.ts$/.test(file) && statSync(join(ROOT, file)).isFile(),
    );
}

function prune(variant: OtherBuild): void {
  const made = readdirSync(CACHE)
    .filter((name) => name.startsWith(`${variant}-`))
    .map((name) => ({ path: join(CACHE, name), used: statSync(join(CACHE, name)).mtimeMs }))
    .sort((a, b) => b.used - a.used);
  for (const { path, used } of made.slice(KEPT))
    if (used < Date.now() - IN_USE) rmSync(path, { recursive: true, force: true });
}
