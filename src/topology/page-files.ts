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

/** Nothing inline, nothing from elsewhere, in no frame. Pictures are made by the page itself, for export. */
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

/** Where the page lies on the agent's socket and on the loopback port. Its data lies beside it: `edges`, `edges/history`. */
export const PAGE_FOLDER = "/topology/";

export const PAGE_PATHS: readonly string[] = Object.keys(FILES);

/** Undefined for a path that is none of the page's. Throws when the page was never built. */
export function pageFile(path: string): PageFile | undefined {
  const file = Object.hasOwn(FILES, path) ? FILES[path] : undefined;
  return file && { type: file.type, body: Buffer.from(asset(file.name)) };
}
