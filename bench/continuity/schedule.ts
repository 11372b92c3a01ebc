/** What happens to the agent, in an order that only the seed decides. */
import { Random } from "../../test/lab/random.ts";

export const EVENTS = {
  graceful: "kmesh restart --graceful",
  upgrade: "kmesh upgrade to another layout of tables, and down to the one before the next time",
  rollback: "kmesh upgrade to another layout, other endpoints, kmesh rollback",
  "failed upgrade": "kmesh upgrade to what is no kmesh; a successor that ends at once, or never gets ready",
  "failed probe": "kmesh upgrade to programs that lead connections astray, and fail their probe",
  kill: "SIGKILL, and a start at once",
  "change while down": "SIGKILL, other endpoints, a start",
  "other version":
    "another layout of tables put into place, and the one before the next time: SIGKILL, a start",
  stop: "SIGSTOP, other endpoints, SIGCONT",
  "istiod gone": "istiod gone, and perhaps a start without it; other endpoints; istiod back",
  "disk full": "the state folder full, other endpoints, a start",
  "state lost": "the state folder gone, a start",
  "state corrupt": "other bytes in every file of the state folder, a start",
  "tunnel restart":
    "the next kmesh tunnel on the same sockets, once or twice, perhaps with another certificate",
  "tunnel upgrade": "the same with another build, and the one before the next time",
  "failed tunnel restart": "a next tunnel that ends at once",
  "tunnel crash":
    "SIGKILL of the tunnel that accepts, perhaps while another drains; started again as systemd does",
} as const;

/** Events of a bench that begins in dual-engine mode. */
export const MODE_EVENTS = {
  "other mode": "kernel-native or dual-engine, whichever it is not, by kmesh restart --graceful",
} as const;

export type EventKind = keyof typeof EVENTS | keyof typeof MODE_EVENTS;

export interface ScheduledEvent {
  kind: EventKind;
  /** Of all that the event itself decides. */
  seed: number;
}

/**
 * `count` events of these kinds. Every kind comes once before any comes again, in a new order each time.
 */
export function schedule(seed: number, count: number, kinds: readonly EventKind[]): ScheduledEvent[] {
  const random = new Random(seed);
  const events: ScheduledEvent[] = [];
  while (events.length < count) {
    for (const kind of random.shuffled(kinds)) {
      events.push({ kind, seed: random.below(2 ** 31) });
    }
  }
  return events.slice(0, count);
}
