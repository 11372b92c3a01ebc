import type { Frontend, Match } from "./model.ts";

/** The key of a frontend in `Mesh.frontends`: one string per distinct match and protocol. */
export function frontendKey(frontend: Pick<Frontend, "match" | "protocol">): string {
  return `${frontend.protocol} ${formatMatch(frontend.match)}`;
}

/**
 * Formats a match as users write it: `10.0.0.1:80`, `[fd00::1]:80`, `10.1.0.0/16:80`, `*:80`; a block of every port:
 * `10.1.0.0/16`.
 */
export function formatMatch(match: Match): string {
  if (match.kind === "port") return `*:${match.port}`;
  if (match.kind === "prefix" && match.port === 0) return `${match.address}/${match.length}`;
  const block = match.kind === "prefix" ? `/${match.length}` : "";
  const address = match.address.includes(":") ? `[${match.address}${block}]` : `${match.address}${block}`;
  return `${address}:${match.port}`;
}
