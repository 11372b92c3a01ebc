/** Removes what is pinned. Only `kmesh down` and `kmesh uninstall` do. */
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { listPins, unpin } from "../kernel/bpffs.ts";
import { ownLink } from "./generation/pin-ownership.ts";
import { ASIDE, HOOK_ORDER, linkPin } from "./generation/pins.ts";

/**
 * Detaches and removes everything below `bpffs`, of all versions, except foreign objects in aside/. Only `kmesh down` calls
 * it. Removes links first, those that decide before those that read. Throws KernelError before any change when the owner
 * of a link can't be determined.
 */
export function removePinned(bpffs: string): { removed: string[] } {
  if (!existsSync(bpffs)) return { removed: [] };
  const removed = ownPins(bpffs);
  // Foreign objects among them lose their pins, too.
  const aside = linksAside(bpffs);
  const links = [...linkPins(bpffs), ...aside].flatMap((path) => ownLink(path) ?? []);
  for (const link of links) {
    link.detach();
    link.close();
  }
  for (const path of aside) unpin(path);
  for (const name of readdirSync(bpffs)) if (name !== ASIDE) unpin(join(bpffs, name));
  if (listPins(bpffs).length === 0) unpin(bpffs);
  return { removed };
}

/** The paths that `removePinned` removes, without foreign objects in aside/. Throws KernelError. */
export function ownPins(bpffs: string): string[] {
  const own = linksAside(bpffs);
  const others = listPins(join(bpffs, ASIDE)).filter((path) => !own.includes(path));
  return listPins(bpffs).filter((path) => !others.includes(path));
}

/** kmesh's links in aside/, such as renamed links that were moved there. */
function linksAside(bpffs: string): string[] {
  return listPins(join(bpffs, ASIDE)).filter((path) => {
    using link = ownLink(path);
    return link !== undefined;
  });
}

/** Pinned links of all versions, first those of hooks that this version does not know. */
function linkPins(bpffs: string): string[] {
  const known = [...HOOK_ORDER].reverse().map((hook) => linkPin(bpffs, hook));
  const all = listPins(join(bpffs, "links"));
  return [...all.filter((path) => !known.includes(path)), ...known.filter((path) => all.includes(path))];
}
