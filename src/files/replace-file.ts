/** Atomic replacement of a file: a reader, and a process killed at any moment, finds the old content or the new one. */
import {
  closeSync,
  fchmodSync,
  fchownSync,
  fsyncSync,
  mkdirSync,
  openSync,
  renameSync,
  rmSync,
  writeSync,
} from "node:fs";
import { dirname } from "node:path";

export interface Replacement {
  /** Permission bits of the new file. */
  mode: number;
  /** Owner of the new file; this process's own when left out. */
  owner?: { uid: number; gid: number };
  /** Creates missing folders with this mode; without it a missing folder is an error. */
  folderMode?: number;
  /**
   * Writes the content to the disk before the rename, so that a power loss can't leave an empty file under the name.
   * Leave it out for what does not outlive a reboot, where waiting for a disk costs more than it gives.
   */
  durable?: boolean;
  /** Called after the first half of the content, before the rename, and after it: where tests end the process. */
  onHalf?(): void;
  onWritten?(): void;
  onRenamed?(): void;
}

/** The name under which the new content is written first. */
export function unfinishedPath(path: string): string {
  return `${path}.new`;
}

/**
 * Replaces `path` by `content` by way of a new file beside it and rename(2). Throws what the file system says; the file is
 * then as it was, and nothing is left beside it. One writer at a time: the name of the new file is always the same.
 */
export function replaceFile(path: string, content: string | Uint8Array, how: Replacement): void {
  const fresh = unfinishedPath(path);
  if (how.folderMode !== undefined) mkdirSync(dirname(path), { recursive: true, mode: how.folderMode });
  rmSync(fresh, { recursive: true, force: true });
  const fd = openSync(fresh, "wx", 0o600);
  try {
    writeHalves(fd, typeof content === "string" ? Buffer.from(content) : content, how.onHalf);
    if (how.owner) fchownSync(fd, how.owner.uid, how.owner.gid);
    // After the owner: chown clears the set-id bits.
    fchmodSync(fd, how.mode);
    if (how.durable) fsyncSync(fd);
    how.onWritten?.();
    renameSync(fresh, path);
  } catch (error) {
    rmSync(fresh, { force: true });
    throw error;
  } finally {
    closeSync(fd);
  }
  how.onRenamed?.();
}

/** Waits until a file, or the names in a folder, are on the disk. */
export function syncPath(path: string): void {
  const fd = openSync(path, "r");
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

function writeHalves(fd: number, bytes: Uint8Array, onHalf: (() => void) | undefined): void {
  const half = bytes.length >> 1;
  for (let at = 0; at < bytes.length; ) {
    // A full disk takes a part first and reports ENOSPC only at the next write.
    at += writeSync(fd, bytes, at, (at < half ? half : bytes.length) - at);
    if (at === half) onHalf?.();
  }
}
