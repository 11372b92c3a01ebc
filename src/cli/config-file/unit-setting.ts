/** The key `unit` in the text of the configuration file. Comments, and what else stands there, stay. */
import { type Document, isMap, isScalar, isSeq, parseDocument } from "yaml";
import { ConfigError } from "../../config/config-error.ts";
import { SETTINGS } from "../../config/settings.ts";
import { fileValues, readFile } from "../../config/sources.ts";
import { unitName } from "../../datapath/tables/unit.ts";

export type Change = "add" | "remove";

export interface Edited {
  text: string;
  /** The list has what it should have from now on: these were added, or taken out. */
  changed: string[];
  /** Those with which nothing had to be done. */
  already: string[];
  /** The list afterwards; undefined when there is none, since nothing is said but by `cgroup`. */
  units: string[] | undefined;
  /** Whether all of the machine is enrolled, so that no list matters. The text is as it was. */
  everything: boolean;
}

/**
 * Adds units (whole names) to the list, or takes them out; the last one leaves an empty list, as no list at all would
 * enrol the whole machine. With `only`, where the whole machine is enrolled, a list begins. Throws ConfigError when the
 * text of the file `path` is no configuration.
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

/** Names as they are written: 010 is a name, too. */
function contentOf(path: string, text: string): Record<string, unknown> {
  try {
    return fileValues(readFile({ path, required: true, text }));
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    throw new ConfigError(error.message, "kmesh config check tells what is wrong.");
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
  // One name an item: else it is written anew, without comments of its own.
  const plain =
    isSeq(list) &&
    list.items.every((item) => isScalar(item) && typeof item.value === "string" && !item.value.includes(","));
  if (!plain || anew) set(document, units);
  else if (change === "add") for (const name of changed) list.add(document.createNode(name));
  else {
    list.items = list.items.filter(
      (item) => !(isScalar(item) && changed.includes(wholeName(item.source ?? String(item.value)))),
    );
    // What is left of a block would be no list.
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

/** As the configuration reads a list. */
function partsOf(value: unknown): string[] {
  return (Array.isArray(value) ? value : [value])
    .flatMap((part) => String(part).split(","))
    .map((part) => part.trim())
    .filter((part) => part !== "");
}

/** What is no unit's name is left as it is: the agent tells of it. */
function wholeName(text: string): string {
  try {
    return unitName(text);
  } catch {
    return text;
  }
}
