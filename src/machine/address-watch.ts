/**
 * Notices that the machine's addresses are others than the agent told istiod. Without one there is nothing to tell yet:
 * at boot the agent is up before the network.
 */

/** Between two looks, milliseconds. */
const EVERY = 2_000;

export class AddressWatch {
  readonly #read: () => string[];
  readonly #told: readonly string[];
  readonly #changed: (addresses: string[]) => void;
  readonly #timer: ReturnType<typeof setInterval>;
  #last: string[] = [];

  /**
   * `told` is what istiod knows, [] for nothing yet. `changed` is called once, when two looks in a row found the same
   * other addresses; never for none at all, since a network that comes back brings them again.
   */
  constructor(
    told: readonly string[],
    read: () => string[],
    changed: (addresses: string[]) => void,
    every = EVERY,
  ) {
    this.#told = told;
    this.#read = read;
    this.#changed = changed;
    this.#timer = setInterval(() => this.#look(), every);
    this.#timer.unref();
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  #look(): void {
    const found = mainFirst(this.#read(), this.#told[0]);
    const steady = isSame(found, this.#last);
    this.#last = found;
    if (!steady || found.length === 0 || isSame(found, this.#told)) return;
    this.stop();
    this.#changed(found);
  }
}

/** The address that peers use stays the first one as long as the machine has it: node and WorkloadEntry are named by it. */
export function mainFirst(addresses: readonly string[], main: string | undefined): string[] {
  if (main === undefined || !addresses.includes(main)) return [...addresses];
  return [main, ...addresses.filter((each) => each !== main)];
}

function isSame(one: readonly string[], other: readonly string[]): boolean {
  return one.length === other.length && one.every((address, i) => address === other[i]);
}
