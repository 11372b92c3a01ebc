/** Reads documents of other machines, from files of `kmesh topology --output json` and from URLs. */
import { openAsBlob } from "node:fs";
import { reasonOf } from "../errors/reason.ts";
import type { EdgesDocument } from "../telemetry/model.ts";
import { PAGE_FOLDER } from "./page-files.ts";

/** Most bytes of a document. */
const MOST = 64 << 20;
/** Time limit for a URL, milliseconds. */
const PATIENCE = 10_000;

/** Reads a file or an http(s) URL, also the URL of another machine's page. Rejects with a sentence that names the source. */
export async function readDocument(source: string, window: number): Promise<EdgesDocument> {
  try {
    const isUrl = /^https?:\/\//.test(source);
    return parseDocument(isUrl ? await fetchText(source, window) : await readText(source));
  } catch (error) {
    // The part after the # is a secret.
    throw new Error(`${source.split("#")[0]}: ${reasonOf(error)}`, { cause: error });
  }
}

async function readText(path: string): Promise<string> {
  const blob = await openAsBlob(path);
  if (blob.size > MOST) throw new Error(`it has more than ${MOST >> 20} MB`);
  return blob.text();
}

async function fetchText(source: string, window: number): Promise<string> {
  const url = new URL(source);
  const token = url.hash.slice(1);
  url.hash = "";
  const isPage = url.pathname === PAGE_FOLDER;
  const response = await fetch(isPage ? new URL(`edges?window=${window}`, url) : url, {
    headers: isPage && token !== "" ? { authorization: `Bearer ${token}` } : {},
    signal: AbortSignal.timeout(PATIENCE),
  });
  const parts: Uint8Array[] = [];
  let size = 0;
  for await (const part of response.body ?? []) {
    size += part.length;
    if (size > MOST) throw new Error(`it has more than ${MOST >> 20} MB`);
    parts.push(part);
  }
  if (!response.ok) throw new Error(`the server answered with status ${response.status}`);
  return Buffer.concat(parts).toString("utf8");
}

/** Throws when the text is not a document of a known version. */
export function parseDocument(text: string): EdgesDocument {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new Error("it is not JSON: write the file with kmesh topology --output json");
  }
  const { version, nodes, edges, problems, machine, limits } = (value ?? {}) as Partial<EdgesDocument>;
  const isWhole =
    [nodes, edges, problems].every(Array.isArray) &&
    Array.isArray(machine?.addresses) &&
    Array.isArray(limits?.off);
  if (!isWhole)
    throw new Error("it is not a map of kmesh: write the file with kmesh topology --output json --idle");
  if (version !== 1) throw new Error(`it has version ${version} of the map; this kmesh reads version 1`);
  return value as EdgesDocument;
}
