/** The checks that need no network: kernel, cgroup2, bpffs, clock, files. */

import { X509Certificate } from "node:crypto";
import { accessSync, constants, existsSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import type { Config } from "../config/config.ts";
import { ConfigError } from "../config/config-error.ts";
import { damageAt } from "../datapath/inspect/damage.ts";
import { codeOrReason, faultOfFile, reasonOf } from "../errors/reason.ts";
import { readRegularFile } from "../files/read-file.ts";
import { FileError } from "../istiod/file-error.ts";
import { pemBlocks } from "../istiod/identity/certificate.ts";
import { faultOfToken, freshTokenCommand, isExposed, readToken, time } from "../istiod/identity/token.ts";
import type { SpiffeId } from "../istiod/spiffe.ts";
import { BPFFS, isOnBpffs, listPins } from "../kernel/bpffs.ts";
import { cgroup2Root } from "../kernel/cgroup.ts";
import { isClockSynchronized } from "../kernel/clock.ts";
import { kernelRelease } from "../kernel/features.ts";
import { unsafeModeOf } from "../machine/folder-permissions.ts";
import { identityStore } from "../machine/identity-store.ts";
import { enrolledCgroups, requireCgroup2, requireKernel } from "../machine/machine.ts";
import { Unsupported } from "../machine/unsupported.ts";
import { refuseUnknown, UnknownManifest } from "../state/manifest.ts";
import { type Check, errorFinding, type Finding } from "./check-runner.ts";

/** Tolerance for a file's date, which another machine may have written, milliseconds. */
const TOLERANCE = 300_000;

export function machineChecks(config: Config): Check[] {
  return [
    { name: "kernel", needs: [], look: lookAtKernel },
    { name: "cgroup2", needs: [], look: () => lookAtCgroups(config) },
    { name: "bpffs", needs: [], look: () => lookAtBpffs(config) },
    { name: "clock", needs: [], look: () => lookAtClock(config) },
    { name: "files", needs: [], look: () => lookAtFiles(config) },
  ];
}

function lookAtKernel(): Finding[] {
  const findings: Finding[] = [];
  if (isLockedDown(textOf("/sys/kernel/security/lockdown")))
    findings.push(
      faulty(
        "the kernel is locked down for confidentiality: BPF programs may not read kernel memory, and kmesh's must",
        "Boot with lockdown=integrity, or without lockdown= (cat /proc/cmdline).",
      ),
    );
  try {
    requireKernel({ warn: (text) => void findings.push({ state: "warning", text }) });
    findings.unshift({ state: "ok", text: `Linux ${kernelRelease().text} has all that is needed` });
  } catch (error) {
    findings.push(told(error));
  }
  return findings;
}

/** Whether /sys/kernel/security/lockdown marks the mode that keeps bpf_probe_read_kernel() from programs. */
export function isLockedDown(text: string): boolean {
  return text.includes("[confidentiality]");
}

/** The text of a file; "" if it is missing. */
function textOf(path: string): string {
  try {
    return readRegularFile(path).toString("utf8");
  } catch {
    return "";
  }
}

function lookAtCgroups(config: Config): Finding[] {
  try {
    requireCgroup2();
    const enrolled = enrolledCgroups(config.cgroups);
    return [{ state: "ok", text: `mounted at ${cgroup2Root()}; enrolled: ${enrolled.join(", ")}` }];
  } catch (error) {
    return [told(error)];
  }
}

function lookAtBpffs({ bpffs }: Config): Finding[] {
  const below = bpffs === BPFFS || bpffs.startsWith(`${BPFFS}/`);
  if (!isOnBpffs(bpffs)) {
    if (!below)
      return [
        faulty(`${bpffs} is not on a bpffs`, `Choose a folder below ${BPFFS}: --bpffs ${BPFFS}/kmesh.`),
      ];
    return [
      doubtful(
        `no bpffs is mounted on ${BPFFS}; kmesh run mounts it, the service can't`,
        `mount -t bpf bpf ${BPFFS}`,
      ),
    ];
  }
  const folder = nearest(bpffs);
  try {
    accessSync(folder, constants.W_OK);
  } catch (error) {
    return [faulty(`${folder} can't be written to (${codeOrReason(error)})`, `mount -o remount,rw ${BPFFS}`)];
  }
  const exposure = unsafeModeOf(bpffs);
  if (exposure) return [faulty(`${exposure.what}: \`kmesh run\` refuses that`, exposure.cure)];
  try {
    const damage = damageAt(bpffs).map(({ what, cure }) => doubtful(what, cure));
    if (damage.length > 0) return damage;
  } catch (error) {
    return [told(error)];
  }
  const pins = listPins(bpffs).length;
  return [
    { state: "ok", text: pins === 0 ? `nothing is pinned in ${bpffs} yet` : `${pins} pins in ${bpffs}` },
  ];
}

/** Compares the clock with dates on this machine only; the identity check compares it with istiod's. */
function lookAtClock(config: Config): Finding[] {
  const now = Date.now();
  const cure = "timedatectl set-ntp true, or set it by hand: timedatectl set-time";
  for (const { what, at } of datedThings(config)) {
    if (at > now + TOLERANCE)
      return [faulty(`it is ${time(now)} by this machine's clock, but ${what} is from ${time(at)}`, cure)];
  }
  if (isClockSynchronized() === false)
    return [doubtful(`${time(now)}; no time service keeps this clock: certificates depend on it`, cure)];
  return [{ state: "ok", text: time(now) }];
}

/** Dates that can't lie in the future. */
function datedThings({ ca, stateDir }: Config): { what: string; at: number }[] {
  const things = [ca, join(stateDir, "snapshot"), process.execPath].flatMap((path) => {
    const at = path === undefined ? undefined : statSync(path, { throwIfNoEntry: false })?.mtimeMs;
    return at === undefined ? [] : [{ what: String(path), at }];
  });
  const kept = keptCertificate(stateDir);
  if (typeof kept === "object") things.push({ what: "the kept certificate", at: kept.notBefore });
  return things;
}

function lookAtFiles(config: Config): Finding[] {
  const findings: Finding[] = [];
  const { ca, token, stateDir, runDir, plaintext, namespace, serviceAccount, trustDomain } = config;
  for (const [flag, folder] of [
    ["--state-dir", stateDir],
    ["--run-dir", runDir],
  ] as const)
    findings.push(...lookAtFolder(flag, folder));
  findings.push(...lookAtManifest(stateDir));
  if (plaintext)
    return [...findings, { state: "ok", text: "--plaintext: neither roots nor a token are used" }];
  if (ca !== undefined) findings.push(...lookAtRoots(ca));
  const kept = keptCertificate(stateDir);
  if (typeof kept === "string")
    findings.push(doubtful(`the kept certificate can't be used (${kept}); another is asked for`));
  const needed = typeof kept !== "object" || kept.notAfter <= Date.now();
  if (token === undefined) {
    if (needed)
      findings.push(
        faulty("there is neither a certificate nor a token", "Name the token's file with --token FILE."),
      );
    return findings;
  }
  const fresh = freshTokenCommand({ namespace, serviceAccount, trustDomain }, token);
  if (isExposed(token))
    findings.push(
      doubtful(`others can read the token in ${token}, and be this machine with it`, `chmod 0600 ${token}`),
    );
  const fault = faultOfTokenFile(token, { namespace, serviceAccount, trustDomain });
  // A machine with a certificate needs no token until it expires.
  if (fault === undefined) findings.push({ state: "ok", text: `${token}: a token for this machine` });
  else if (needed) findings.push(faulty(fault, `Write a fresh one with ${fresh}`));
  else findings.push(doubtful(`${fault}; it is not needed while there is a certificate`));
  return findings;
}

function faultOfTokenFile(file: string, id: SpiffeId): string | undefined {
  try {
    const fault = faultOfToken(readToken(file), id, Date.now());
    return fault === undefined ? undefined : `the token in ${file} can't be used, for ${fault}`;
  } catch (error) {
    if (error instanceof FileError) return error.message.replace(/: (pass|write) .*/, "");
    throw error;
  }
}

/** A manifest of a later version, which `kmesh run` refuses. */
function lookAtManifest(stateDir: string): Finding[] {
  try {
    refuseUnknown(stateDir);
    return [];
  } catch (error) {
    if (!(error instanceof UnknownManifest)) throw error;
    return [faulty(error.message, error.next)];
  }
}

function lookAtFolder(flag: string, folder: string): Finding[] {
  const stat = statSync(folder, { throwIfNoEntry: false });
  const at = nearest(folder);
  if (stat && !stat.isDirectory())
    return [faulty(`${folder} is not a folder`, `Move it away, or name another with ${flag}.`)];
  try {
    accessSync(at, constants.W_OK);
  } catch (error) {
    return [
      faulty(
        `${at} can't be written to (${codeOrReason(error)})`,
        `Mount it writable, or name another with ${flag}.`,
      ),
    ];
  }
  const exposure = unsafeModeOf(folder);
  if (exposure) return [faulty(`${exposure.what}: \`kmesh run\` refuses that`, exposure.cure)];
  // The state folder has keys, the run folder has the admin socket.
  if (stat && (stat.mode & 0o077) !== 0)
    return [
      doubtful(
        `others can look into ${folder} (mode ${(stat.mode & 0o777).toString(8)})`,
        `chmod 0700 ${folder}`,
      ),
    ];
  return [];
}

function lookAtRoots(ca: string): Finding[] {
  const cure =
    "Write the mesh's root certificate to it again: root-cert.pem of config map istio-ca-root-cert.";
  let blocks: string[];
  try {
    blocks = pemBlocks(readRegularFile(ca).toString("latin1"));
  } catch (error) {
    return [faulty(`the file of roots ${ca} ${faultOfFile(error)}`, cure)];
  }
  if (blocks.length === 0) return [faulty(`${ca} holds no PEM certificate`, cure)];
  try {
    const roots = blocks.map((block) => new X509Certificate(block));
    const valid = roots.filter(({ validToDate }) => validToDate.getTime() > Date.now());
    const [last] = roots.map(({ validToDate }) => validToDate.getTime()).sort((a, b) => b - a);
    if (valid.length === 0) return [faulty(`the roots in ${ca} expired at ${time(last ?? 0)}`, cure)];
    return [
      {
        state: "ok",
        text: `${ca}: ${roots.length === 1 ? "a root" : `${roots.length} roots`} until ${time(last ?? 0)}`,
      },
    ];
  } catch {
    return [faulty(`${ca} holds a certificate that can't be read`, cure)];
  }
}

/** The certificate's validity; undefined without one, or the reason why it can't be used. */
function keptCertificate(stateDir: string): { notBefore: number; notAfter: number } | string | undefined {
  try {
    return identityStore(stateDir).load();
  } catch (error) {
    return reasonOf(error);
  }
}

function nearest(path: string): string {
  let at = path;
  while (!existsSync(at)) at = dirname(at);
  return at;
}

function told(error: unknown): Finding {
  if (error instanceof Unsupported || error instanceof ConfigError) return errorFinding(error, error.next);
  return errorFinding(
    error,
    "See whether this process is let at it: it needs root, and no container's filter.",
  );
}

function faulty(text: string, cure: string): Finding {
  return { state: "error", text, cure };
}

function doubtful(text: string, cure?: string): Finding {
  return cure === undefined ? { state: "warning", text } : { state: "warning", text, cure };
}
