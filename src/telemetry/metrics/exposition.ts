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
  histograms?: { labels: Sample["labels"]; bounds: number[]; counts: number[]; sum: number }[];
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
export function expose(families: readonly Family[], format: string): string[] {
  const open = format === OPEN_METRICS;
  const parts: string[] = [];
  let text = "";
  const line = (piece: string) => {
    text += `${piece}\n`;
    if (text.length < 65_536) return;
    parts.push(text);
    text = "";
  };
  for (const { name, help, type, samples, histograms } of families) {
    if (samples.length === 0 && !histograms?.length) continue;
    const family = type === "counter" && !open ? `${name}_total` : name;
    line(`# HELP ${family} ${escapeHelp(help, open)}`);
    line(`# TYPE ${family} ${type}`);
    const series = type === "counter" ? `${name}_total` : name;
    for (const { labels, value, block } of samples)
      line(`${series}${block ?? labelBlock(labels)} ${number(value)}`);
    for (const { labels, bounds, counts, sum } of histograms ?? []) {
      bounds.forEach((bound, i) => {
        line(`${name}_bucket${labelBlock([...labels, ["le", le(bound)]])} ${number(counts[i] ?? 0)}`);
      });
      const count = counts.at(-1) ?? 0;
      line(`${name}_bucket${labelBlock([...labels, ["le", "+Inf"]])} ${number(count)}`);
      line(`${name}_sum${labelBlock(labels)} ${number(sum)}`);
      line(`${name}_count${labelBlock(labels)} ${number(count)}`);
    }
  }
  if (open) line("# EOF");
  parts.push(text);
  return parts;
}

/** Labels as they stand behind a metric's name. */
export function labelBlock(labels: Sample["labels"]): string {
  const written = labels.filter(([, value]) => value !== "");
  if (written.length === 0) return "";
  return `{${written.map(([name, value]) => `${name}="${escapeLabel(value)}"`).join(",")}}`;
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
  return Number.isInteger(bound) ? `${bound}.0` : String(bound);
}

function number(value: number): string {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "+Inf" : "-Inf";
  return String(value);
}
