/**
 * The snapshot: the last live mesh, in a file of the state folder. After a reboot it governs until istiod answers. The
 * file, little-endian:
 *
 *     0   8   "kmeshsnp"
 *     8   4   version of the format
 *     12  4   bytes of the settings
 *     16  8   bytes of settings and mesh
 *     24  8   when it was written, milliseconds since the epoch
 *     32  32  fingerprint of the machine that wrote it
 *     64  32  SHA-256 of the settings, the mesh, and bytes 0 to 63
 *     96      settings as JSON, then the mesh (mesh/encoding.ts)
 */

import { createHash } from "node:crypto";
import { closeSync, existsSync, mkdirSync, openSync, renameSync, rmSync, writeSync } from "node:fs";
import { join } from "node:path";
import { isMissing } from "../errors/reason.ts";
import { readWhole } from "../files/read-whole.ts";
import { machineFingerprint } from "../machine/machine-id.ts";
import { decodeMesh, encodeMesh, MalformedMesh, MESH_ENCODING } from "../mesh/encoding.ts";
import type { Mesh } from "../mesh/model.ts";
import { faultPoint } from "../runtime/fault.ts";

const MAGIC = "kmeshsnp";
const VERSION = MESH_ENCODING;
/** Without names, which then come with istiod's first push. */
const OLDEST = 2;
const HEAD = 96;
const CHECKSUM_AT = 64;
/** A mesh of 10,000 services and 100,000 endpoints takes about 5 MB. */
const LARGEST = 256 << 20;

/** What a snapshot is valid for: on another machine, or with other settings, the mesh would differ. */
export interface SnapshotKey {
  /** The text of /etc/machine-id. */
  machine: string;
  /** Settings that change the mesh, by name. */
  settings: Record<string, string | boolean>;
}

export interface Snapshot {
  mesh: Mesh;
  writtenAt: Date;
}

/** The file exists and can't be used. */
export class BadSnapshot extends Error {
  constructor(reason: string) {
    super(reason);
    this.name = "BadSnapshot";
  }
}

/** The snapshot's path in the state folder. */
export function snapshotFile(stateDir: string): string {
  return join(stateDir, "snapshot");
}

function unfinishedFile(stateDir: string): string {
  return `${snapshotFile(stateDir)}.new`;
}

function badFile(stateDir: string): string {
  return `${snapshotFile(stateDir)}.bad`;
}

function filesOf(stateDir: string): string[] {
  return [snapshotFile(stateDir), unfinishedFile(stateDir), badFile(stateDir)];
}

/**
 * Reads and verifies the snapshot in `stateDir`; undefined when there is none. Without `bond.settings` a snapshot of
 * any settings is accepted. Changes nothing. Throws BadSnapshot, and the file system's Error.
 */
export function readSnapshot(
  stateDir: string,
  bond: { machine: string; settings?: SnapshotKey["settings"] },
): Snapshot | undefined {
  const file = readWhole(snapshotFile(stateDir), LARGEST, BadSnapshot);
  if (file === undefined) return undefined;
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  if (file.length < HEAD) throw new BadSnapshot("it is cut off");
  if (file.subarray(0, 8).toString("latin1") !== MAGIC) throw new BadSnapshot("it is no snapshot of kmesh");
  const version = view.getUint32(8, true);
  if (version > VERSION)
    throw new BadSnapshot(`a newer kmesh wrote it (format ${version}, this one reads ${VERSION})`);
  if (version < OLDEST) throw new BadSnapshot(`its format ${version} is not known`);
  const length = Number(view.getBigUint64(16, true));
  if (file.length < HEAD + length) throw new BadSnapshot("it is cut off");
  const content = file.subarray(HEAD);
  const checksum = createHash("sha256").update(content).update(file.subarray(0, CHECKSUM_AT)).digest();
  if (content.length !== length || !checksum.equals(file.subarray(CHECKSUM_AT, HEAD)))
    throw new BadSnapshot("its checksum is wrong");
  if (!machineFingerprint("snapshot", bond.machine).equals(file.subarray(32, CHECKSUM_AT)))
    throw new BadSnapshot("it was written on another machine (/etc/machine-id differs)");
  const settingsLength = view.getUint32(12, true);
  const writtenAt = new Date(Number(view.getBigUint64(24, true)));
  if (bond.settings) compareSettings(content.subarray(0, settingsLength).toString(), bond.settings);
  try {
    return { mesh: decodeMesh(content.subarray(settingsLength), version), writtenAt };
  } catch (error) {
    throw error instanceof MalformedMesh ? new BadSnapshot(`it holds no mesh: ${error.message}`) : error;
  }
}

/** The settings of the snapshot in `stateDir`; undefined when there is none that can be read. */
export function readSnapshotSettings(stateDir: string): SnapshotKey["settings"] | undefined {
  try {
    const file = readWhole(snapshotFile(stateDir), LARGEST, BadSnapshot);
    if (
      file === undefined ||
      file.length < HEAD ||
      file.readUInt32LE(8) < OLDEST ||
      file.readUInt32LE(8) > VERSION
    )
      return undefined;
    return JSON.parse(file.subarray(HEAD, HEAD + file.readUInt32LE(12)).toString());
  } catch {
    return undefined;
  }
}

