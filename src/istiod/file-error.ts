import { codeOrReason } from "../errors/reason.ts";
/** A file that the operator configured can't be used. The message names the file and the next step. */
export class FileError extends Error {
  constructor(message: string) {
    super(message);
    this.name = "FileError";
  }

  static unreadable(file: string, what: string, next: string, error: unknown): FileError {
    const code = codeOrReason(error);
    return new FileError(`can't read the ${what} ${file} (${code}): ${next}`);
  }
}
