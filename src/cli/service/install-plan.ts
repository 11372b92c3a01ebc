/** The files that `install` writes and `uninstall` removes. */

import {
  chmodSync,
  closeSync,
  copyFileSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  rmdirSync,
  rmSync,
  statSync,
  symlinkSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { CONFIG_FILE } from "../../config/sources.ts";
import { readTextFile } from "../../files/read-file.ts";
import { syncPath } from "../../files/replace-file.ts";
import { asset } from "../../runtime/assets.ts";
import { configTemplate } from "../config-file/config-file.ts";
import { type Document, documentPaths } from "../documents/documents.ts";
import { EXIT, Failure } from "../framework/exit.ts";
import { fileStep, type Step } from "../framework/plan.ts";
import { bootRemovals } from "./boot-order.ts";
import { SERVICE, UNITS, type UnitName } from "./systemd.ts";

/** Who owns the installed files: `kmesh install`, or the machine's package manager. */
export type Origin = "install" | "package";

export interface Paths {
  origin: Origin;
  executable: string;
  /** The previous executable, for a rollback. */
  previous: string;
  /** The agent's unit. */
  unit: string;
  /** The folder of kmesh's own units. */
  shipped: string;
  /** systemd's folder for the machine's own units and drop-ins. */
  units: string;
  /** The links that `systemctl enable` makes. */
  wanted: string;
  config: string;
  state: string;
  run: string;
}

/** All paths below `root`, which is / except for tests, packages and images. */
export function installedPaths(root = "/", origin: Origin = originBelow(root)): Paths {
  const units = join(root, "etc/systemd/system");
  const shipped = origin === "package" ? join(root, PACKAGE_UNITS) : units;
  const executable = join(root, binFolder(origin), "kmesh");
  return {
    origin,
    executable,
    previous: `${executable}.previous`,
    unit: join(shipped, SERVICE),
    shipped,
    units,
    wanted: join(units, "multi-user.target.wants", SERVICE),
    config: join(root, CONFIG_FILE),
    state: join(root, "var/lib/kmesh"),
    run: join(root, "run/kmesh"),
  };
}

const PACKAGE_UNITS = "usr/lib/systemd/system";

function originBelow(root: string): Origin {
  return existsSync(join(root, PACKAGE_UNITS, SERVICE)) ? "package" : "install";
}

/** /usr/local is the machine's own: no package may put files there. */
function binFolder(origin: Origin): string {
  return origin === "package" ? "/usr/bin" : "/usr/local/bin";
}

/** The units of a package or an installation, with their texts. */
export function unitTexts(origin: Origin): UnitTexts {
  return Object.fromEntries(UNITS.map((name) => [name, unitText(name, origin)])) as UnitTexts;
}

/** The text of a unit embedded in the executable, with the folder of the executable for `origin`. */
export function unitText(name: UnitName, origin: Origin): string {
  return new TextDecoder().decode(asset(name)).replaceAll(binFolder("install"), binFolder(origin));
}

/** Manual pages and completion lie below it, as the executable does. */
export function prefixOf({ executable }: Paths): string {
  return dirname(dirname(executable));
}

/** By their file names. */
export type UnitTexts = Readonly<Record<UnitName, string>>;

/** The path of a unit. */
export function unitPath({ shipped }: Paths, name: UnitName): string {
  return join(shipped, name);
}

/** Paths of the units. */
export function unitsOf(paths: Paths): string[] {
  return UNITS.map((name) => unitPath(paths, name));
}

function unitSteps(paths: Paths, texts: UnitTexts): Step[] {
  return UNITS.map((name) => fileStep(unitPath(paths, name), texts[name], 0o644));
}

/** The content to install: an executable to copy, and the text of the units. */
export interface Parts {
  executable: string;
  units: UnitTexts;
  /** Manual pages and completion. */
  documents: readonly Document[];
}

/** The files of a package. It has no configuration file, which belongs to the operator. */
export function packageSteps(paths: Paths, parts: Parts): Step[] {
  return [
    executableStep(paths, parts.executable),
    ...unitSteps(paths, parts.units),
    ...parts.documents.map(({ path, text }) => fileStep(path, text, 0o644)),
  ];
}

/** Steps that write the files, the executable first. Each write is atomic. Throws Failure for a masked unit. */
export function installSteps(paths: Paths, parts: Parts): [executable: Step, ...others: Step[]] {
  if (lstatSync(paths.unit, { throwIfNoEntry: false })?.isSymbolicLink()) {
    throw new Failure(
      EXIT.failed,
      `${paths.unit} is a link: the service is masked, or somebody else's`,
      `Take it away first: systemctl unmask ${SERVICE}`,
    );
  }
  return [
    executableStep(paths, parts.executable),
    ...unitSteps(paths, parts.units),
    ...parts.documents.map(({ path, text }) => fileStep(path, text, 0o644)),
    existsSync(paths.config)
      ? { action: "keep", target: paths.config, note: "yours" }
      : fileStep(paths.config, configTemplate(), 0o600),
  ];
}

/** Enables the service without a running systemd: for packages and images. */
export function enableStep(paths: Paths): Step {
  const there = lstatSync(paths.wanted, { throwIfNoEntry: false }) !== undefined;
  if (there) return { action: "keep", target: paths.wanted };
  return {
    action: "link",
    target: paths.wanted,
    note: "enabled at boot",
    act() {
      mkdirSync(dirname(paths.wanted), { recursive: true });
      symlinkSync(`../${SERVICE}`, paths.wanted);
    },
  };
}

/** Steps that remove the installed files. Files that the operator changed or added stay. */
export function uninstallSteps(paths: Paths, keepState: boolean): Step[] {
  // Drop-ins first: a `closed` unit would not start without the unit that it waits for.
  const steps: Step[] = bootRemovals(paths.units);
  const { executable, previous } = paths;
  const leftovers = [`${executable}.new`, `${executable}.next`, `${previous}.new`];
  const isThere = (path: string): boolean => lstatSync(path, { throwIfNoEntry: false }) !== undefined;
  if (paths.origin === "package") {
    const owned = [...unitsOf(paths), executable].filter(isThere);
    steps.push(...owned.map((target): Step => ({ action: "keep", target, note: "the package's" })));
  } else {
    const written = [
      paths.wanted,
      ...unitsOf(paths),
      executable,
      previous,
      ...leftovers,
      ...documentPaths(prefixOf(paths)),
    ];
    steps.push(...written.filter(isThere).map(removal));
  }
  if (existsSync(paths.config)) {
    if (keepState) steps.push({ action: "keep", target: paths.config });
    else if (readTextFile(paths.config) !== configTemplate())
      steps.push({ action: "keep", target: paths.config, note: "edited since install wrote it" });
    else {
      const folder = dirname(paths.config);
      steps.push({
        action: "remove",
        target: paths.config,
        act() {
          rmSync(paths.config);
          if (readdirSync(folder).length === 0) rmdirSync(folder);
        },
      });
    }
  }
  for (const path of [paths.run, paths.state]) {
    if (!existsSync(path)) continue;
    if (keepState && path === paths.state) steps.push({ action: "keep", target: path });
    else steps.push(removal(path));
  }
  return steps;
}

function removal(target: string): Step {
  return { action: "remove", target, act: () => rmSync(target, { recursive: true, force: true }) };
}

function executableStep(paths: Paths, source: string): Step {
  const { executable, previous } = paths;
  const replaces = existsSync(executable);
  if (replaces && sameContent(executable, source))
    return { action: "keep", target: executable, note: "the same" };
  return {
    action: replaces ? "replace" : "write",
    target: executable,
    ...(replaces ? { note: `the one before stays as ${previous}` } : {}),
    act() {
      mkdirSync(dirname(executable), { recursive: true });
      const fresh = `${executable}.new`;
      rmSync(fresh, { force: true });
      copyFileSync(source, fresh);
      chmodSync(fresh, 0o755);
      syncPath(fresh);
      if (replaces) {
        rmSync(`${previous}.new`, { force: true });
        linkSync(executable, `${previous}.new`);
        renameSync(`${previous}.new`, previous);
      }
      renameSync(fresh, executable);
      // Left by an upgrade that was killed.
      rmSync(`${executable}.next`, { force: true });
    },
  };
}

/** Whether two files have the same content, read in pieces because an executable is large. */
function sameContent(one: string, other: string): boolean {
  if (statSync(one).size !== statSync(other).size) return false;
  const fds = [openSync(one, "r"), openSync(other, "r")] as const;
  const pieces = [Buffer.alloc(1 << 20), Buffer.alloc(1 << 20)] as const;
  try {
    for (;;) {
      const count = readSync(fds[0], pieces[0]);
      if (count !== readSync(fds[1], pieces[1])) return false;
      if (count === 0) return true;
      if (!pieces[0].subarray(0, count).equals(pieces[1].subarray(0, count))) return false;
    }
  } finally {
    for (const fd of fds) closeSync(fd);
  }
}
