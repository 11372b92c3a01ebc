/** Reads files that an operator names. A pipe, a device or a huge file must not block or exhaust the process. */
import { closeSync, constants, fstatSync, openSync, readSync, type Stats, statSync } from "node:fs";

/** Largest file of the configuration (settings, certificates, tokens), bytes. */
export const MEBIBYTE = 1 << 20;

/** Character device 1:3. */
const NULL_DEVICE = 0x103;

/** The path is not a readable regular file. The message says why: "it is a named pipe, ...". */
export class NotReadable extends Error {
  override readonly name = "NotReadable";

  override toString(): string {
    return this.message;
  }
}

/**
 * The bytes of the regular file `path`, at most `largest`. Never blocks on a pipe. Throws NotReadable for a larger file or
 * another kind of file, and the file system's error.
 */
export function readRegularFile(path: string, largest = MEBIBYTE): Buffer {
  // A pipe without a writer would make a blocking open() wait.
  const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY);
  try {
    const stat = fstatSync(fd);
    requireRegular(stat);
    if (stat.size > largest) throw new NotReadable(`it is larger than ${sizeText(largest)}`);
    // Files of /proc have no size, and others may grow: reading one more byte finds the end.
    let bytes = Buffer.allocUnsafe(Math.max(stat.size, 4095) + 1);
    let length = 0;
    for (;;) {
      const count = readSync(fd, bytes, length, bytes.length - length, null);
      length += count;
      if (length > largest) throw new NotReadable(`it is larger than ${sizeText(largest)}`);
      if (count === 0) return bytes.subarray(0, length);
      if (length === bytes.length) bytes = Buffer.concat([bytes, Buffer.allocUnsafe(bytes.length)]);
    }
  } finally {
    closeSync(fd);
  }
}

/** The same as UTF-8 text. */
export function readTextFile(path: string, largest = MEBIBYTE): string {
  return readRegularFile(path, largest).toString("utf8");
}

/** Throws NotReadable unless `path` is a regular file, and the file system's error when stat(2) fails. */
export function requireRegularFile(path: string): void {
  requireRegular(statSync(path));
}

function requireRegular(stat: Stats): void {
  // /dev/null stands for an empty file.
  if (stat.isCharacterDevice() && stat.rdev === NULL_DEVICE) return;
  if (!stat.isFile()) throw new NotReadable(`it is ${kindOf(stat)}, not a regular file`);
}

function kindOf(stat: Stats): string {
  if (stat.isDirectory()) return "a folder";
  if (stat.isFIFO()) return "a named pipe";
  if (stat.isSocket()) return "a socket";
  return "a device";
}

function sizeText(bytes: number): string {
  return bytes >= MEBIBYTE ? `${bytes / MEBIBYTE} MiB` : `${bytes / 1024} KiB`;
}
