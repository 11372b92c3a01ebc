/** A file of the state folder, as an agent before this one left it. */

import { isMissing } from "../errors/reason.ts";
import { NotReadable, readRegularFile } from "./read-file.ts";

/**
 * All that the file holds, `largest` bytes at most; undefined when there is none.
 * Throws Bad for what is no regular file or larger, and what the file system says.
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
