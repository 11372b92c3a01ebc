/**
 * Compares the machine's addresses with those that istiod knows. At boot there may be none yet: the agent starts before
 * the network.
 */

/** Time between two checks, milliseconds. */
const INTERVAL = 2_000;

export class AddressWatch {
  readonly #read: () => string[];
  readonly #registered: readonly string[];
  readonly #onChanged: (addresses: string[]) => void;
  readonly #timer: ReturnType<typeof setInterval>;
  #last: string[] = [];

  /**
   * `registered` are the addresses that istiod knows, [] when it knows none. Calls `onChanged` once, when two checks in a
   * row find the same addresses and they differ from those. A machine without any address does not count as changed: a
   * network that comes back usually brings the same addresses.
   */
  constructor(
    registered: readonly string[],
    read: () => string[],
    onChanged: (addresses: string[]) => void,
    interval = INTERVAL,
  ) {
    this.#registered = registered;
    this.#read = read;
    this.#onChanged = onChanged;
    this.#timer = setInterval(() => this.#check(), interval);
    this.#timer.unref();
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  #check(): void {
    const found = mainFirst(this.#read(), this.#registered[0]);
    const steady = isSame(found, this.#last);
    this.#last = found;
    if (!steady || found.length === 0 || isSame(found, this.#registered)) return;
    this.stop();
    this.#onChanged(found);
  }
}

/** Keeps `main`, the address that peers use, first while the machine has it: node and WorkloadEntry are named after it. */
export function mainFirst(addresses: readonly string[], main: string | undefined): string[] {
  if (main === undefined || !addresses.includes(main)) return [...addresses];
  return [main, ...addresses.filter((each) => each !== main)];
}

function isSame(one: readonly string[], other: readonly string[]): boolean {
  return one.length === other.length && one.every((address, i) => address === other[i]);
}
