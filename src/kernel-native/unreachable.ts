/** Frontends that no connect() reaches, since their destinations are exempt or excluded. */
import { contains, type Prefix } from "../mesh/address.ts";
import { exemptBlockOfMatch, formatExemptBlock } from "../mesh/exempt.ts";
import { formatMatch } from "../mesh/frontend.ts";
import type { Match } from "../mesh/model.ts";

/** Destinations that the operator excludes (the setting `exclude`); port 0 means every port. */
export interface Excluded extends Prefix {
  port: number;
}

/** Why no connection reaches this frontend, as a sentence; undefined when some may. */
export function unreachable(match: Match, excluded: readonly Excluded[]): string | undefined {
  const exempt = exemptBlockOfMatch(match);
  const why = exempt ? `${formatExemptBlock(exempt)} is always exempt` : excludedBy(match, excluded);
  return why && `no connection to ${formatMatch(match)} is governed: ${why}`;
}

function excludedBy(match: Match, excluded: readonly Excluded[]): string | undefined {
  if (match.kind === "port") return undefined;
  const length = match.kind === "prefix" ? match.length : Number.POSITIVE_INFINITY;
  const found = excluded.find(
    (block) =>
      block.length <= length &&
      (block.port === 0 || block.port === match.port) &&
      contains(block, match.address),
  );
  return found && `${formatMatch({ kind: "prefix", ...found })} is excluded by the configuration (exclude)`;
}
