/** A file of the state folder, as an agent before this one left it. */

import { closeSync, constants, fstatSync, openSync, readFileSync } from "node:fs";
import { isMissing } from "../errors/reason.ts";

/**
 * All that the file holds; undefined when there is none. `largest` is told as it stands: `{ bytes: 65536, told: "64 kB" }`.
 * Throws Bad for what is no file or larger, and what the file system says.
 */
export function readWhole(
  path: string,
  largest: { bytes: number; told: string },
  Bad: new (reason: string) => Error,
): Buffer | undefined {
  let fd: number;
  try {
    // A pipe at this place must not keep the agent waiting.
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
  try {
    const stat = fstatSync(fd);
    if (!stat.isFile()) throw new Bad("it is no file");
    if (stat.size > largest.bytes) throw new Bad(`it is larger than ${largest.told}`);
    return readFileSync(fd);
  } finally {
    closeSync(fd);
  }
}
