/** One problem of a file, printed as "FILE: FIELD REASON". */
export interface Problem {
  file: string;
  /** The field or the line; absent when the problem concerns the whole file. */
  field?: string;
  reason: string;
}

/**
 * Parses `KEY='value'` lines as istioctl writes them. Values may also be in double quotes or bare. Lines may be
 * empty, be comments, or begin with `export`. Adds a problem to `problems` for each other line.
 */
export function parseClusterEnv(text: string, file: string, problems: Problem[]): Map<string, string> {
  const values = new Map<string, string>();
  for (const [i, line] of text.split(/\r?\n/).entries()) {
    if (/^\s*(#.*)?$/.test(line)) continue;
    const [, key, single, double, bare] =
      /^\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(?:'([^']*)'|"([^"]*)"|([^\s'"]*))\s*$/.exec(line) ?? [];
    if (key === undefined) {
      problems.push({ file, field: `line ${i + 1}`, reason: "is not KEY='value'" });
      continue;
    }
    values.set(key, single ?? double ?? bare ?? "");
  }
  return values;
}
