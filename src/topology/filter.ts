/** Which part of a document the page shows. Pure. */
import type { Edge, EdgesDocument, Node } from "../telemetry/model.ts";
import { isTrouble } from "./health.ts";

export interface Filter {
  /** Words that a node's name, host, namespace or address must contain; "" for all. */
  search: string;
  /** A namespace; "" for all. */
  namespace: string;
  /** The id of a unit; "" for all. */
  unit: string;
  /** Only what has a problem, and the edges that lead to it. */
  failing: boolean;
  /** Also edges without traffic in the window. */
  idle: boolean;
}

export const NO_FILTER: Filter = { search: "", namespace: "", unit: "", failing: false, idle: false };

/**
 * The document with the edges that match the filter, and the nodes at their ends. Edges with trouble count as not idle. A node
 * that is found comes with all edges that lead to it and from it. Nodes that have a problem of their own need no edge.
 */
export function filterDocument(document: EdgesDocument, filter: Filter): EdgesDocument {
  const nodes = new Map(document.nodes.map((node) => [node.id, node]));
  const troubled = new Set(
    document.problems.filter(({ severity }) => severity !== "info").map(({ subject }) => subject),
  );
  const isBad = ({ id, state }: Edge) => isTrouble(state) || troubled.has(id);
  let edges = document.edges.filter(
    (edge) => filter.idle || edge.state !== "idle" || edge.live > 0 || isBad(edge),
  );
  let alone = document.nodes.filter(({ id }) => troubled.has(id));
  const narrow = (matches: (node: Node) => boolean) => {
    const found = new Set(document.nodes.filter(matches).map(({ id }) => id));
    edges = around(edges, found);
    alone = alone.filter(({ id }) => found.has(id));
  };
  const words = filter.search.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length > 0) narrow((node) => words.every((word) => textOf(node).includes(word)));
  if (filter.namespace !== "") narrow(({ namespace }) => namespace === filter.namespace);
  if (filter.unit !== "") narrow(({ id }) => id === filter.unit);
  if (filter.failing) {
    const bad = edges.filter((edge) => isBad(edge) || troubled.has(edge.to));
    const kept = new Set([...bad, ...upstream(edges, new Set(bad.map(({ from }) => from)))]);
    edges = edges.filter((edge) => kept.has(edge));
  }
  const kept = new Set([...edges.flatMap(({ from, to }) => [from, to]), ...alone.map(({ id }) => id)]);
  const ids = new Set([...kept, ...edges.map(({ id }) => id)]);
  return {
    ...document,
    edges,
    nodes: [...nodes.values()].filter(({ id }) => kept.has(id)),
    problems: document.problems.filter(({ subject }) => ids.has(subject)),
  };
}

/** The text in which a node is searched, in lower case. */
function textOf(node: Node): string {
  const parts = [node.id, node.name, node.namespace];
  if ("host" in node) parts.push(node.host);
  if ("address" in node) parts.push(node.address);
  if ("workload" in node && node.workload) parts.push(node.workload.name, node.workload.canonicalService);
  return parts.join(" ").toLowerCase();
}

/** The edges on paths through one of the nodes. */
function around(edges: readonly Edge[], nodes: ReadonlySet<string>): Edge[] {
  const kept = new Set([...upstream(edges, nodes), ...downstream(edges, nodes)]);
  return edges.filter((edge) => kept.has(edge));
}

function upstream(edges: readonly Edge[], nodes: ReadonlySet<string>): Edge[] {
  return follow(
    edges,
    nodes,
    (edge) => edge.to,
    (edge) => edge.from,
  );
}

function downstream(edges: readonly Edge[], nodes: ReadonlySet<string>): Edge[] {
  return follow(
    edges,
    nodes,
    (edge) => edge.from,
    (edge) => edge.to,
  );
}

/** Edges that are reached from the nodes in one direction; each once, so that a circle ends. */
function follow(
  edges: readonly Edge[],
  nodes: ReadonlySet<string>,
  near: (edge: Edge) => string,
  far: (edge: Edge) => string,
): Edge[] {
  const at = Map.groupBy(edges, near);
  const seen = new Set(nodes);
  const found: Edge[] = [];
  const next = [...nodes];
  for (let id = next.pop(); id !== undefined; id = next.pop())
    for (const edge of at.get(id) ?? []) {
      found.push(edge);
      if (seen.has(far(edge))) continue;
      seen.add(far(edge));
      next.push(far(edge));
    }
  return found;
}
