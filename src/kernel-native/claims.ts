/** Frontends that resources claim, and which claim wins. */
import { formatMatch, frontendKey } from "../mesh/frontend.ts";
import type { Frontend, Note } from "../mesh/model.ts";
import { note } from "./resources/note.ts";

/**
 * The kinds of claims, the strongest first. When services share an address, istiod puts it into the domains of one of
 * them, a different one after each push. So a claim by domain ranks no higher than one by the name table, which lists
 * all services; the service's name decides.
 */
export const RANK = { listener: 0, address: 1, endpoints: 2, port: 3 } as const;

interface Claim {
  rank: number;
  frontend: Frontend;
}

export class Claims {
  readonly #claims = new Map<string, Claim | Claim[]>();

  /** `rank` is one of RANK. */
  add(rank: number, frontend: Frontend): void {
    const key = frontendKey(frontend);
    const claim = { rank, frontend };
    const known = this.#claims.get(key);
    if (known === undefined) this.#claims.set(key, claim);
    else if (Array.isArray(known)) known.push(claim);
    else this.#claims.set(key, [known, claim]);
  }

  /** The winning frontends by key. `lost` is called for each service that loses a frontend, with the note for it. */
  resolve(lost: (service: string, remark: Note) => void): Map<string, Frontend> {
    const frontends = new Map<string, Frontend>();
    for (const [key, claims] of this.#claims) {
      if (!Array.isArray(claims)) {
        frontends.set(key, claims.frontend);
        continue;
      }
      claims.sort(compareClaims);
      const [winner, ...losers] = claims;
      if (winner === undefined) continue;
      frontends.set(key, winner.frontend);
      for (const { frontend } of losers) {
        if (frontend.service === winner.frontend.service) continue;
        lost(frontend.service, takenBy(formatMatch(frontend.match), winner.frontend.service));
      }
    }
    return frontends;
  }
}

/** The note for a service whose frontend belongs to another service. */
export function takenBy(match: string, service: string): Note {
  return note("conflict", `${match} belongs to ${service}`);
}

function compareClaims(a: Claim, b: Claim): number {
  return (
    a.rank - b.rank ||
    compareText(a.frontend.service, b.frontend.service) ||
    compareText(JSON.stringify(a.frontend.target), JSON.stringify(b.frontend.target))
  );
}

function compareText(a: string, b: string): number {
  return a === b ? 0 : a < b ? -1 : 1;
}
