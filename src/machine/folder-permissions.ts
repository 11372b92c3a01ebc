/** Finds folders that users other than root can write. */
import { type Stats, statSync } from "node:fs";

const WRITABLE_BY_OTHERS = 0o022;

export interface UnsafeMode {
  /** A main clause that names the folder. */
  what: string;
  /** A command. */
  cure: string;
}

/** Undefined when only root or the user of this process can write there, and for a path that is missing or not a folder. */
export function unsafeModeOf(path: string): UnsafeMode | undefined {
  const stat = statSync(path, { throwIfNoEntry: false });
  return stat?.isDirectory() ? unsafeMode(path, stat) : undefined;
}

/** The same, from the result of stat(2). */
export function unsafeMode(path: string, { uid, mode }: Pick<Stats, "uid" | "mode">): UnsafeMode | undefined {
  const owned = uid === 0 || uid === process.geteuid?.();
  const open = (mode & WRITABLE_BY_OTHERS) !== 0;
  if (owned && !open) return undefined;
  const what = [
    ...(owned ? [] : [`belongs to user ${uid}`]),
    ...(open ? [`may be written by others (mode ${(mode & 0o7777).toString(8)})`] : []),
  ];
  const cure = [...(owned ? [] : [`chown root: ${path}`]), ...(open ? [`chmod go-w ${path}`] : [])];
  return { what: `${path} ${what.join(" and ")}`, cure: cure.join(" && ") };
}
