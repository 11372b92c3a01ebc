/**
 * Builds all generated files: BPF objects, struct layouts, protobuf code, the single file. A step does nothing when its
 * result is newer than its sources. Run by build/compile.
 */
import { spawn, spawnSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { availableParallelism } from "node:os";
import { basename, dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { readLayout } from "./btf.ts";
import { layoutModule, mergeLayouts } from "./layout.ts";

const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));
const BUN = process.execPath;
const LIBBPF = required("LIBBPF");
/** build/compile --generate: stop before the single file. */
const generateOnly = process.argv.includes("--generate");
/** The runtime of another architecture, to build the single file for it; its results are in a folder of their own. */
const RUNTIME = process.env.RUNTIME || undefined;
const OUT = relative(ROOT, required("OUT"));

/** The two variants of each object: kernels before 5.12 have no fetching atomics. */
const VARIANTS = [
  { suffix: ".bpf.o", flags: ["-mcpu=v3"] },
  { suffix: ".compat.bpf.o", flags: ["-mcpu=v2", "-DKMESH_NO_FETCH_ATOMICS"] },
];

/** Layouts that change independently of each other, each with an id of its own. */
const isNames = (object: string): boolean => basename(object).startsWith("names.");
const isInbound = (object: string): boolean => basename(object).startsWith("inbound.");
const LAYOUTS = [
  {
    out: "src/datapath/tables/layout.gen.ts",
    of: (object: string) => !isNames(object) && !isInbound(object),
  },
  { out: "src/names/layout.gen.ts", of: isNames },
  { out: "src/inbound/layout.gen.ts", of: isInbound },
];

/** Units that are embedded in the executable; `kmesh install` writes them. */
const UNITS = [
  "systemd/kmesh.service",
  "systemd/kmesh-wait.service",
  "systemd/kmesh-tunnel.service",
  "systemd/kmesh-tunnel.socket",
  "systemd/kmesh-tunnel-hbone.socket",
  "systemd/kmesh-tunnel-inbound.socket",
  "systemd/kmesh-tunnel-inbound6.socket",
];

/** The results of bundlePage(), which are embedded in the executable, too. */
const PAGE = ["dist/page.html", "dist/page.js", "dist/page.css"];

/** The generated file of each package of proto/. */
const PROTO_OUT: Readonly<Record<string, string>> = {
  discovery: "src/istiod/discovery.gen.js",
  ca: "src/istiod/ca.gen.js",
  security: "src/policy/security.gen.js",
  workload: "src/dual-engine/records/workload.gen.js",
  envoy: "src/kernel-native/resources/envoy.gen.js",
};

type Step = () => Promise<void>;

process.chdir(ROOT);
mkdirSync("dist", { recursive: true });
const objects = objectsOf("bpf", "dist/bpf");
const testObjects = objectsOf("test/bpf", "dist/test", filesBelow("bpf"));
// The code for Envoy's messages takes longest, so it begins first.
await runAll([...protoSteps().reverse(), ...objects.steps, ...testObjects.steps]);
writeCompileCommands();
for (const { out, of } of LAYOUTS) writeLayout(out, objects.made.filter(of));
await bundlePage();
if (!generateOnly) await compileExecutable(objects.made);

/** Runs independent steps, as many at a time as there are processors. */
async function runAll(steps: Step[]): Promise<void> {
  const waiting = [...steps];
  const lane = async (): Promise<void> => {
    for (let step = waiting.shift(); step !== undefined; step = waiting.shift()) await step();
  };
  await Promise.all(Array.from({ length: availableParallelism() }, lane));
}

/**
 * The objects of a folder, one for every NAME.bpf.c and variant: their paths, and the steps that compile those that are not fresh.
 * `more` are further sources.
 */
function objectsOf(source: string, out: string, more: string[] = []): { made: string[]; steps: Step[] } {
  const made: string[] = [];
  const steps: Step[] = [];
  const sources = filesBelow(source).filter((file) => /\.[ch]$/.test(file));
  for (const file of sources.filter((path) => path.endsWith(".bpf.c")))
    for (const { suffix, flags } of VARIANTS) {
      const object = join(out, basename(file).replace(/\.bpf\.c$/, suffix));
      made.push(object);
      if (isFresh(object, [...sources, ...more, "build/compile.ts"])) continue;
      steps.push(() => compileObject(object, file, bpfFlags(source, flags)));
    }
  return { made, steps };
}

async function compileObject(object: string, file: string, flags: readonly string[]): Promise<void> {
  say(`compiling ${object}`);
  mkdirSync(dirname(object), { recursive: true });
  const part = `${object}.part`;
  await run("clang", [...flags, "-c", file, "-o", part]);
  // Remove DWARF and keep the BTF.
  await run("llvm-strip", ["-g", part]);
  renameSync(part, object);
}

