/** Examines an executable before an upgrade: is it a kmesh that runs here? */
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { accessSync, closeSync, constants, existsSync, openSync, readSync, statSync } from "node:fs";
import { arch } from "node:os";
import { basename, dirname, join } from "node:path";
import { readTextFile } from "../../files/read-file.ts";
import { PROTOCOL } from "../../handover/protocol.ts";
import { EXIT, Failure } from "../framework/exit.ts";

export interface Executable {
  version: string;
  /** The layout of its tables. */
  abi: string;
  /** Whether it answers mesh names. A version that does not would leave the programs of names attached. */
  names: boolean;
  /** The file that gave the checksum; undefined without one. */
  checksumFrom?: string;
}

/** e_machine of an ELF header. */
const MACHINES: Readonly<Record<string, number>> = { x64: 62, arm64: 183 };
/** Time limit, milliseconds. A first start may read 100 MB from a slow disk. */
const PATIENCE = 30_000;

/**
 * Runs `path` to get its version. `sha256` is the required checksum; without it, `path`.sha256 or SHA256SUMS in the same
 * folder gives it. Throws Failure for a file that is missing, damaged, of another architecture, not runnable or not kmesh.
 */
export function examine(path: string, sha256?: string): Executable {
  const file = statSync(path, { throwIfNoEntry: false });
  if (!file) throw wrong(path, "does not exist");
  if (!file.isFile()) throw wrong(path, "is not a file");
  const wanted = sha256 === undefined ? checksumBeside(path) : { sum: sha256, from: "--sha256" };
  if (wanted !== undefined) requireChecksum(path, wanted.sum);
  requireElf(path);
  try {
    accessSync(path, constants.X_OK);
  } catch {
    throw wrong(path, "may not be executed", `chmod +x ${path}`);
  }
  const { status, stdout, stderr, error, signal } = spawnSync(path, ["version", "--output", "json"], {
    encoding: "utf8",
    timeout: PATIENCE,
    killSignal: "SIGKILL",
    stdio: ["ignore", "pipe", "pipe"],
  });
  if (error || status === null)
    throw wrong(path, `does not run here: ${error?.message ?? `it ended by ${signal}`}`);
  const about = parsed(stdout);
  if (about?.program !== "kmesh" && typeof about?.kernel !== "string") {
    const words = status === 0 ? "" : ` (exit code ${status}: ${stderr.trim().split("\n")[0] ?? ""})`;
    throw wrong(path, `is not a kmesh${words}`);
  }
  if (typeof about.abi !== "string" || typeof about.version !== "string" || about.handover !== PROTOCOL)
    throw wrong(
      path,
      `is kmesh ${about.version}, which can't succeed a running agent`,
      "Install it with its own `kmesh install --start`: connections continue meanwhile.",
    );
  const { version, abi } = about;
  const found: Executable = { version, abi, names: typeof about.names === "string" };
  return wanted === undefined ? found : { ...found, checksumFrom: wanted.from };
}

function requireElf(path: string): void {
  const head = Buffer.alloc(20);
  const fd = openSync(path, "r");
  try {
    readSync(fd, head);
  } finally {
    closeSync(fd);
  }
  if (head.readUInt32BE(0) !== 0x7f454c46) throw wrong(path, "is not an executable (not an ELF file)");
  const machine = MACHINES[arch()];
  if (head[4] !== 2 || (machine !== undefined && head.readUInt16LE(18) !== machine))
    throw wrong(path, `is not for this machine (${arch()})`);
}

/** The checksum of `path` in a file beside it, in the format of sha256sum(1). */
function checksumBeside(path: string): { sum: string; from: string } | undefined {
  const own = `${path}.sha256`;
  if (existsSync(own)) return { sum: readTextFile(own).trim().split(/\s/)[0] ?? "", from: own };
  const all = join(dirname(path), "SHA256SUMS");
  if (!existsSync(all)) return undefined;
  for (const line of readTextFile(all).split("\n")) {
    const [, sum, name] = /^(\S+) [ *](.+)$/.exec(line) ?? [];
    if (sum !== undefined && name === basename(path)) return { sum, from: all };
  }
  return undefined;
}

function requireChecksum(path: string, wanted: string): void {
  if (!/^[0-9a-f]{64}$/i.test(wanted))
    throw new Failure(
      EXIT.usage,
      `"${wanted}" is no SHA-256`,
      "It has 64 hexadecimal digits; sha256sum prints it.",
    );
  const found = checksum(path);
  if (found !== wanted.toLowerCase())
    throw wrong(path, `is damaged or another one: its SHA-256 is ${found}, not ${wanted.toLowerCase()}`);
}

/** SHA-256 in hexadecimal, read in pieces because an executable is large. */
export function checksum(path: string): string {
  const hash = createHash("sha256");
  const piece = Buffer.alloc(1 << 20);
  const fd = openSync(path, "r");
  try {
    for (let count = readSync(fd, piece); count > 0; count = readSync(fd, piece))
      hash.update(piece.subarray(0, count));
  } finally {
    closeSync(fd);
  }
  return hash.digest("hex");
}

function parsed(text: string): Partial<Record<string, unknown>> | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null ? { ...value } : undefined;
  } catch {
    return undefined;
  }
}

function wrong(path: string, what: string, next = "Nothing was changed."): Failure {
  return new Failure(EXIT.failed, `${path} ${what}`, next);
}
