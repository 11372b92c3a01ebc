/** Looks at one thing after the other, and tells what was found. */
import { reasonOf } from "../errors/reason.ts";

/** One thing that was found. */
export type Finding =
  | { state: "ok"; text: string }
  /** It works, and could be better. */
  | { state: "warning"; text: string; cure?: string }
  | { state: "error"; text: string; cure: string };

/** Something to look at; nothing that it finds is thrown. */
export interface Check {
  name: string;
  /** Checks without which this one has no meaning. */
  needs: readonly string[];
  look(): Finding[] | Promise<Finding[]>;
}

/** What a check came to. */
export interface Result {
  check: string;
  /** "skipped": what it needs is wrong itself. */
  state: Finding["state"] | "skipped";
  findings: Finding[];
}

/** Looks at one after the other; each result is told as soon as it is there. */
export async function runChecks(
  checks: readonly Check[],
  told: (result: Result) => void = () => {},
): Promise<Result[]> {
  const results: Result[] = [];
  const bad = new Set<string>();
  for (const { name, needs, look } of checks) {
    const findings = needs.some((each) => bad.has(each)) ? [] : await attempt(look);
    const state = stateOf(findings);
    if (state === "error" || state === "skipped") bad.add(name);
    const result = { check: name, state, findings };
    results.push(result);
    told(result);
  }
  return results;
}

/** The first thing that is wrong, which the others may follow from; undefined when all is well. */
export function firstError(
  results: readonly Result[],
): { check: string; text: string; cure: string } | undefined {
  for (const { check, findings } of results) {
    for (const finding of findings)
      if (finding.state === "error") return { check, text: finding.text, cure: finding.cure };
  }
  return undefined;
}

/** A finding that is wrong, from whatever was thrown. */
export function errorFinding(error: unknown, cure: string): Finding {
  return { state: "error", text: reasonOf(error), cure };
}

async function attempt(look: Check["look"]): Promise<Finding[]> {
  try {
    return await look();
  } catch (error) {
    return [errorFinding(error, "A fault of kmesh: please report it.")];
  }
}

function stateOf(findings: readonly Finding[]): Result["state"] {
  if (findings.length === 0) return "skipped";
  for (const state of ["error", "warning"] as const)
    if (findings.some((finding) => finding.state === state)) return state;
  return "ok";
}
