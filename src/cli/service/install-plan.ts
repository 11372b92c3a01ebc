/** The files of an installation: what `install` writes, `uninstall` removes, and when there is nothing to do. */

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
import { configTemplate } from "../config-file/config-file.ts";
import { EXIT, Failure } from "../framework/exit.ts";
import { fileStep, type Step } from "../framework/plan.ts";
import { bootRemovals } from "./boot-order.ts";
import { GATE, SERVICE } from "./systemd.ts";

export interface Paths {
  executable: string;
  /** The executable before this one, for a way back. */
  previous: string;
  unit: string;
  /** What units that are closed at boot wait for. */
  gate: string;
  /** What `systemctl enable` makes. */
  wanted: string;
  config: string;
  state: string;
  run: string;
}

/** Where everything lies below `root`, which is / but for tests and packages. */
export function installedPaths(root = "/"): Paths {
  return {
    executable: join(root, "usr/local/bin/kmesh"),
    previous: join(root, "usr/local/bin/kmesh.previous"),
    unit: join(root, "etc/systemd/system", SERVICE),
    gate: join(root, "etc/systemd/system", GATE),
    wanted: join(root, "etc/systemd/system/multi-user.target.wants", SERVICE),
    config: join(root, CONFIG_FILE),
    state: join(root, "var/lib/kmesh"),
    run: join(root, "run/kmesh"),
  };
}

/** What is put into place: a file to copy, and the text of the units. */
export interface Parts {
  executable: string;
  unit: string;
  gate: string;
}

/** The files, the executable first. Every one appears whole or not at all; the executable's name never lacks a file. Throws Failure for a masked unit. */
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
    fileStep(paths.unit, parts.unit, 0o644),
    fileStep(paths.gate, parts.gate, 0o644),
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

/** The files that install wrote, as far as they are there. What the operator changed or put beside them stays. */
export function uninstallSteps(paths: Paths, keepState: boolean): Step[] {
  // First the drop-ins: a unit that is closed would not start without what it waits for.
  const steps: Step[] = bootRemovals(dirname(paths.unit));
  const { executable, previous } = paths;
  const leftovers = [`${executable}.new`, `${executable}.next`, `${previous}.new`];
  for (const path of [paths.wanted, paths.unit, paths.gate, executable, previous, ...leftovers]) {
    if (lstatSync(path, { throwIfNoEntry: false })) steps.push(removal(path));
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
      // Of an upgrade that was killed.
      rmSync(`${executable}.next`, { force: true });
    },
  };
}

/** Whether two files hold the same; a piece at a time, since an executable is large. */
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
