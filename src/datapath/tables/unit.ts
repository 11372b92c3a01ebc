/** systemd units by the names of their cgroups below slices (find_enrolment of bpf/include/enrolment.h). */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import * as layout from "./layout.gen.ts";

/** The longest distinct name, bytes; systemd allows 255. */
export const LONGEST_UNIT = layout.unit_name.size - 2;

/** Unit types with processes. */
const KINDS = ["service", "scope", "slice", "socket", "mount", "swap"] as const;

/** The text is not the name of a unit that can be enrolled. The message is a clause without a full stop. */
export class NoUnit extends Error {}

/** A unit's full name: `nginx` is nginx.service. Throws NoUnit. */
export function unitName(text: string): string {
  const kind = /\.([a-z]+)$/.exec(text)?.[1];
  const known = kind !== undefined && [...KINDS, ...OTHER_KINDS].includes(kind);
  const name = known ? text : `${text}.service`;
  if (!/^[A-Za-z0-9:_.\\@-]+$/.test(text)) throw new NoUnit(`"${text}" is not the name of a unit`);
  if (name.length > LONGEST_UNIT)
    throw new NoUnit(`"${name}" has ${name.length} characters, ${LONGEST_UNIT} at most can be told apart`);
  if (/^[^@]*@\.[a-z]+$/.test(name))
    throw new NoUnit(`"${name}" is a template, which has no processes: name an instance of it`);
  if (known && OTHER_KINDS.includes(kind))
    throw new NoUnit(`"${name}" has no processes: a ${kind} only starts others`);
  return name;
}

const OTHER_KINDS: readonly string[] = ["target", "timer", "path", "device", "automount", "snapshot"];

/** The key of `units`. */
export function unitKey(unit: string): Uint8Array {
  const key = new Uint8Array(layout.unit_name.size);
  key.set(new TextEncoder().encode(unit));
  return key;
}

/** The name in a key of `units`. */
export function unitOfKey(key: Uint8Array): string {
  const end = key.indexOf(0);
  return new TextDecoder().decode(end < 0 ? key : key.subarray(0, end));
}

export interface UnitState {
  unit: string;
  /** The folder of its cgroup; absent while it does not run. */
  cgroup?: string;
  /** Whether it has processes now. */
  populated: boolean;
}

/** The present cgroups of the units, below the cgroup2 folder `root`. */
export function findUnits(root: string, units: readonly string[]): UnitState[] {
  const found = new Map<string, string>();
  if (units.length > 0) collect(root, new Set(units), found);
  return units.map((unit) => {
    const cgroup = found.get(unit);
    return cgroup === undefined
      ? { unit, populated: false }
      : { unit, cgroup, populated: isPopulated(cgroup) };
  });
}

function collect(folder: string, wanted: ReadonlySet<string>, found: Map<string, string>): void {
  for (const entry of entriesOf(folder)) {
    // systemd's prefix for names that could collide with the kernel's files.
    const unit = entry.replace(/^_/, "");
    const path = join(folder, entry);
    if (wanted.has(unit)) found.set(unit, path);
    if (unit.endsWith(".slice") && unit.length <= LONGEST_UNIT) collect(path, wanted, found);
  }
}

/** The folders in a cgroup; [] if it has just been removed. */
function entriesOf(folder: string): string[] {
  try {
    return readdirSync(folder, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map((entry) => entry.name);
  } catch {
    return [];
  }
}

function isPopulated(folder: string): boolean {
  try {
    return /^populated 1$/m.test(readFileSync(join(folder, "cgroup.events"), "utf8"));
  } catch {
    return false;
  }
}
