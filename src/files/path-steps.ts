/** The folders and links that the kernel follows to a file. */
import { lstatSync, readlinkSync, type Stats } from "node:fs";
import { dirname, join } from "node:path";

export interface PathStep {
  /** Absolute; no folder in it is a link. */
  path: string;
  /** The status of the step itself (of a link, not its target); undefined when it is missing or not accessible. */
  stat: Stats | undefined;
}

/** The kernel's limit of links (ELOOP). */
const MOST_LINKS = 40;

/**
 * Every folder, link and file on the way to the absolute `path`, from / to the target. After a missing step, the remaining
 * names follow as written.
 */
export function pathSteps(path: string): PathStep[] {
  const steps: PathStep[] = [{ path: "/", stat: lookAt("/") }];
  const names = path.split("/");
  let at = "/";
  for (let links = 0; ; ) {
    const name = names.shift();
    if (name === undefined) return steps;
    if (name === "" || name === ".") continue;
    if (name === "..") {
      at = dirname(at);
      continue;
    }
    const next = join(at, name);
    const stat = lookAt(next);
    steps.push({ path: next, stat });
    const target = stat?.isSymbolicLink() && links++ < MOST_LINKS ? readLink(next) : undefined;
    if (target === undefined) at = next;
    else {
      names.unshift(...target.split("/"));
      if (target.startsWith("/")) at = "/";
    }
  }
}

function lookAt(path: string): Stats | undefined {
  try {
    return lstatSync(path, { throwIfNoEntry: false });
  } catch {
    return undefined;
  }
}

function readLink(path: string): string | undefined {
  try {
    return readlinkSync(path);
  } catch {
    return undefined;
  }
}
