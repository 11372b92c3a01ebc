/**
 * Ports that istiod names no more, and that stay governed for a while. istiod finds a machine's ports by its WorkloadEntry: to
 * a machine that registers before the entry is made, or before every service that selects it has seen it, it names none or
 * some of them. Without a delay the others would be open to everybody meanwhile, the STRICT ones too.
 */
import { type Inbound, mtlsOf, type Policy } from "../mesh/inbound.ts";

/** Milliseconds. */
const HOLD = 30_000;

export class HeldPorts {
  /** When each port was missed first, milliseconds of a monotonic clock. */
  readonly #missedSince = new Map<number, number>();

  /** Forgets what is held. */
  clear(): void {
    this.#missedSince.clear();
  }

  /** What governs at `now`: `named`, and the ports of `pinned` that it lacks for less than 30 s, which stay as they are. */
  over(named: Inbound, pinned: Inbound | undefined, now: number): { inbound: Inbound; holds: boolean } {
    const missing = (pinned?.ports ?? []).filter((port) => !named.ports.includes(port));
    for (const port of this.#missedSince.keys()) if (!missing.includes(port)) this.#missedSince.delete(port);
    const held = missing.filter((port) => {
      const since = this.#missedSince.get(port) ?? now;
      this.#missedSince.set(port, since);
      return now - since < HOLD;
    });
    if (!pinned || held.length === 0) return { inbound: named, holds: false };
    return { inbound: withPorts(named, pinned, held), holds: true };
  }
}

function withPorts(named: Inbound, pinned: Inbound, held: readonly number[]): Inbound {
  const { default: mode } = named.mtls;
  const modes = held.map((port) => ({ port, mode: mtlsOf(pinned, port) }));
  const trustDomains = [...new Set([...(pinned.trustDomains ?? []), ...(named.trustDomains ?? [])])].sort();
  return {
    ports: [...named.ports, ...held].sort((a, b) => a - b),
    mtls: {
      default: mode,
      ports: [...named.mtls.ports, ...modes.filter((each) => each.mode !== mode)].sort(
        (a, b) => a.port - b.port,
      ),
    },
    policies: [
      ...restricted(named.policies, named.ports),
      ...restricted(
        pinned.policies.map((policy) => ({ ...policy, ports: policy.ports ?? pinned.ports })),
        held,
      ),
    ],
    ...(trustDomains.length > 0 && { trustDomains }),
  };
}

/** The policies as far as they govern these ports. */
function restricted(policies: readonly Policy[], ports: readonly number[]): Policy[] {
  return policies.flatMap((policy) => {
    const governed = policy.ports ? policy.ports.filter((port) => ports.includes(port)) : ports;
    return governed.length === 0 ? [] : [{ ...policy, ports: governed }];
  });
}
