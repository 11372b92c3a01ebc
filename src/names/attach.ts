/** Attaches the programs to interfaces, and keeps them attached. */
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { unpin } from "../kernel/bpffs.ts";
import { ERRNO, KernelError } from "../kernel/error.ts";
import { attachFilter, detachFilter, filters, replaceFilter, TcxLink } from "../kernel/net/egress.ts";
import { type Interface, interfaces } from "../kernel/net/interfaces.ts";
import { BpfProgram } from "../kernel/object.ts";
import type { Coverage } from "./status.ts";

/** The programs of bpf/names.bpf.c. */
export const PROGRAMS = ["names_ethernet", "names_loopback", "names_bare", "names_explain"] as const;
export type ProgramName = (typeof PROGRAMS)[number];
export type NamePrograms = ReadonlyMap<ProgramName, BpfProgram>;

const PROGRAM_OF: Readonly<Record<Interface["link"], ProgramName | undefined>> = {
  ethernet: "names_ethernet",
  loopback: "names_loopback",
  bare: "names_bare",
  other: undefined,
};

/**
 * Links by interface index, which the agent holds open. A link whose pin was removed or hidden by a mount stays attached and
 * is pinned again.
 */
export type HeldLinks = Map<number, TcxLink>;

/**
 * Attaches to every interface that sends by itself. Interfaces with these programs are not touched; those with older
 * programs are updated without a gap. Removes links of vanished interfaces, and links and filters of interfaces that joined
 * a bridge or bond. Throws KernelError when the interfaces can't be listed.
 */
export function attachEverywhere(links: string, programs: NamePrograms, held: HeldLinks): Coverage[] {
  const all = interfaces();
  const found = all.filter(({ enslaved }) => !enslaved);
  const coverage = found.map((one): Coverage => {
    const { name, index } = one;
    const which = PROGRAM_OF[one.link];
    const program = which && programs.get(which);
    if (!program) return { name, index, way: "none" };
    try {
      return { name, index, way: attach(join(links, String(index)), index, program, held) };
    } catch (error) {
      // The interface has vanished meanwhile.
      if (error instanceof KernelError && error.errno === ERRNO.ENODEV) return { name, index, way: "none" };
      return { name, index, way: "none", error: error instanceof Error ? error.message : String(error) };
    }
  });
  const ports = all.filter((one) => one.enslaved);
  for (const { name, index } of ports) {
    try {
      removeFilter(index);
    } catch (error) {
      if (error instanceof KernelError && error.errno === ERRNO.ENODEV) continue;
      coverage.push({
        name,
        index,
        way: "none",
        error: error instanceof Error ? error.message : String(error),
      });
    }
  }
  const enslaved = new Set(ports.map(({ index }) => String(index)));
  for (const name of readdirSync(links))
    if (enslaved.has(name) || isGone(join(links, name))) unpin(join(links, name));
  for (const [index, link] of held) {
    if (!enslaved.has(String(index)) && link.info().ifindex === index) continue;
    link.close();
    held.delete(index);
  }
  return coverage;
}

/**
 * Whether the link's interface is gone, by the link itself: a list of interfaces may lack one that is being changed. False
 * for an object that is not a link of an interface.
 */
function isGone(pin: string): boolean {
  try {
    using link = TcxLink.fromPin(pin);
    return link.info().ifindex === 0;
  } catch (error) {
    if (error instanceof KernelError) return false;
    throw error;
  }
}

/** Detaches the programs. Throws KernelError. */
export function detachEverywhere(links: string): void {
  if (existsSync(links)) for (const name of readdirSync(links)) unpin(join(links, name));
  // Also from members of a bridge or bond: a filter stays with its interface.
  for (const { index } of interfaces()) removeFilter(index);
}

/** Before 6.6: removes kmesh's filter from an interface. */
function removeFilter(index: number): void {
  for (const { priority, programId } of filters(index)) if (isOurs(programId)) detachFilter(index, priority);
}

function attach(pin: string, index: number, program: BpfProgram, held: HeldLinks): "tcx" | "clsact" {
  const link = openLink(pin, index, held) ?? TcxLink.attach(program, index);
  if (link) {
    if (held.get(index) !== link) held.get(index)?.close();
    held.set(index, link);
    if (link.info().programId !== program.info.id) link.update(program);
    if (!existsSync(pin)) link.pin(pin);
    return "tcx";
  }
  const attached = filters(index).find(({ programId }) => isOurs(programId));
  if (!attached) attachFilter(program, index);
  else if (attached.programId !== program.info.id) replaceFilter(program, index, attached.priority);
  return "clsact";
}

/** The interface's link, from its pin or the held one. Removes a pin of another interface's link at its path. */
function openLink(pin: string, index: number, held: HeldLinks): TcxLink | undefined {
  const kept = held.get(index);
  if (kept?.info().ifindex === index) return kept;
  if (!existsSync(pin)) return undefined;
  const link = TcxLink.fromPin(pin);
  if (link.info().ifindex === index) return link;
  link.close();
  unpin(pin);
  return undefined;
}

function isOurs(programId: number): boolean {
  if (programId === 0) return false;
  using program = BpfProgram.fromId(programId);
  return program.info.name.startsWith("names_");
}
