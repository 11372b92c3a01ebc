/** Checks the machine's requirements before the agent changes anything. */

import { existsSync, mkdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import type { Folders } from "../config/config.ts";
import { NotThereYet } from "../config/config-error.ts";
import type { Log } from "../config/log.ts";
import { reasonOf } from "../errors/reason.ts";
import { cgroup2Root } from "../kernel/cgroup.ts";
import { type Feature, formatMissing, kernelRelease, probe } from "../kernel/features.ts";
import { unsafeModeOf } from "./folder-permissions.ts";
import { requireRoot, Unsupported } from "./unsupported.ts";

/** Throws Unsupported when a required feature is missing. Logs functions that are off because an optional one is missing. */
export function requireMachine(log: Pick<Log, "warn">): void {
  requireRoot("kmesh run");
  requireKernel(log);
  requireCgroup2();
}

/** The same for the kernel alone. */
export function requireKernel(log: { warn(line: string): void }): void {
  const absent = probed().filter((feature) => !feature.present);
  const fatal = absent.filter((feature) => feature.required);
  if (fatal.length > 0) {
    const list = fatal.map(({ feature, since }) => `${feature} (from Linux ${since} on)`).join(", ");
    throw new Unsupported(
      `this kernel (${kernelRelease().text}) lacks ${list}`,
      "Boot a newer kernel; kmesh runs from 5.10 on.",
    );
  }
  for (const feature of absent) log.warn(`This kernel has ${formatMissing(feature)}.`);
}

/** A mount point that hides nothing. A mount over /sys/fs/cgroup would hide all cgroup v1 controllers. */
const CGROUP2_CURE =
  "Mount one where it hides nothing: mkdir -p /run/cgroup2 && mount -t cgroup2 cgroup2 /run/cgroup2 (not over /sys/fs/cgroup, where the cgroup v1 controllers are).";

/** Throws Unsupported unless a cgroup2 is mounted. */
export function requireCgroup2(): void {
  try {
    cgroup2Root();
  } catch (error) {
    throw new Unsupported(reasonOf(error), CGROUP2_CURE);
  }
}

function probed(): Feature[] {
  try {
    return probe();
  } catch (error) {
    throw new Unsupported(
      `bpf(2) is refused to this process: ${reasonOf(error)}`,
      "It needs CAP_BPF and CAP_SYS_ADMIN, and a seccomp filter (of a container, say) that lets bpf pass.",
    );
  }
}

/** Makes the run and state folders, readable by root only. Throws Unsupported with the path. */
export function makeFolders(folders: Folders): void {
  for (const path of [folders.runDir, folders.stateDir]) {
    try {
      mkdirSync(path, { recursive: true, mode: 0o700 });
    } catch (error) {
      throw new Unsupported(
        `${path} can't be made: ${reasonOf(error)}`,
        "Choose others with --run-dir and --state-dir.",
      );
    }
  }
}

/** Throws Unsupported for a folder that others can write, because its content decides where connections go. */
export function requirePrivate(folders: Folders): void {
  for (const path of [folders.runDir, folders.stateDir, folders.bpffs]) {
    const exposure = unsafeModeOf(path);
    if (!exposure) continue;
    throw new Unsupported(
      `${exposure.what}: whoever writes there could have connections go elsewhere. What governs goes on`,
      `Look at what lies there, then: ${exposure.cure}`,
    );
  }
}

/** Warns when units have no cgroup2 folders: units are matched by those names, so none would be governed. */
export function warnOfUnits(units: readonly string[], log: Pick<Log, "warn">): void {
  if (units.length === 0) return;
  // The cgroup of systemd itself, such as 0::/init.scope.
  if (/^0::\/./m.test(readFileSync("/proc/1/cgroup", "utf8"))) return;
  log.warn(
    `No systemd keeps its units in cgroup2 on this machine, so none of ${units.join(", ")} is governed by its name. ` +
      "Name cgroups with --cgroup; or boot with systemd.legacy_systemd_cgroup_controller=0, by which systemd keeps its units " +
      "in cgroup2, too, and the cgroup v1 controllers stay where they are.",
  );
}

/**
 * The folders of the cgroups to enrol. `paths` are below the cgroup2 root, as systemd writes them, or absolute. Throws
 * NotThereYet for a missing one.
 */
export function enrolledCgroups(paths: readonly string[]): string[] {
  const root = cgroup2Root();
  return paths.map((path) => {
    const folder = path === root || path.startsWith(`${root}/`) ? path : join(root, path);
    if (existsSync(folder) && statSync(folder).isDirectory()) return folder.replace(/(.)\/+$/, "$1");
    throw new NotThereYet(
      `there is no cgroup ${path} (no folder ${folder})`,
      "Name one that exists; systemctl show -p ControlGroup UNIT tells a unit's.",
      folder,
    );
  });
}
