/** Finds damage of one installation: pins, folders, and permissions of the configuration. */

import { accessSync, constants, statfsSync, statSync } from "node:fs";
import type { Config, Folders } from "../config/config.ts";
import { type Damage, damageAt } from "../datapath/inspect/damage.ts";
import { reasonOf } from "../errors/reason.ts";
import { unsafeConfig } from "./config-files.ts";
import { unsafeModeOf } from "./folder-permissions.ts";

/**
 * Checks everything, changes nothing, never throws. `snapshot` is the running agent's error of its last snapshot, `pins`
 * finds damaged pins, and `config` names the files to check. Needs root.
 */
export function damageOf(
  folders: Folders,
  snapshot?: string,
  pins = () => damageAt(folders.bpffs),
  config?: Config,
): Damage[] {
  const state = damagedState(folders.stateDir);
  return [
    ...damagedPins(folders.bpffs, pins),
    ...exposed(folders),
    ...(config ? unsafeConfig(config) : []),
    ...state,
    ...(snapshot === undefined || state.length > 0
      ? []
      : [{ what: snapshot, consequence: STALE, cure: "repair it; the agent tries again each minute" }]),
  ];
}

const STALE =
  "traffic does not need it; but after a reboot without istiod an older snapshot governs, or none, and a new certificate is lost with the agent";

const EXPOSED =
  "connections are governed on; but whoever writes there could have them go elsewhere, so no agent starts";

function damagedPins(bpffs: string, pins: () => Damage[]): Damage[] {
  try {
    return pins();
  } catch (error) {
    return [
      {
        what: `what is pinned in ${bpffs} can't be looked at: ${reasonOf(error)}`,
        consequence: "whether it is damaged is not known",
        cure: "look again; when it stays, `bpftool link` and `bpftool cgroup tree` show what is attached",
      },
    ];
  }
}

function exposed({ runDir, stateDir, bpffs }: Folders): Damage[] {
  return [runDir, stateDir, bpffs].flatMap((path) => {
    const exposure = unsafeModeOf(path);
    return exposure ? [{ ...exposure, consequence: EXPOSED }] : [];
  });
}

/** Whether a folder is writable. A missing folder is not damage: the next start creates it. */
function damagedState(path: string): Damage[] {
  const trouble = unwritable(path);
  if (trouble === undefined) return [];
  return [{ what: `nothing can be written to ${path}: ${trouble[0]}`, consequence: STALE, cure: trouble[1] }];
}

/** The reason why root can't write there, and the next step. */
function unwritable(path: string): [string, string] | undefined {
  const entry = statSync(path, { throwIfNoEntry: false });
  if (!entry) return undefined;
  if (!entry.isDirectory()) return ["it is not a folder", `move it away: mv ${path} ${path}.old`];
  try {
    accessSync(path, constants.W_OK | constants.X_OK);
  } catch (error) {
    return [reasonOf(error), `make it writable: mount -o remount,rw its file system (findmnt -T ${path})`];
  }
  const { bavail, files, ffree } = statfsSync(path);
  // File systems without a fixed number of inodes report 0 of 0.
  if (bavail === 0 || (files > 0 && ffree === 0))
    return [
      `its disk is full (no ${bavail === 0 ? "block" : "inode"} is left)`,
      `make room: df -h -i ${path}`,
    ];
  return undefined;
}
