/**
 * Links of ours that run without a pin below our folder: a bpffs mounted over another hides its pins, and the hooks stay
 * attached. A start that did not know of them would attach a second set, and each connection would be decided twice.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { ERRNO, KernelError } from "../../kernel/error.ts";
import { CgroupLink, type Hook } from "../../kernel/link.ts";
import { pinnedAt } from "../../kernel/pinned.ts";
import { isAlive } from "./generations.ts";
import { isOwnLink } from "./pin-ownership.ts";
import { HOOK_ORDER, linkPin } from "./pins.ts";

/** The kernel's numbers of attached links, by hook. They hold for one boot. */
export type LinkIds = Partial<Record<Hook, number>>;

/**
 * Pins below `bpffs` the links in `known` that still run a program of kmesh's and have no pin there. Gives a line for each.
 * The folder has to be on a bpffs. Throws KernelError, and what the file system says.
 */
export function pinHiddenLinks(bpffs: string, known: LinkIds): string[] {
  const done: string[] = [];
  for (const hook of HOOK_ORDER) {
    const path = linkPin(bpffs, hook);
    const id = known[hook];
    // Any link that lies there has its own repair (pin-repair.ts).
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
