/** Subject alternative names of a peer's certificate, and whether one of them is right. */
import type { SanMatch } from "../../mesh/transport.ts";

export interface Sans {
  uris: string[];
  dns: string[];
  addresses: string[];
}

/**
 * The names in node's text form (`URI:spiffe://..., DNS:...`). A name with a character that node quotes is left out: it
 * can't be a right one, and must not be taken for two.
 */
export function readSans(text: string | undefined): Sans {
  const sans: Sans = { uris: [], dns: [], addresses: [] };
  for (const [, kind, quoted, name] of (text ?? "").matchAll(
    /(URI|DNS|IP Address|[A-Za-z ]+):(?:("(?:[^"\\]|\\.)*")|([^,"]*))(?:, |$)/g,
  )) {
    if (quoted !== undefined || name === undefined) continue;
    if (kind === "URI") sans.uris.push(name);
    else if (kind === "DNS") sans.dns.push(name.toLowerCase());
    else if (kind === "IP Address") sans.addresses.push(name);
  }
  return sans;
}

/** Whether one of the certificate's names is matched. An empty list matches nothing. */
export function matchesSans(sans: Sans, matches: readonly SanMatch[]): boolean {
  const names = [...sans.uris, ...sans.addresses, ...sans.dns];
  return matches.some(
    (match) =>
      names.some((name) => matchesName(name, match)) || sans.dns.some((name) => isWildcardFor(name, match)),
  );
}

function matchesName(name: string, { kind, value }: SanMatch): boolean {
  if (kind === "prefix") return name.startsWith(value);
  if (kind === "suffix") return name.endsWith(value);
  return name === value || (!value.includes(":") && name === value.toLowerCase());
}

/** `*.example.com` in the certificate for `a.example.com`: one label, the first (RFC 6125). */
function isWildcardFor(name: string, { kind, value }: SanMatch): boolean {
  if (kind !== "exact" || !name.startsWith("*.")) return false;
  const dot = value.indexOf(".");
  return dot > 0 && name.slice(1) === value.slice(dot).toLowerCase();
}

/** The one SPIFFE id of a workload's certificate; undefined when there is none, or several URIs. */
export function spiffeOf(sans: Sans): string | undefined {
  const [uri, more] = sans.uris;
  return uri?.startsWith("spiffe://") && more === undefined ? uri : undefined;
}
