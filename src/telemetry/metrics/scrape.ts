/** The numbers of one scrape. They are added up in pieces, because the first scrape of ten thousand rows makes all label sets. */
import type { Rows } from "../counters/row-table.ts";
import { expose, type Family } from "./exposition.ts";
import type { Tally } from "./tally.ts";

/** How often names may change while rows are added up, before that is done without a pause. */
const MOST_TRIES = 3;
const NOTHING: Uint8Array = new Uint8Array();

export interface ScrapeOptions {
  /** One scrape's at a time: `finish` or `stop` the one before. */
  tally: Tally;
  /** Another number when a name may have changed since. */
  revision(): number;
  /** All rows of the present. Throws KernelError. */
  read(): Rows;
  /** From the tally, when it has all of the rows. */
  families(rows: Rows): Family[];
}

export class Scrape {
  /** Undefined when it has ended: it holds all rows. */
  #sums: Generator<undefined, Family[]> | undefined;
  #families: Family[] = [];
  #failure: unknown;

  /** Reads the rows. Throws KernelError. */
  constructor(options: ScrapeOptions) {
    this.#sums = addUp(options, options.read());
  }

  /**
   * The body in `format`. Each part is valid until the next one is taken. The first ones are empty: each stands for a piece of
   * the sums, which takes a few milliseconds at most. Throws what `stop` was given, and KernelError.
   */
  *parts(format: string): Generator<Uint8Array> {
    while (this.#sums) {
      this.#goOn();
      yield NOTHING;
    }
    if (this.#failure !== undefined) throw this.#failure;
    const families = this.#families;
    this.#families = [];
    yield* expose(families, format);
  }

  /** Adds up what is left, so that another scrape can have the tally. */
  finish(): void {
    while (this.#sums) this.#goOn();
  }

  /** Asks for no more rows and names; a body that has no numbers yet fails with `reason`. */
  stop(reason: Error): void {
    if (this.#sums) this.#failure = reason;
    this.#sums = undefined;
  }

  #goOn(): void {
    try {
      const { done, value } = this.#sums?.next() ?? { done: true };
      if (!done) return;
      this.#families = value ?? [];
    } catch (error) {
      this.#failure = error;
    }
    this.#sums = undefined;
  }
}

function* addUp(options: ScrapeOptions, first: Rows): Generator<undefined, Family[]> {
  const { tally } = options;
  let rows = first;
  for (let tries = 1; ; tries++) {
    const revision = options.revision();
    for (const _ of tally.pieces(rows)) {
      if (tries === MOST_TRIES) continue;
      yield;
      if (options.revision() !== revision) break;
    }
    if (options.revision() === revision) return options.families(rows);
    // A number in the rows may stand for another name now.
    rows = options.read();
  }
}
