/** Numbers of repeated runs, and the table that a benchmark prints. */
import { readFileSync } from "node:fs";

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const high = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? high : ((sorted[middle - 1] ?? high) + high) / 2;
}

/** Ratio of two paired series, round by round, as the median: what disturbs a whole round cancels out. */
export function pairedRatio(values: readonly number[], peers: readonly number[]): number {
  return median(values.map((value, i) => value / (peers[i] ?? Number.NaN)));
}

/** Difference of two paired series, round by round, as the median. */
export function pairedDifference(values: readonly number[], peers: readonly number[]): number {
  return median(values.map((value, i) => value - (peers[i] ?? Number.NaN)));
}

/** Three significant digits, with thousands separated. */
export function figure(value: number): string {
  if (!Number.isFinite(value)) return "-";
  if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en-US");
  return value.toPrecision(3).replace(/\.?0+$/, (zeros) => (zeros.startsWith(".") ? "" : zeros));
}

/** Prints rows under `head` in aligned columns; the first column is text, the others numbers. */
export function printTable(head: readonly string[], rows: readonly (readonly (string | number)[])[]): void {
  const cells = [
    head,
    ...rows.map((row) => row.map((cell) => (typeof cell === "number" ? figure(cell) : cell))),
  ];
  const widths = head.map((_, i) => Math.max(...cells.map((row) => row[i]?.length ?? 0)));
  for (const [at, row] of cells.entries()) {
    const line = row.map((cell, i) =>
      i === 0 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0),
    );
    console.log(`  ${line.join("  ")}`.trimEnd());
    if (at === 0) console.log(`  ${widths.map((width) => "-".repeat(width)).join("  ")}`);
  }
}

/** Says what runs, on standard error, so that standard output is the tables alone. */
export function progress(text: string): void {
  console.error(`bench: ${text}`);
}

/** User and system time of a process so far, ms, in steps of 10: steadier than the clock on a busy machine. */
export function cpuTime(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) * 10;
}
