/** What the page asks of its server. The token of the URL goes into a header, and out of the address bar. */
import type { EdgeHistory, EdgesDocument } from "../../telemetry/model.ts";

const KEY = "kmesh-token";

/** Milliseconds. */
const PATIENCE = 15_000;

const token = takeToken();

function takeToken(): string {
  const given = location.hash.slice(1);
  if (given === "") return sessionStorage.getItem(KEY) ?? "";
  history.replaceState(null, "", location.pathname);
  // For a reload: it lives as long as the tab. Later, because the browser waits for its storage.
  setTimeout(() => sessionStorage.setItem(KEY, given));
  return given;
}

/** `window` in seconds. Rejects with a sentence. */
export function fetchDocument(window: number): Promise<EdgesDocument> {
  return ask<EdgesDocument>(`edges?window=${window}`);
}

/** Rejects with a sentence, also when there is no history of this edge. */
export function fetchHistory(edge: string): Promise<EdgeHistory> {
  return ask<EdgeHistory>(`edges/history?edge=${encodeURIComponent(edge)}`);
}

async function ask<T>(path: string): Promise<T> {
  let response: Response;
  try {
    response = await fetch(path, {
      headers: token === "" ? {} : { authorization: `Bearer ${token}` },
      cache: "no-store",
      signal: AbortSignal.timeout(PATIENCE),
    });
  } catch {
    throw new Error(
      "kmesh topology --open does not answer. Does it still run? Start it again and open its URL",
    );
  }
  const body = (await response.json().catch(() => undefined)) as (T & { error?: string }) | undefined;
  if (response.ok && body) return body;
  throw new Error(body?.error ?? `the server answered with status ${response.status}`);
}
