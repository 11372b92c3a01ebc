/** A tar archive of text files in memory, gzipped: POSIX.1-1988 ustar, as tar(1) reads it. */
import { gzipSync } from "node:zlib";
import type { Fact } from "./facts.ts";

const BLOCK = 512;

/** All files lie in `folder`. `at`: seconds since the epoch. */
export function archive(folder: string, facts: readonly Fact[], at: number): Buffer {
  const parts = facts.flatMap(({ name, text }) => {
    const bytes = Buffer.from(text);
    const rest = Buffer.alloc((BLOCK - (bytes.length % BLOCK)) % BLOCK);
    return [header(`${folder}/${name}`, bytes.length, at), bytes, rest];
  });
  return gzipSync(Buffer.concat([...parts, Buffer.alloc(2 * BLOCK)]));
}

/** Offsets and widths as in tar.h: name, mode, uid, gid, size, mtime, chksum, typeflag, magic. Numbers are octal text. */
function header(name: string, size: number, at: number): Buffer {
  const block = Buffer.alloc(BLOCK);
  if (Buffer.byteLength(name) > 100)
    throw new RangeError(`${name} is longer than a name in an archive may be`);
  const octal = (value: number, width: number) => `${value.toString(8).padStart(width - 1, "0")}\0`;
  block.write(name, 0);
  block.write(octal(0o600, 8), 100);
  block.write(octal(0, 8), 108);
  block.write(octal(0, 8), 116);
  block.write(octal(size, 12), 124);
  block.write(octal(Math.floor(at), 12), 136);
  // The checksum field counts as blanks.
  block.write("        ", 148);
  block.write("0", 156);
  block.write("ustar\u000000", 257);
  const sum = block.reduce((total, byte) => total + byte, 0);
  block.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148);
  return block;
}
