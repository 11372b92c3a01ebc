/** Reads a file of the state folder that an earlier agent wrote. */

import { isMissing } from "../errors/reason.ts";
import { NotReadable, readRegularFile } from "./read-file.ts";

/**
 * The content of the file, at most `largest` bytes; undefined when it is missing. Throws Bad for a larger file or another
 * kind of file, and the file system's error.
 */
export function readWhole(
  path: string,
  largest: number,
  Bad: new (reason: string) => Error,
): Buffer | undefined {
  try {
    return readRegularFile(path, largest);
  } catch (error) {
    if (isMissing(error)) return undefined;
    if (error instanceof NotReadable) throw new Bad(error.message);
    throw error;
  }
}
