/**
 * Metrics as text: the Prometheus text format 0.0.4, and OpenMetrics 1.0 for who asks for it. Counters mirror the kernel's,
 * so there is no registry: a scrape writes what it finds.
 */

export interface Sample {
  /** In the order in which they are written; an empty value is no label. */
  labels: readonly (readonly [name: string, value: string])[];
  value: number;
  /** What `labelBlock` gives for them, where it is known. */
  block?: string;
}

export interface Family {
  /** Of a counter without `_total`. */
  name: string;
  help: string;
  type: "counter" | "gauge" | "histogram";
  samples: Sample[];
  /** Of a histogram: bounds in the metric's unit, with cumulative counts; the last is all of them. */
  histograms?: {
    labels: Sample["labels"];
    /** What `labelBlock` gives for them, where it is known. */
    block?: string;
    /** One array for all histograms of the family, so that its texts are made once. */
    bounds: readonly number[];
    /** Cumulative; one more than bounds. */
    counts: number[];
    sum: number;
  }[];
}

export const TEXT = "text/plain; version=0.0.4; charset=utf-8";
export const OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/** The content type that an Accept header asks for: OpenMetrics only when it is named, and no worse than plain text. */
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

/** The body in parts of some 64 KB. */
export function expose(families: readonly Family[], format: string): Buffer[] {
  const open = format === OPEN_METRICS;
  const body = new Body();
  for (const { name, help, type, samples, histograms } of families) {
    if (samples.length === 0 && !histograms?.length) continue;
    const family = type === "counter" && !open ? `${name}_total` : name;
    body.put(`# HELP ${family} ${escapeHelp(help, open)}\n`);
    body.put(`# TYPE ${family} ${type}\n`);
    const series = type === "counter" ? `${name}_total` : name;
    for (const { labels, value, block } of samples) body.sample(series, block ?? labelBlock(labels), value);
    let les: string[] = [];
    let of: readonly number[] | undefined;
    for (const { labels, block = labelBlock(labels), bounds, counts, sum } of histograms ?? []) {
      if (bounds !== of) les = [...bounds, Number.POSITIVE_INFINITY].map(le);
      of = bounds;
      les.forEach((text, i) => {
        body.sample(`${name}_bucket`, withLabel(block, "le", text), counts[i] ?? 0);
      });
      body.sample(`${name}_sum`, block, sum);
      body.sample(`${name}_count`, block, counts.at(-1) ?? 0);
    }
  }
  if (open) body.put("# EOF\n");
  return body.parts();
}

const PART = 64 << 10;

/**
 * Text as bytes. A scrape has megabytes, and as one string they would make the agent's small heap collect garbage several
 * times.
 */
class Body {
  readonly #parts: Buffer[] = [];
  #text = "";

  put(text: string): void {
    this.#text += text;
    if (this.#text.length >= PART) this.#encode();
  }

  sample(series: string, block: string, value: number): void {
    this.put(`${series + block} ${number(value)}\n`);
  }

  parts(): Buffer[] {
    this.#encode();
    return this.#parts;
  }

  #encode(): void {
    if (this.#text !== "") this.#parts.push(Buffer.from(this.#text));
    this.#text = "";
  }
}

/** Labels as they stand behind a metric's name. */
export function labelBlock(labels: Sample["labels"]): string {
  const written = labels.filter(([, value]) => value !== "");
  if (written.length === 0) return "";
  return `{${written.map(([name, value]) => `${name}="${escapeLabel(value)}"`).join(",")}}`;
}

/** A block of labels with one more at its end, whose value needs no escape. */
export function withLabel(block: string, name: string, value: string): string {
  return block === "" ? `{${name}="${value}"}` : `${block.slice(0, -1)},${name}="${value}"}`;
}

/** Values longer than that are cut: nothing of ours is, and others' names must not fill the scraper's memory. */
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

/** OpenMetrics wants a float's text for a bound. */
function le(bound: number): string {
  return Number.isInteger(bound) ? `${bound}.0` : number(bound);
}

function number(value: number): string {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "+Inf" : "-Inf";
  return String(value);
}
