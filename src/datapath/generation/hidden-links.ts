/**
 * Attached links whose pins are hidden, because another bpffs was mounted over them. A start that did not find them would
 * attach a second set, and each connection would be decided twice.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { ERRNO, KernelError } from "../../kernel/error.ts";
import { CgroupLink, type Hook } from "../../kernel/link.ts";
import { pinnedAt } from "../../kernel/pinned.ts";
import { isAlive } from "./generations.ts";
import { isOwnLink } from "./pin-ownership.ts";
import { HOOK_ORDER, linkPin } from "./pins.ts";

/** The ids of attached links by hook. They are valid for one boot. */
export type LinkIds = Partial<Record<Hook, number>>;

/**
 * Pins below `bpffs` the links in `known` that are still attached and have no pin there. Returns one line for each. The
 * folder must be on a bpffs. Throws KernelError and the file system's error.
 */
export function pinHiddenLinks(bpffs: string, known: LinkIds): string[] {
  const done: string[] = [];
  for (const hook of HOOK_ORDER) {
    const path = linkPin(bpffs, hook);
    const id = known[hook];
    // A link that is pinned there is handled by pin-repair.ts.
    if (id === undefined || pinnedAt(path)) continue;
    using link = openLink(id);
    if (!link || !isAlive(link.info()) || !isOwnLink(link, hook)) continue;
    mkdirSync(join(bpffs, "links"), { recursive: true });
    link.pin(path);
    done.push(`${hook} was attached and its link had no pin: pinned again as ${path}`);
  }
  return done;
}

/** Undefined when the link has ended. */
function openLink(id: number): CgroupLink | undefined {
  try {
    return CgroupLink.fromId(id);
  } catch (error) {
    if (error instanceof KernelError && error.errno === ERRNO.ENOENT) return undefined;
    throw error;
  }
}
