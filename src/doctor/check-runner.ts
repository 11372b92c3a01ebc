/** Runs checks one after the other and collects their findings. */
import { reasonOf } from "../errors/reason.ts";

/** One result of a check. */
export type Finding =
  | { state: "ok"; text: string }
  /** A warning: it works, but could be better. */
  | { state: "warning"; text: string; cure?: string }
  | { state: "error"; text: string; cure: string };

/** One check. It returns its findings and throws nothing. */
export interface Check {
  name: string;
  /** Checks that must pass before this one is meaningful. */
  needs: readonly string[];
  look(): Finding[] | Promise<Finding[]>;
}

/** The result of a check. */
export interface Result {
  check: string;
  /** "skipped": a check that it needs has failed. */
  state: Finding["state"] | "skipped";
  findings: Finding[];
}

/** Runs the checks in order; `report` gets each result at once. */
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

/** The first error, which may cause the others; undefined when all checks pass. */
export function firstError(
  results: readonly Result[],
): { check: string; text: string; cure: string } | undefined {
  for (const { check, findings } of results) {
    for (const finding of findings)
      if (finding.state === "error") return { check, text: finding.text, cure: finding.cure };
  }
  return undefined;
}

/** Turns a thrown error into a finding. */
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
