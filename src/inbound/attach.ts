/** Attaches the program to this network namespace. */
import { existsSync } from "node:fs";
import { KernelError } from "../kernel/error.ts";
import { NetnsLink, ownNetns } from "../kernel/net/netns-link.ts";
import type { BpfProgram } from "../kernel/object.ts";
import { pinLink } from "./pins.ts";

/**
 * A link of this namespace with this program, pinned at `path`. An existing link is updated to the program, or replaced if
 * its namespace differs or is gone. `held` is the link of the last call; the agent holds it, so that a removed pin detaches
 * nothing. The caller closes the result. Throws KernelError.
 */
export function attachInbound(path: string, program: BpfProgram, held: NetnsLink | undefined): NetnsLink {
  const netns = ownNetns();
  const link = usable(held, netns) ?? fromPin(path, netns) ?? NetnsLink.attach(program);
  try {
    if (link.info().programId !== program.info.id) link.update(program);
    if (fromPinIs(path, netns)) return link;
    pinLink(path, link);
    return link;
  } catch (error) {
    if (link !== held) link.close();
    throw error;
  } finally {
    if (held && held !== link) held.close();
  }
}

function usable(link: NetnsLink | undefined, netns: number): NetnsLink | undefined {
  return link?.info().netns === netns ? link : undefined;
}

function fromPin(path: string, netns: number): NetnsLink | undefined {
  if (!existsSync(path)) return undefined;
  let link: NetnsLink;
  try {
    link = NetnsLink.fromPin(path);
  } catch (error) {
    if (error instanceof KernelError) return undefined;
    throw error;
  }
  try {
    if (link.info().netns === netns) return link;
  } catch {
    // Replace a foreign object.
  }
  link.close();
  return undefined;
}

function fromPinIs(path: string, netns: number): boolean {
  const link = fromPin(path, netns);
  link?.close();
  return link !== undefined;
}
