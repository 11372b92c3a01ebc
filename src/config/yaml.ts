/**
 * Reads YAML and keeps texts as written: the core schema turns `5e9` into 5000000000, `010` into 10 and `1.10` into 1.1,
 * which is right for a port and wrong for a name.
 */
import { type DocumentOptions, parseDocument, type SchemaOptions } from "yaml";
import type { Json } from "../istiod/node.ts";

/** One value in both readings. Maps are Map objects in the file's order. */
export interface Written {
  /** By YAML's core schema: texts, numbers, true, false and null. */
  typed: unknown;
  /** The same shape; each scalar is the text as written, without its quotes. */
  text: unknown;
}

type Options = DocumentOptions & SchemaOptions;
/** Ignores a %YAML line in the file. */
const CORE: Options = { version: "1.2", schema: "core" };
const FAILSAFE: Options = { version: "1.2", schema: "failsafe" };

/** Throws the parser's Error, whose first line names the place. */
export function readYaml(source: string): Written {
  const [typed, text] = [CORE, FAILSAFE].map((options): unknown => {
    const document = parseDocument(source, options);
    if (document.errors[0]) throw document.errors[0];
    return document.toJS({ mapAsMap: true });
  });
  return { typed, text };
}

/** The entries of a map by their keys as written; undefined for a value that is not a map. */
export function entriesOf({ typed, text }: Written): [key: string, value: Written][] | undefined {
  if (!(typed instanceof Map) || !(text instanceof Map)) return undefined;
  const values = [...typed.values()];
  return [...text].map(([key, each], i) => [String(key), { typed: values[i], text: each }]);
}

/** Every scalar as written: texts, arrays and objects of texts. */
export function textsOf({ text }: Written): Json {
  if (text instanceof Map)
    return Object.fromEntries(
      [...text].map(([key, each]) => [String(key), textsOf({ typed: each, text: each })]),
    );
  if (Array.isArray(text)) return text.map((each) => textsOf({ typed: each, text: each }));
  return String(text ?? "");
}

/**
 * Converts scalars to numbers and booleans. A scalar under one of the keys `texts` stays a text, and so does a number that
 * is not in its normal form (010, 1.10, 5e9), because it may be a name.
 */
export function jsonOf(written: Written, texts: ReadonlySet<string> = new Set(), isText = false): Json {
  const { typed, text } = written;
  const entries = entriesOf(written);
  if (entries)
    return Object.fromEntries(entries.map(([key, each]) => [key, jsonOf(each, texts, texts.has(key))]));
  if (Array.isArray(typed) && Array.isArray(text))
    return typed.map((each, i) => jsonOf({ typed: each, text: text[i] }, texts, isText));
  if (typed === null || typed === undefined) return null;
  if (typeof typed === "boolean") return isText ? String(text) : typed;
  if (typeof typed === "number") return isText || String(typed) !== text ? String(text) : typed;
  return String(typed);
}