/** Relative paths for files of the checkout, so that the object does not contain the path of the build. */
function bpfFlags(source: string, flags: readonly string[]): string[] {
  return [
    ...["-target", "bpf", "-O2", "-g", "-Wall", "-Wextra", "-Wno-unused-parameter"],
    // No __TARGET_ARCH: one set of objects serves every architecture, and code that depends on one does not compile.
    ...["-fdebug-compilation-dir=.", ...flags, "-I", source],
    ...["-isystem", `${LIBBPF}/include`, "-isystem", required("INCLUDE")],
  ];
}

/** For editors (.clangd): the compiler flags of each C file. */
function writeCompileCommands(): void {
  const flags = VARIANTS[0]?.flags ?? [];
  const commands = [
    ...["bpf", "test/bpf"].map((source) => ({ source, flags: bpfFlags(source, flags) })),
    { source: "src/kernel/native", flags: ["-Wall", "-Wextra", "-I", `${LIBBPF}/include`] },
  ].flatMap(({ source, flags }) =>
    filesBelow(source)
      .filter((file) => file.endsWith(".c"))
      .map((file) => ({ directory: ROOT, file, arguments: ["clang", ...flags, "-c", file] })),
  );
  write("dist/compile_commands.json", `${JSON.stringify(commands, null, 1)}\n`);
}

function writeLayout(out: string, built: string[]): void {
  // The compatible variants use the same maps.
  const primary = built.filter((object) => !object.endsWith(".compat.bpf.o"));
  if (primary.length === 0 || isFresh(out, [...built, "build/btf.ts", "build/layout.ts"])) return;
  say(`writing ${out}`);
  const layouts = Object.fromEntries(primary.map((object) => [object, readLayout(readFileSync(object))]));
  mkdirSync(dirname(out), { recursive: true });
  write(out, layoutModule(mergeLayouts(layouts)));
}

/** proto/discovery*.proto is one package, istio_ca, istio_security and istio_workload are one each, all the others another. */
function protoSteps(): Step[] {
  const all = filesBelow("proto").filter((file) => file.endsWith(".proto"));
  const isDiscovery = (file: string): boolean => basename(file).startsWith("discovery");
  const isCa = (file: string): boolean => basename(file) === "istio_ca.proto";
  const isSecurity = (file: string): boolean => basename(file) === "istio_security.proto";
  const isWorkload = (file: string): boolean => basename(file) === "istio_workload.proto";
  const groups = {
    discovery: all.filter(isDiscovery),
    ca: all.filter(isCa),
    security: all.filter(isSecurity),
    workload: all.filter(isWorkload),
    envoy: all.filter((file) => !isDiscovery(file) && !isCa(file) && !isSecurity(file) && !isWorkload(file)),
  };
  const steps: Step[] = [];
  for (const [group, files] of Object.entries(groups)) {
    const out = PROTO_OUT[group];
    if (out === undefined || files.length === 0) continue;
    if (isFresh(out, [...files, "build/compile.ts"]) && existsSync(typesOf(out))) continue;
    steps.push(() => generateProtos(group, files, out));
  }
  return steps;
}

async function generateProtos(group: string, files: readonly string[], out: string): Promise<void> {
  say(`generating ${out}`);
  const cli = "node_modules/protobufjs-cli/bin";
  const options = ["--no-verify", "--no-convert", "--no-delimited", "--no-service", "--no-typeurl"];
  // One root for each group, so that their names don't collide in protobufjs's global root.
  const part = `dist/${group}.gen.js`;
  const partTypes = `dist/${group}.gen.d.ts`;
  await run(BUN, [
    ...[`${cli}/pbjs`, "-t", "static-module", "-w", "esm", "--es6", "-r", `kmesh-${group}`],
    ...["--dependency", "protobufjs/minimal.js", "-p", "proto", ...options, "-o", part, ...files],
  ]);
  await run(BUN, [`${cli}/pbts`, "--no-comments", "-o", partTypes, part], {
    PATH: `${ROOT}/node_modules/.bin:${process.env.PATH}`,
  });
  renameSync(partTypes, typesOf(out));
  renameSync(part, out);
}

/** The declarations of a generated file. */
function typesOf(out: string): string {
  return out.replace(/\.js$/, ".d.ts");
}

/** The page of kmesh topology, for browsers: dist/page.{html,js,css}. */
async function bundlePage(): Promise<void> {
  const folder = "src/topology/page";
  const library = "node_modules/uplot/dist/uPlot.min.css";
  const sources = [
    ...filesBelow("src/topology"),
    "src/telemetry/model.ts",
    "package-lock.json",
    "build/compile.ts",
  ];
  if (PAGE.every((file) => isFresh(file, sources))) return;
  say("bundling dist/page.js");
  await run(BUN, [
    ...["build", `${folder}/main.ts`, "--target=browser", "--format=esm", "--minify"],
    ...["--outfile", "dist/page.js"],
  ]);
  write("dist/page.css", readFileSync(library, "utf8") + readFileSync(`${folder}/page.css`, "utf8"));
  write("dist/page.html", readFileSync(`${folder}/page.html`, "utf8"));
}

