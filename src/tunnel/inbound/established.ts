/** The carried connections of peers, which are checked again when the policies change and cover established connections. */
import type { Admission, InboundConnection } from "./admission.ts";

interface Entry {
  connection: InboundConnection;
  cut(reason: string): void;
}

export class Established {
  readonly #admission: Admission;
  readonly #entries = new Set<Entry>();
  #seen: number | undefined;

  constructor(admission: Admission) {
    this.#admission = admission;
  }

  /** Registers a connection that was admitted. `cut` resets it. Gives the function that removes it. */
  add(connection: InboundConnection, cut: (reason: string) => void): () => void {
    const entry = { connection, cut };
    this.#entries.add(entry);
    return () => this.#entries.delete(entry);
  }

  /** Cuts connections that are no longer admitted, if the policies changed since the last call. */
  review(): void {
    const revision = this.#admission.establishedRevision?.();
    if (revision === undefined || revision === this.#seen) return;
    this.#seen = revision;
    for (const { connection, cut } of [...this.#entries]) {
      const { allowed, policy, reason } = this.#admission.decide(connection);
      if (!allowed) cut(policy === undefined ? reason : `${reason} by ${policy}`);
    }
  }
}
