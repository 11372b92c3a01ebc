/** The files of the page, and the headers under which a browser gets them. */
import { asset } from "../runtime/assets.ts";

export interface PageFile {
  type: string;
  body: Buffer;
}

/** By the path below the page's folder; "" is the page itself. */
const FILES: Readonly<Record<string, { name: string; type: string }>> = {
  "": { name: "page.html", type: "text/html; charset=utf-8" },
  "page.js": { name: "page.js", type: "text/javascript; charset=utf-8" },
  "page.css": { name: "page.css", type: "text/css; charset=utf-8" },
};

/** They allow no inline code, no other origin and no frame. The page makes pictures itself, for export. */
export const PAGE_HEADERS: Readonly<Record<string, string>> = {
  "content-security-policy": [
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src data: blob:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  ].join("; "),
  "x-content-type-options": "nosniff",
  "x-frame-options": "DENY",
  "referrer-policy": "no-referrer",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
  "cache-control": "no-store",
};

/** The path of the page on the agent's socket and on the loopback port. `edges` and `edges/history` are below it. */
export const PAGE_FOLDER = "/topology/";

export const PAGE_PATHS: readonly string[] = Object.keys(FILES);

/** Undefined for a path that is not the page's. Throws when the page was never built. */
export function pageFile(path: string): PageFile | undefined {
  const file = Object.hasOwn(FILES, path) ? FILES[path] : undefined;
  return file && { type: file.type, body: Buffer.from(asset(file.name)) };
}
