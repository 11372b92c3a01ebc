import { collectGarbage } from "../../runtime/heap.ts";

/** Changes of connections after which there is garbage worth a collection. */
const CHANGES = 1_000;
/** Share of a core below which a pause of some milliseconds meets nobody. */
const IDLE = 0.05;

/**
 * Gives back what a burst of connections has left. The runtime collects when more is allocated: a tunnel that is idle after
 * a burst would keep the garbage, about 2 KB a connection.
 */
export class Tidy {
  #collected = 0;
  #used = usedTime();
  #at = performance.now();

  /** Call it about once a second. `changes` grows with each connection that begins, opens or ends. */
  look(changes: number): void {
    const used = usedTime();
    const at = performance.now();
    const idle = used - this.#used < IDLE * (at - this.#at);
    this.#used = used;
    this.#at = at;
    if (!idle || changes - this.#collected < CHANGES) return;
    this.#collected = changes;
    collectGarbage();
  }
}

/** CPU time of this process, milliseconds. */
function usedTime(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}
