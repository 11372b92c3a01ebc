/** The health of nodes, from the edges and problems of a document. */
import type { Edge, EdgeState, EdgesDocument } from "../telemetry/model.ts";

/** Worst first. */
export const STATES: readonly EdgeState[] = ["failing", "slow", "ok", "idle"];

export const STATE_WORDS: Readonly<Record<EdgeState, string>> = {
  failing: "Failing",
  slow: "Slow or lossy",
  ok: "Healthy",
  idle: "Idle",
};

/** 0 is the worst. */
export function severityRank(state: EdgeState): number {
  return STATES.indexOf(state);
}

/** The worst of the states; "idle" of none. */
export function worst(states: Iterable<EdgeState>): EdgeState {
  let rank = STATES.length - 1;
  for (const state of states) rank = Math.min(rank, severityRank(state));
  return STATES[rank] ?? "idle";
}

/**
 * State of each node by its id: the worst of its own problems and of its edges. A service counts the edges on both sides,
 * every other node those that end or begin there. A node without edges is "idle".
 */
export function nodeStates(
  document: Pick<EdgesDocument, "nodes" | "edges" | "problems">,
): Map<string, EdgeState> {
  const states = new Map<string, EdgeState[]>(document.nodes.map(({ id }) => [id, []]));
  for (const { from, to, state } of document.edges) {
    states.get(from)?.push(state);
    states.get(to)?.push(state);
  }
  for (const { subject, severity, rule } of document.problems)
    if (severity !== "info")
      states.get(subject)?.push(rule === "ejected" || severity === "error" ? "failing" : "slow");
  return new Map([...states].map(([id, all]) => [id, worst(all)]));
}

/** Whether something is wrong with it, with or without traffic. */
export function isTrouble(state: EdgeState): boolean {
  return state === "failing" || state === "slow";
}

/** Failed connects and resets of the window, and connections that kmesh refused on purpose. */
export function failuresOf({ recent }: Edge): number {
  const { refused, timedOut, unreachable, reset } = recent.failures;
  return (
    refused + timedOut + unreachable + reset + Object.values(recent.refused).reduce((sum, n) => sum + n, 0)
  );
}
