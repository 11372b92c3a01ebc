/** Runs checks one after the other and collects their findings. */
import { reasonOf } from "../errors/reason.ts";

/** One thing that was found. */
export type Finding =
  | { state: "ok"; text: string }
  /** It works, and could be better. */
  | { state: "warning"; text: string; cure?: string }
  | { state: "error"; text: string; cure: string };

/** One check. It returns what it finds and throws nothing. */
export interface Check {
  name: string;
  /** Checks that must have passed for this one to mean anything. */
  needs: readonly string[];
  look(): Finding[] | Promise<Finding[]>;
}

/** The result of a check. */
export interface Result {
  check: string;
  /** "skipped": what it needs is wrong itself. */
  state: Finding["state"] | "skipped";
  findings: Finding[];
}

/** Runs the checks in order; `report` gets each result as soon as it is there. */
export async function runChecks(
  checks: readonly Check[],
  report: (result: Result) => void = () => {},
): Promise<Result[]> {
  const results: Result[] = [];
  const bad = new Set<string>();
  for (const { name, needs, look } of checks) {
    const findings = needs.some((each) => bad.has(each)) ? [] : await attempt(look);
    const state = stateOf(findings);
    if (state === "error" || state === "skipped") bad.add(name);
    const result = { check: name, state, findings };
    results.push(result);
    report(result);
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
