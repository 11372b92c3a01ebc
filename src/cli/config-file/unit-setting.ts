/** Edits the key `unit` in the text of the configuration file. Comments and other keys stay. */
import { type Document, isMap, isScalar, isSeq, parseDocument } from "yaml";
import { ConfigError } from "../../config/config-error.ts";
import { SETTINGS } from "../../config/settings.ts";
import { fileValues, readFile } from "../../config/sources.ts";
import { unitName } from "../../datapath/tables/unit.ts";

export type Change = "add" | "remove";

export interface Edited {
  text: string;
  /** Units that were added or removed. */
  changed: string[];
  /** Units that needed no change. */
  already: string[];
  /** The new list; undefined when there is no list, because only `cgroup` is set. */
  units: string[] | undefined;
  /** Whether the whole machine is enrolled, so that a list has no effect. The text is unchanged. */
  everything: boolean;
}

/**
 * Adds units (full names) to the list, or removes them. Removing the last unit leaves an empty list, because a missing
 * list enrols the whole machine. With `only`, a list replaces the enrolment of the whole machine. Throws ConfigError
 * when the text of the file `path` is not a configuration.
 */
export function editUnits(
  path: string,
  text: string,
  change: Change,
  names: readonly string[],
  only = false,
): Edited {
  const document = parseDocument(text);
  const { unit, cgroup } = contentOf(path, text);
  const listed = unit === undefined || unit === null ? undefined : partsOf(unit).map(wholeName);
  const cgroups = cgroup === undefined || cgroup === null ? undefined : partsOf(cgroup);
  const everything = cgroups === undefined ? listed === undefined : cgroups.includes("/");
  if (everything && !only) return { text, changed: [], already: [...names], units: listed, everything: true };
  const before = everything ? [] : (listed ?? []);
  const changed = names.filter((name) => before.includes(name) === (change === "remove"));
  const already = names.filter((name) => !changed.includes(name));
  if (changed.length === 0) return { text, changed, already, units: listed, everything: false };
  const units = change === "add" ? [...before, ...changed] : before.filter((name) => !changed.includes(name));
  if (everything && document.has("cgroup")) document.delete("cgroup");
  write(document, change, changed, units, everything);
  return { text: document.toString({ lineWidth: 0 }), changed, already, units, everything: false };
}

/** Names as written: 010 is a name, too. */
function contentOf(path: string, text: string): Record<string, unknown> {
  try {
    return fileValues(readFile({ path, required: true, text }));
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    throw new ConfigError(error.message, "kmesh config check shows the faults.");
  }
}

function write(
  document: Document.Parsed,
  change: Change,
  changed: readonly string[],
  units: readonly string[],
  anew: boolean,
): void {
  const list = document.get("unit", true) as unknown;
  // Each item is one name. Other forms are rewritten and lose their comments.
  const plain =
    isSeq(list) &&
    list.items.every((item) => isScalar(item) && typeof item.value === "string" && !item.value.includes(","));
  if (!plain || anew) set(document, units);
  else if (change === "add") for (const name of changed) list.add(document.createNode(name));
  else {
    list.items = list.items.filter(
      (item) => !(isScalar(item) && changed.includes(wholeName(item.source ?? String(item.value)))),
    );
    // An empty block would not be a list.
    if (list.items.length === 0) list.flow = true;
  }
}

function set(document: Document.Parsed, units: readonly string[]): void {
  const value = document.createNode(units);
  const { contents } = document;
  // An empty file has no map yet.
  if (!isMap(contents) || document.has("unit")) document.set("unit", value);
  else {
    const key = document.createNode("unit");
    key.commentBefore = ` ${SETTINGS.unit.about}`;
    document.add(document.createPair(key, value));
  }
}

/** Splits a value like the configuration does. */
function partsOf(value: unknown): string[] {
  return (Array.isArray(value) ? value : [value])
    .flatMap((part) => String(part).split(","))
    .map((part) => part.trim())
    .filter((part) => part !== "");
}

/** The full name of a unit. An invalid name is returned unchanged; the agent reports it. */
function wholeName(text: string): string {
  try {
    return unitName(text);
  } catch {
    return text;
  }
}
