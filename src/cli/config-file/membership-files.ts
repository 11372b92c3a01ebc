/** The five files of istioctl, in the operator's folder. */

import { statSync } from "node:fs";
import { join, resolve } from "node:path";
import { codeOrReason } from "../../errors/reason.ts";
import { readTextFile } from "../../files/read-file.ts";
import { isExposed } from "../../istiod/identity/token.ts";
import {
  formatProblem,
  MEMBERSHIP_FILES,
  type Membership,
  type MembershipFile,
  readMembership,
} from "../../istiod/join/membership.ts";
import { formatSpiffe, type SpiffeId } from "../../istiod/spiffe.ts";
import { EXIT, Failure } from "../framework/exit.ts";

/** The value of `--from` for the places where Istio's own agent expects the files. */
export const ISTIO = "istio";

export interface Members {
  membership: Membership;
  /** Where each file was found. */
  paths: Record<MembershipFile, string>;
  /** Warnings. */
  remarks: string[];
}

/**
 * Reads the files in the folder `from`, or in Istio's own places below `root` when it is "istio". `certified` as for
 * readMembership. Throws Failure with all faults.
 */
export function readMembers(from: string, certified: SpiffeId | undefined, root = "/"): Members {
  const classic = from === ISTIO;
  const paths = classic ? istiosPlaces(root) : placesIn(resolve(from));
  const unreadable = new Map<string, string>();
  const texts: Partial<Record<MembershipFile, string>> = {};
  for (const file of MEMBERSHIP_FILES) {
    try {
      texts[file] = readTextFile(paths[file]);
    } catch (error) {
      const code = codeOrReason(error);
      if (code === "ENOENT" || code === "ENOTDIR") continue;
      // Reported once: do not also report its content as missing.
      unreadable.set(paths[file], `${paths[file]} can't be read (${code})`);
    }
  }
  const where = classic ? "Istio's own places (/etc/istio, /var/lib/istio)" : resolve(from);
  if (
    unreadable.size === 0 &&
    MEMBERSHIP_FILES.every((file) => file === "hosts" || texts[file] === undefined)
  ) {
    throw new Failure(
      EXIT.failed,
      `there are none of istioctl's files in ${where}`,
      "Have them written by istioctl x workload entry configure -o DIR, and give --from DIR.",
    );
  }
  // Istio's own installation appends it to /etc/hosts.
  if (classic) texts.hosts ??= "";
  const read = readMembership(texts, { now: Date.now(), certified, paths });
  if ("problems" in read || unreadable.size > 0) {
    const others = "problems" in read ? read.problems.filter(({ file }) => !unreadable.has(file)) : [];
    const all = [...unreadable.values(), ...others.map(formatProblem)];
    throw new Failure(
      EXIT.failed,
      `the files in ${where} can't be used, nothing was changed:\n  ${all.join("\n  ")}`,
      "Mend them, or have istioctl x workload entry configure write them anew.",
    );
  }
  const { membership } = read;
  const token = paths["istio-token"];
  const remarks = isExposed(token)
    ? [`others can read ${token}, and be ${formatSpiffe(membership.id)} with it: chmod 0600 ${token}`]
    : [];
  return { membership, paths, remarks };
}

function placesIn(folder: string): Record<MembershipFile, string> {
  if (!statSync(folder, { throwIfNoEntry: false })?.isDirectory())
    throw new Failure(
      EXIT.failed,
      `there is no folder ${folder}`,
      "Give --from DIR, where istioctl wrote its files.",
    );
  return {
    "cluster.env": join(folder, "cluster.env"),
    "mesh.yaml": join(folder, "mesh.yaml"),
    "root-cert.pem": join(folder, "root-cert.pem"),
    "istio-token": join(folder, "istio-token"),
    hosts: join(folder, "hosts"),
  };
}

function istiosPlaces(root: string): Record<MembershipFile, string> {
  return {
    "cluster.env": join(root, "var/lib/istio/envoy/cluster.env"),
    "mesh.yaml": join(root, "etc/istio/config/mesh"),
    "root-cert.pem": join(root, "etc/certs/root-cert.pem"),
    "istio-token": join(root, "var/run/secrets/tokens/istio-token"),
    hosts: join(root, "etc/istio/hosts"),
  };
}
