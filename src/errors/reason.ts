/** What a thrown value says: its text and its code. */

/** The message of an Error; the text of anything else that was thrown. */
export function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** The code of a system error ("ENOENT"); undefined when the thrown value carries none. */
export function codeOf(error: unknown): string | undefined {
  return typeof error === "object" && error !== null && "code" in error ? String(error.code) : undefined;
}

/** The code of a system error, else the text of whatever was thrown: for messages that need only the short form. */
export function codeOrReason(error: unknown): string {
  return codeOf(error) ?? String(error);
}

/** The predicate of a file in a message: `does not exist`, or `can't be read (EACCES)`. */
export function faultOfFile(error: unknown): string {
  return isMissing(error) ? "does not exist" : `can't be read (${codeOrReason(error)})`;
}

/** Whether the file system says that the path does not exist. */
export function isMissing(error: unknown): boolean {
  return codeOf(error) === "ENOENT";
}
