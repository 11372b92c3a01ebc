/**
 * The layouts of the maps in keep/ (bpf/maps/keep.h), as text. Every version reads and writes these maps, two versions
 * at once during a hand-over, so their common parts must be equal.
 */
import { createHash } from "node:crypto";
import * as layout from "../tables/layout.gen.ts";
import { KEPT_MAPS } from "../tables/tables.ts";

interface Field {
  offset: number;
  size: number;
  count?: number;
  of?: string;
}
interface Struct {
  size: number;
  fields: Record<string, Field>;
}
interface Shape {
  type: string;
  keySize: number;
  valueSize: number;
  maxEntries: number;
  flags: number;
}

/**
 * One line for each map, each record, each field (size and offset in bytes), and each named number. Reserved space is not
 * a field.
 */
export function keptLayouts(): string[] {
  const maps: Record<string, Shape & { inner?: Shape; key?: string; value?: string }> = layout.maps;
  const lines = KEPT_MAPS.flatMap((name) => {
    const map = maps[name];
    if (!map) return [];
    const inner = map.inner ? `, of ${snapshotSettings(map.inner)}` : "";
    const records = [map.key, map.value].flatMap((record) => (record ? recordLines(record) : []));
    return [`map ${name}: ${snapshotSettings(map)}${inner}`, ...records];
  });
  const records = {
    ...layout.keep_records.fields,
    ...layout.traffic_records.fields,
    ...layout.recent_records.fields,
    ...layout.tunnel_records.fields,
  };
  const more = [...Object.keys(records), "reason"];
  return [...new Set([...lines, ...more.flatMap(recordLines)])];
}

/** A hash of all lines, 16 hex digits. */
export function keepId(): string {
  return createHash("sha256").update(keptLayouts().sort().join("\n")).digest("hex").slice(0, 16);
}

/**
 * The first conflict with another version's layouts; undefined without one. Parts that only one version knows are no
 * conflict if they are separate maps or lie in the other's reserved space.
 */
export function keptConflict(own: readonly string[], other: readonly string[]): string | undefined {
  const known = new Map(own.map((line) => [subjectOf(line), line]));
  const differing = other.filter((line) => (known.get(subjectOf(line)) ?? line) !== line);
  // A conflict of the record is more specific than one of its map.
  const differs = differing.find((line) => !line.startsWith("map ")) ?? differing[0];
  if (differs !== undefined) return `${known.get(subjectOf(differs))} here, ${differs} there`;
  const fields = own.map(placeOf).filter((place) => place !== undefined);
  for (const line of other) {
    const place = known.has(subjectOf(line)) ? undefined : placeOf(line);
    const under = place && fields.find((field) => overlap(field, place));
    if (under) return `${under.line} here, ${line} in its place there`;
  }
  return undefined;
}

function snapshotSettings({ type, keySize, valueSize, maxEntries, flags }: Shape): string {
  return `${type}, key ${keySize}, value ${valueSize}, ${maxEntries} at most, flags ${flags}`;
}

/** The lines of a record and of the records within it. */
function recordLines(name: string): string[] {
  const enums: Record<string, Record<string, number>> = layout.enums;
  const values = enums[name];
  if (values) return Object.entries(values).map(([member, value]) => `${member} = ${value}`);
  const structs = layout as unknown as Record<string, Struct>;
  const { size, fields } = structs[name] ?? { size: 0, fields: {} };
  const named = Object.entries(fields).filter(([field]) => !/^(reserved|zero)\d*$/.test(field));
  return [
    `${name}: ${size} bytes`,
    ...named.flatMap(([field, { offset, size: bytes, count = 1, of }]) => [
      `${name}.${field}: ${bytes}${count > 1 ? ` x ${count}` : ""} at ${offset}`,
      ...(of ? recordLines(of) : []),
    ]),
  ];
}

function subjectOf(line: string): string {
  return line.split(/: | = /, 1)[0] ?? line;
}

interface PlacedField {
  line: string;
  record: string;
  from: number;
  /** The offset after the field. */
  to: number;
}

/** The offset in a line about a field; undefined for other lines. */
function placeOf(line: string): PlacedField | undefined {
  const [, record = "", bytes, count = "1", at] =
    /^(\w+)\.\w+: (\d+)(?: x (\d+))? at (\d+)$/.exec(line) ?? [];
  if (bytes === undefined) return undefined;
  const from = Number(at);
  return { line, record, from, to: from + Number(bytes) * Number(count) };
}

function overlap(one: PlacedField, other: PlacedField): boolean {
  return one.record === other.record && one.from < other.to && other.from < one.to;
}
