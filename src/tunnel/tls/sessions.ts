/** Tickets of all peers together, about 2 KB each. */
const MOST = 2_000;
/** Tickets of one peer: as many as connections to it begin at the same moment. */
const MOST_OF_ONE = 16;

/**
 * TLS sessions that peers gave us, by which the next handshake with the same peer does without certificates (RFC 8446
 * section 2.2): a third of the time that a connection costs. One of these belongs to one certificate and its roots, and goes
 * with them. What it holds came from peers whose chain was verified, and who the peer is gets checked on each connection.
 */
export class Sessions {
  /** The peer that was asked for last comes last. */
  readonly #tickets = new Map<string, Buffer[]>();
  #count = 0;

  /** A session for the peer. It is used once (RFC 8446 appendix C.4). */
  take(peer: string): Buffer | undefined {
    const tickets = this.#tickets.get(peer);
    if (!tickets) return undefined;
    // The newest: it lives the longest.
    const ticket = tickets.pop();
    this.#tickets.delete(peer);
    if (tickets.length > 0) this.#tickets.set(peer, tickets);
    if (ticket) this.#count--;
    return ticket;
  }

  /** Keeps a session of the peer, perhaps in place of an older one. */
  put(peer: string, ticket: Buffer): void {
    const tickets = this.#tickets.get(peer) ?? [];
    tickets.push(ticket);
    this.#count++;
    if (tickets.length > MOST_OF_ONE) {
      tickets.shift();
      this.#count--;
    }
    this.#tickets.set(peer, tickets);
    while (this.#count > MOST) this.#dropOldest();
  }

  #dropOldest(): void {
    const [oldest] = this.#tickets;
    if (!oldest) return;
    const [peer, tickets] = oldest;
    this.#count -= tickets.length;
    this.#tickets.delete(peer);
  }
}
