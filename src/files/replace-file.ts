/** Replaces a file atomically: readers find the old content or the new one, also after a kill at any moment. */
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
  /** Owner of the new file; by default the process's user. */
  owner?: { uid: number; gid: number };
  /** Creates missing folders with this mode; without it a missing folder is an error. */
  folderMode?: number;
  /**
   * Syncs the content to the disk before the rename, so that a power loss can't leave an empty file. Not needed for files
   * that do not outlive a reboot.
   */
  durable?: boolean;
  /** Called after the first half of the content, before the rename, and after it, so that tests can end the process there. */
  onHalf?(): void;
  onWritten?(): void;
  onRenamed?(): void;
}

/** The temporary name of the new content. */
export function unfinishedPath(path: string): string {
  return `${path}.new`;
}

/**
 * Replaces `path` by `content`: writes a new file beside it and renames it. Throws the file system's error; the file is
 * then unchanged and the new file removed. Only one writer at a time, because the temporary name is fixed.
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

/** Syncs a file, or the names in a folder, to the disk. */
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
    // A full disk may accept a part and report ENOSPC at the next write.
    at += writeSync(fd, bytes, at, (at < half ? half : bytes.length) - at);
    if (at === half) onHalf?.();
  }
}
