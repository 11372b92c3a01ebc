/**
 * Peers that inbound policies refused, as the access log and the map show them. The kernel keeps the last 64 refusals, so
 * there may have been more than are counted here.
 */
import type { RecentRefusal } from "../inbound/refusals.ts";
import { parseWorkload } from "./labels.ts";
import type { CallerNode, EdgesDocument, Problem } from "./model.ts";

/**
 * The document with a problem for each (peer, port, policy) of the refusals in its window, and a node for each of these peers.
 * `workloadOf` gives a caller's workload as istiod names it, or "".
 */
export function withRefusedPeers(
  document: EdgesDocument,
  refusals: readonly RecentRefusal[],
  workloadOf: (address: string) => string,
): EdgesDocument {
  const groups = new Map<string, { refusal: RecentRefusal; count: number }>();
  for (const refusal of refusals) {
    if (refusal.ago > document.window) continue;
    const key = `${refusal.source} ${refusal.port} ${refusal.by}`;
    const group = groups.get(key);
    if (group) group.count++;
    else groups.set(key, { refusal, count: 1 });
  }
  if (groups.size === 0) return document;
  const known = new Set(document.nodes.map(({ id }) => id));
  const callers = new Map<string, CallerNode>();
  const problems: Problem[] = [];
  for (const { refusal, count } of groups.values()) {
    const { source, port, by } = refusal;
    const id = `caller:${source}`;
    if (!known.has(id) && !callers.has(id)) callers.set(id, callerOf(id, source, workloadOf(source)));
    problems.push({
      ...{ subject: id, rule: "refused-by-policy", severity: "warning", value: count },
      text: `${count} ${count === 1 ? "connection" : "connections"} from ${source} to port ${port} of this machine ${count === 1 ? "was" : "were"} refused by ${by}`,
      next: `kmesh explain --from ${source} --to ${port}`,
    });
  }
  problems.sort((a, b) => b.value - a.value || (a.text < b.text ? -1 : 1));
  const isCaller = ({ kind }: { kind: string }) => kind === "caller";
  const all = [...document.nodes.filter(isCaller), ...callers.values()];
  all.sort((a, b) => (a.id < b.id ? -1 : 1));
  const others = document.nodes.filter((node) => !isCaller(node));
  const rank = { error: 0, warning: 1, info: 2 };
  const merged = [...document.problems, ...problems];
  return {
    ...document,
    nodes: [...all, ...others],
    problems: merged.sort((a, b) => rank[a.severity] - rank[b.severity] || b.value - a.value),
  };
}

function callerOf(id: string, address: string, text: string): CallerNode {
  const workload = parseWorkload(text);
  const base = { id, kind: "caller" as const, address, namespace: workload?.namespace ?? "" };
  if (workload) return { ...base, name: workload.name, workload };
  return { ...base, name: address, unknown: "istiod names no workload at this address" };
}