/** One executable with the libraries, the objects and the runtime inside. Equal sources give equal bytes. */
async function compileExecutable(built: string[]): Promise<void> {
  const main = "src/main.ts";
  if (!existsSync(main)) {
    say(`${main} is missing: no single file`);
    return;
  }
  const out = join(OUT, "kmesh");
  const version = versionText();
  const versionFile = "dist/version";
  if (!existsSync(versionFile) || readFileSync(versionFile, "utf8") !== version)
    writeFileSync(versionFile, version);
  const assets = [join(OUT, "libbpf.so"), ...built, ...UNITS, ...PAGE];
  const sources = [
    ...filesBelow("src").filter((file) => !file.endsWith(".test.ts")),
    ...assets,
    ...(RUNTIME === undefined ? [] : [RUNTIME]),
    "package.json",
    "package-lock.json",
    "build/compile.ts",
    versionFile,
  ];
  if (isFresh(out, sources)) return;

  say(`compiling ${out}`);
  const lines = [
    'import { embed } from "../src/runtime/assets.ts";',
    ...assets.map(
      (file, index) => `import a${index} from "./${relative("dist", file)}" with { type: "file" };`,
    ),
    `embed({ ${assets.map((file, index) => `${JSON.stringify(basename(file))}: a${index}`).join(", ")} });`,
  ];
  const build = join(OUT, "build");
  mkdirSync(build, { recursive: true });
  writeFileSync("dist/embedded.gen.ts", `${lines.join("\n")}\n`);
  writeFileSync("dist/entry.gen.ts", 'import "./embedded.gen.ts";\nimport "../src/main.ts";\n');
  // The name is part of the bytes, so it is built under its final name in another folder and moved: a running executable
  // is never overwritten.
  const parameters = [
    ...["build", "--compile", `--target=bun-linux-${required("TARGET")}`],
    ...(RUNTIME === undefined ? [] : [`--compile-executable-path=${RUNTIME}`]),
    ...["--minify-whitespace", "--minify-syntax", "--bytecode", "--format=esm", "--splitting"],
    ...["--no-compile-autoload-dotenv", "--no-compile-autoload-bunfig"],
    ...["--define", `KMESH_VERSION=${JSON.stringify(version)}`],
    // Replaces the folders of packages, or the executable would contain the path of the build. It needs no files of them.
    ...["--define", '__dirname="/"', "--define", '__filename="/"'],
    ...["--outfile", join(build, "kmesh"), "dist/entry.gen.ts"],
  ];
  // Fixed, because the bundler writes NODE_ENV into the code.
  await run(BUN, parameters, { NODE_ENV: "production" });
  renameSync(join(build, "kmesh"), out);
  rmSync(build, { recursive: true });
  say(`${out} is ${Math.round(statSync(out).size / 2 ** 20)} MB, version ${version}`);
}

/** The version of package.json and the commit: equal for all builds of one commit. */
function versionText(): string {
  const { version } = JSON.parse(readFileSync("package.json", "utf8")) as { version: string };
  const git = spawnSync("git", ["-c", `safe.directory=${ROOT}`, "rev-parse", "--short=12", "HEAD"], {
    encoding: "utf8",
  });
  return git.status === 0 ? `${version}+${git.stdout.trim()}` : version;
}

function isFresh(out: string, inputs: string[]): boolean {
  if (!existsSync(out)) return false;
  const made = statSync(out).mtimeMs;
  return inputs.every((file) => statSync(file).mtimeMs <= made);
}

function filesBelow(folder: string): string[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .sort();
}

function write(path: string, text: string): void {
  writeFileSync(`${path}.tmp`, text);
  renameSync(`${path}.tmp`, path);
}

/** Runs a command to its end; its standard output is printed only when it fails, which ends this process. */
async function run(
  command: string,
  parameters: string[],
  environment: Record<string, string> = {},
): Promise<void> {
  const child = spawn(command, parameters, {
    stdio: ["ignore", "pipe", "inherit"],
    env: { ...process.env, ...environment },
  });
  let text = "";
  child.stdout.setEncoding("utf8").on("data", (part: string) => {
    text += part;
  });
  const failure = await new Promise<string | undefined>((resolve) => {
    child.once("error", (error) => resolve(`: ${error.message}`));
    child.once("close", (code) => resolve(code === 0 ? undefined : ""));
  });
  if (failure === undefined) return;
  process.stderr.write(text);
  say(`failed: ${command} ${parameters.join(" ")}${failure}`);
  process.exit(1);
}

function required(name: string): string {
  const value = process.env[name];
  if (value === undefined) throw new Error(`${name} is not set: run build/compile, not build/compile.ts`);
  return value;
}

function say(text: string): void {
  process.stderr.write(`compile: ${text}\n`);
}
