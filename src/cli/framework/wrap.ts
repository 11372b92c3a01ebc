/** Text in lines of a given width. */

/** Limits of the width: narrower text is not wrapped, and wider lines are hard to read. */
const NARROWEST = 40;
const WIDEST = 100;

/** Columns of the terminal, or COLUMNS or 80 in a pipe, limited to 40 to 100. */
export function terminalWidth(
  columns: number | undefined = process.stdout.columns,
  variable = process.env.COLUMNS,
): number {
  const width = columns || Number(variable) || 80;
  return Math.min(WIDEST, Math.max(NARROWEST, width));
}

/**
 * Wraps paragraphs, which are separated by empty lines. Lines that begin with a blank are not wrapped. A word longer
 * than a line gets a line of its own. `hang` is put before every line but the first.
 */
export function wrap(text: string, width: number, hang = ""): string {
  const lines: string[] = [];
  let line = "";
  const flush = () => {
    if (line !== "") lines.push(line);
    line = "";
  };
  for (const given of text.split("\n")) {
    if (given === "" || given.startsWith(" ")) {
      flush();
      lines.push(given);
      continue;
    }
    for (const word of given.split(/ +/).filter((each) => each !== "")) {
      const indented = lines.length > 0 ? hang.length : 0;
      if (line !== "" && indented + line.length + 1 + word.length > width) flush();
      line = line === "" ? word : `${line} ${word}`;
    }
  }
  flush();
  return lines.map((each, i) => (i === 0 || each === "" ? each : hang + each)).join("\n");
}

/** Two columns, a name and its wrapped description. A long name gets a line of its own. */
export function definitions(rows: readonly (readonly [string, string])[], width: number): string {
  const widest = Math.max(...rows.map(([name]) => name.length));
  const column = Math.min(widest, Math.max(12, Math.floor(width * 0.35))) + 4;
  return rows
    .map(([name, about]) => {
      const hang = " ".repeat(column);
      const text = wrap(about, width - column).split("\n");
      const begin = `  ${name}`;
      const head = begin.length + 2 > column ? [begin, ...text.map((line) => hang + line)] : undefined;
      if (head) return head.join("\n");
      return text.map((line, i) => (i === 0 ? begin.padEnd(column) : hang) + line).join("\n");
    })
    .map((row) => row.replace(/ +$/gm, ""))
    .join("\n");
}
