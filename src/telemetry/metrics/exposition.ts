/**
 * Formats metrics: the Prometheus text format 0.0.4, and OpenMetrics 1.0 on request. There is no registry, because a scrape
 * reads the kernel's counters.
 */

/** In output order. A label with an empty value is left out. */
export type Labels = readonly (readonly [name: string, value: string])[];

/** Labels as the bytes that follow a metric's name. Ten thousand of them as texts would be 20 MB. */
export interface LabelSet {
  block: Uint8Array;
  /** Sets with one more label, by its text. They are made once, too. */
  more?: Map<string, LabelSet>;
}

export interface Family {
  /** The name; for a counter without `_total`. */
  name: string;
  help: string;
  type: "counter" | "gauge" | "histogram";
  /** One for each series; of a histogram one for each histogram. */
  sets: readonly LabelSet[];
  /** By the index of `sets`; not of a histogram. */
  values: ArrayLike<number>;
  histograms?: {
    /** In the metric's unit, without the infinite one. */
    bounds: readonly number[];
    /** By the index of `sets`: cumulative counts, one more than bounds; the last is all of them. */
    counts: readonly ArrayLike<number>[];
    sums: ArrayLike<number>;
  };
}

export const TEXT = "text/plain; version=0.0.4; charset=utf-8";
export const OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/** The content type for an Accept header: OpenMetrics only if it is named with at least the weight of plain text. */
export function chooseFormat(accept: string | undefined): typeof TEXT | typeof OPEN_METRICS {
  let open = 0;
  let plain = 0;
  for (const part of (accept ?? "").split(",").slice(0, 32)) {
    const [type = "", ...parameters] = part.split(";").map((text) => text.trim().toLowerCase());
    const q = Number(parameters.find((parameter) => parameter.startsWith("q="))?.slice(2) ?? 1);
    const weight = Number.isFinite(q) ? q : 0;
    if (type === "application/openmetrics-text") open = Math.max(open, weight);
    if (type === "text/plain" || type === "text/*" || type === "*/*") plain = Math.max(plain, weight);
  }
  return open > 0 && open >= plain ? OPEN_METRICS : TEXT;
}

/** The body in parts of about PART bytes. A part is made when it is taken, and is valid until the next one is taken. */
export function* expose(families: readonly Family[], format: string): Generator<Uint8Array> {
  const open = format === OPEN_METRICS;
  const body = new Body();
  for (const family of families) {
    const { name, help, type, sets, histograms } = family;
    if (sets.length === 0) continue;
    const metadata = type === "counter" && !open ? `${name}_total` : name;
    body.text(`# HELP ${metadata} ${escapeHelp(help, open)}\n# TYPE ${metadata} ${type}\n`);
    if (histograms) yield* exposeHistograms(body, family, histograms);
    else {
      const series = encoded(type === "counter" ? `${name}_total` : name);
      for (let i = 0; i < sets.length; i++) {
        body.sample(series, sets[i]?.block ?? NO_LABELS, family.values[i] ?? 0);
        if (body.isPart) yield body.take();
      }
    }
  }
  if (open) body.text("# EOF\n");
  yield body.take();
}

function* exposeHistograms(
  body: Body,
  { name, sets }: Family,
  { bounds, counts, sums }: NonNullable<Family["histograms"]>,
): Generator<Uint8Array> {
  const [bucket, sum, count] = ["bucket", "sum", "count"].map((suffix) => encoded(`${name}_${suffix}`));
  const les = [...bounds, Number.POSITIVE_INFINITY].map((bound) => encoded(`le="${le(bound)}"}`));
  for (let i = 0; i < sets.length; i++) {
    const block = sets[i]?.block ?? NO_LABELS;
    const open = openBlock(block);
    les.forEach((text, at) => {
      body.sample(bucket ?? NO_LABELS, open, counts[i]?.[at] ?? 0, text);
    });
    body.sample(sum ?? NO_LABELS, block, sums[i] ?? 0);
    body.sample(count ?? NO_LABELS, block, counts[i]?.[bounds.length] ?? 0);
    if (body.isPart) yield body.take();
  }
}

