/** Which part of the map is asked for. */
import type { Edge, EdgesDocument, Node } from "../../telemetry/model.ts";

export interface Selection {
  /** Only edges that touch a node of this namespace. */
  namespace?: string;
  /** Only edges with a problem, and what hangs on them. */
  failing?: boolean;
  /** Edges without traffic in the window, too. */
  idle?: boolean;
}

/** The document with the edges that are asked for, and the nodes at their ends. */
export function select(document: EdgesDocument, { namespace, failing, idle }: Selection): EdgesDocument {
  const nodes = new Map(document.nodes.map((node) => [node.id, node]));
  const inNamespace = (id: string) => nodes.get(id)?.namespace === namespace;
  const subjects = new Set(document.problems.map(({ subject }) => subject));
  const isBad = (edge: Edge) =>
    edge.state === "failing" ||
    edge.state === "slow" ||
    subjects.has(edge.id) ||
    subjects.has(edge.to) ||
    subjects.has(edge.from);
  const edges = document.edges.filter(
    (edge) =>
      (idle || failing || document.window === 0 || edge.state !== "idle" || edge.live > 0) &&
      (namespace === undefined || inNamespace(edge.from) || inNamespace(edge.to)) &&
      (!failing || isBad(edge)),
  );
  const kept = new Set(edges.flatMap(({ from, to }) => [from, to]));
  return { ...document, edges, nodes: document.nodes.filter(({ id }: Node) => kept.has(id)) };
}