/** Renames an unusable snapshot, replacing an older such file. Gives the new path. Throws the file system's Error. */
export function setSnapshotAside(stateDir: string): string {
  renameSync(snapshotFile(stateDir), badFile(stateDir));
  return badFile(stateDir);
}

/** Whether `removeSnapshot` would find anything. */
export function hasSnapshot(stateDir: string): boolean {
  return filesOf(stateDir).some((path) => existsSync(path));
}

/**
 * Removes the snapshot, and its unfinished and rejected copies. Gives whether there was any. Throws the file system's
 * Error.
 */
export function removeSnapshot(stateDir: string): boolean {
  let found = false;
  for (const path of filesOf(stateDir)) {
    try {
      rmSync(path);
      found = true;
    } catch (error) {
      if (!isMissing(error)) throw error;
    }
  }
  return found;
}

/**
 * A snapshot that is being written, in steps of about a millisecond. Between steps the caller may do other work, or
 * give up with `discard`. It holds the mesh of the time when it began.
 */
export class SnapshotDraft {
  readonly fd: number;
  readonly #stateDir: string;
  readonly #steps: Generator<void, number>;
  #open = true;
  #size = 0;

  /** Throws what the file system says. */
  constructor(stateDir: string, mesh: Mesh, bond: SnapshotKey) {
    this.#stateDir = stateDir;
    const path = unfinishedFile(stateDir);
    mkdirSync(stateDir, { recursive: true, mode: 0o700 });
    rmSync(path, { force: true });
    this.fd = openSync(path, "wx", 0o600);
    this.#steps = write(this.fd, encodeMesh(mesh), bond);
  }

  /** Bytes of the file, after the last step. */
  get size(): number {
    return this.#size;
  }

  /**
   * Writes the next part. Gives whether there is more to do. Throws the file system's Error, and RangeError for a
   * mesh that is too large.
   */
  step(): boolean {
    const { done, value } = this.#steps.next();
    if (done === true) this.#size = value;
    return done !== true;
  }

  /**
   * Renames the file to the snapshot. Call it after the last step and an fsync of the descriptor. Throws the file
   * system's Error.
   */
  publish(): void {
    this.#close();
    // The folder needs no sync: if the power fails before the new name is on the disk, the previous snapshot is still
    // valid.
    faultPoint("snapshot.rename");
    renameSync(unfinishedFile(this.#stateDir), snapshotFile(this.#stateDir));
  }

  /** Removes the unfinished file. */
  discard(): void {
    this.#close();
    rmSync(unfinishedFile(this.#stateDir), { force: true });
  }

  #close(): void {
    if (!this.#open) return;
    this.#open = false;
    closeSync(this.fd);
  }
}

function* write(
  fd: number,
  parts: Iterable<Uint8Array>,
  { machine, settings }: SnapshotKey,
): Generator<void, number> {
  const text = Buffer.from(JSON.stringify(settings));
  const head = Buffer.alloc(HEAD);
  const hash = createHash("sha256").update(text);
  writeWhole(fd, head);
  writeWhole(fd, text);
  let length = text.length;
  for (const part of parts) {
    length += part.length;
    if (HEAD + length > LARGEST) throw new RangeError(`it would take more than ${LARGEST >> 20} MiB`);
    hash.update(part);
    writeWhole(fd, part);
    faultPoint("snapshot.part");
    yield;
  }
  head.write(MAGIC, "latin1");
  head.writeUInt32LE(VERSION, 8);
  head.writeUInt32LE(text.length, 12);
  head.writeBigUInt64LE(BigInt(length), 16);
  head.writeBigUInt64LE(BigInt(Date.now()), 24);
  machineFingerprint("snapshot", machine).copy(head, 32);
  hash.update(head.subarray(0, CHECKSUM_AT)).digest().copy(head, CHECKSUM_AT);
  faultPoint("snapshot.head");
  // The head is written last: a file without it is not a snapshot.
  writeSync(fd, head, 0, HEAD, 0);
  return HEAD + length;
}

function writeWhole(fd: number, bytes: Uint8Array): void {
  let at = 0;
  while (at < bytes.length) at += writeSync(fd, bytes, at, bytes.length - at);
}

function compareSettings(text: string, now: SnapshotKey["settings"]): void {
  let then: SnapshotKey["settings"];
  try {
    then = JSON.parse(text);
  } catch {
    throw new BadSnapshot("it holds no settings");
  }
  const names = Object.keys({ ...then, ...now }).filter((name) => then[name] !== now[name]);
  if (names.length === 0) return;
  const told = names.map((name) => `${name} was ${then[name] ?? "not set"}, now ${now[name] ?? "not set"}`);
  throw new BadSnapshot(`it was made with other settings: ${told.join(", ")}`);
}