/** Bytes after which a part ends. */
export const PART = 128 << 10;
const NO_LABELS: Uint8Array = new Uint8Array();
const SPACE = 0x20;
const NEWLINE = 0x0a;
const ZERO = 0x30;
/** Most digits of a number that is written digit by digit. */
const DIGITS = 16;

/**
 * Bytes, written in place: as strings, the megabytes of a scrape would make the agent's small heap collect garbage several
 * times.
 */
class Body {
  #bytes = new Uint8Array(2 * PART);
  #length = 0;

  get isPart(): boolean {
    return this.#length >= PART;
  }

  /** All that was written since the last call, until something else is written. */
  take(): Uint8Array {
    const part = this.#bytes.subarray(0, this.#length);
    this.#length = 0;
    return part;
  }

  text(text: string): void {
    this.#put(encoded(text));
  }

  sample(series: Uint8Array, block: Uint8Array, value: number, more = NO_LABELS): void {
    this.#room(series.length + block.length + more.length + 32);
    this.#bytes.set(series, this.#length);
    this.#length += series.length;
    this.#bytes.set(block, this.#length);
    this.#length += block.length;
    if (more.length > 0) {
      this.#bytes.set(more, this.#length);
      this.#length += more.length;
    }
    this.#bytes[this.#length++] = SPACE;
    this.#number(value);
    this.#bytes[this.#length++] = NEWLINE;
  }

  #put(bytes: Uint8Array): void {
    this.#room(bytes.length);
    this.#bytes.set(bytes, this.#length);
    this.#length += bytes.length;
  }

  #number(value: number): void {
    if (!Number.isSafeInteger(value) || value < 0) {
      this.#put(encoded(number(value)));
      return;
    }
    let digits = 1;
    for (let power = 10; digits < DIGITS && power <= value; power *= 10) digits++;
    let rest = value;
    for (let at = this.#length + digits - 1; at >= this.#length; at--) {
      const next = Math.floor(rest / 10);
      this.#bytes[at] = ZERO + (rest - next * 10);
      rest = next;
    }
    this.#length += digits;
  }

  #room(bytes: number): void {
    if (this.#length + bytes <= this.#bytes.length) return;
    const larger = new Uint8Array(2 * (this.#length + bytes));
    larger.set(this.#bytes.subarray(0, this.#length));
    this.#bytes = larger;
  }
}

/** Makes the bytes of labels, once for all scrapes. */
export function labelSet(labels: Labels): LabelSet {
  const written = labels.filter(([, value]) => value !== "");
  const text = written.map(([name, value]) => `${name}="${escapeLabel(value)}"`).join(",");
  return { block: text === "" ? NO_LABELS : encoded(`{${text}}`) };
}

/** A label that others may get behind theirs (`withLabel`): its text with the closing brace. */
export type LastLabel = string;

export function lastLabel(name: string, value: string): LastLabel {
  return `${name}="${escapeLabel(value)}"}`;
}

/** The set with one more label at its end. */
export function withLabel(set: LabelSet, label: LastLabel): LabelSet {
  set.more ??= new Map();
  let found = set.more.get(label);
  if (!found) {
    found = { block: Buffer.concat([openBlock(set.block), encoded(label)]) };
    set.more.set(label, found);
  }
  return found;
}

/** A block of labels as far as another label can follow. */
function openBlock(block: Uint8Array): Uint8Array {
  if (block.length === 0) return encoded("{");
  const open = new Uint8Array(block);
  open[open.length - 1] = ",".charCodeAt(0);
  return open;
}

/** Longest value; longer names of others are cut, so that they don't fill the scraper's memory. */
const LONGEST = 1024;

function escapeLabel(value: string): string {
  const text = value.length > LONGEST ? value.slice(0, LONGEST) : value;
  return /[\\"\n]/.test(text)
    ? text.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n")
    : text;
}

function escapeHelp(text: string, open: boolean): string {
  const escaped = text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n");
  return open ? escaped.replaceAll('"', '\\"') : escaped;
}

/** OpenMetrics requires the form of a float for a bound. */
function le(bound: number): string {
  return Number.isInteger(bound) ? `${bound}.0` : number(bound);
}

function number(value: number): string {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "+Inf" : "-Inf";
  return String(value);
}

function encoded(text: string): Uint8Array {
  return Buffer.from(text);
}
