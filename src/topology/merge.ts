/**
 * Makes one map from the exports of several machines. Services and endpoints have the same ids everywhere. Units do not, so
 * they get their machine's name. A connection between two of the machines is counted at both ends and becomes one edge:
 *
 *     unit@A -> service -> endpoint B:port        and        caller A -> unit@B, port
 *
 * Where A counts it by the endpoint, B's inbound edge becomes `peer` of A's edge, and the endpoint names the unit of B that
 * accepts there. Other inbound edges stay.
 */
import type {
  Carried,
  Edge,
  EdgeCounters,
  EdgesDocument,
  EndpointNode,
  Node,
  Problem,
} from "../telemetry/model.ts";
import { severityRank } from "./health.ts";

/** Several documents, of one machine each. A single machine's is given back as it is. Throws RangeError for none. */
export function mergeDocuments(documents: readonly EdgesDocument[]): EdgesDocument {
  const [first] = documents;
  if (!first) throw new RangeError("there is no document to merge");
  const newest = newestOfEachMachine(documents);
  const [only] = newest;
  if (only && newest.length === 1) return only;
  const parts = newest.map(withMachine);
  const owner = new Map<string, string>();
  for (const { machine } of parts) for (const address of machine.addresses) owner.set(address, machine.host);

  const nodes = new Map<string, Node>();
  for (const node of parts.flatMap((part) => part.nodes))
    nodes.set(node.id, mergeNode(nodes.get(node.id), node));
  const edges = new Map<string, Edge>();
  for (const edge of parts.flatMap((part) => part.edges)) {
    const known = edges.get(edge.id);
    edges.set(edge.id, known ? addEdges(known, edge) : edge);
  }
  joinEnds(nodes, edges, owner);
  const used = new Set([...edges.values()].flatMap(({ from, to }) => [from, to]));
  const callers = [...nodes.values()].filter(({ kind, id }) => kind === "caller" && !used.has(id));
  for (const { id } of callers) nodes.delete(id);
  const problems = mergeProblems(parts).filter(({ subject }) => nodes.has(subject) || edges.has(subject));
  const sum = (of: (part: EdgesDocument) => number) => parts.reduce((all, part) => all + of(part), 0);
  return {
    version: 1,
    at:
      parts
        .map(({ at }) => at)
        .sort()
        .at(-1) ?? first.at,
    window: Math.max(...parts.map(({ window }) => window)),
    history: Math.min(...parts.map(({ history }) => history)),
    machine: {
      host: parts.map(({ machine }) => machine.host).join(", "),
      workload: `${parts.length} machines`,
      namespace: "",
      cluster: first.machine.cluster,
      addresses: parts.flatMap(({ machine }) => machine.addresses),
    },
    nodes: [...nodes.values()].sort((a, b) => kindRank(a) - kindRank(b) || compare(a.id, b.id)),
    edges: [...edges.values()].sort((a, b) => compare(a.id, b.id)),
    problems,
    limits: {
      rows: { used: sum(({ limits }) => limits.rows.used), room: sum(({ limits }) => limits.rows.room) },
      callers: {
        used: sum(({ limits }) => limits.callers.used),
        room: sum(({ limits }) => limits.callers.room),
      },
      other: sum(({ limits }) => limits.other),
      off: parts.flatMap(({ machine, limits }) => limits.off.map((text) => `${machine.host}: ${text}`)),
    },
  };
}

/** Of two documents of one machine, the newer one. */
function newestOfEachMachine(documents: readonly EdgesDocument[]): EdgesDocument[] {
  const machines = Map.groupBy(documents, ({ machine }) =>
    JSON.stringify([machine.host, [...machine.addresses].sort()]),
  );
  return [...machines.values()].flatMap((same) => same.toSorted((a, b) => compare(b.at, a.at)).slice(0, 1));
}

/** With units that carry the machine's name. */
function withMachine(document: EdgesDocument): EdgesDocument {
  const { host } = document.machine;
  const units = new Set(document.nodes.filter(({ kind }) => kind === "unit").map(({ id }) => id));
  const rename = (id: string) => (units.has(id) ? `${id}@${host}` : id);
  const ids = new Map(
    document.edges.map(({ id, from, to, kind, port }) => {
      // Accepted ports of one pair are edges of their own; their id may hold more than the two ends.
      const fresh = id.replace(`${from} -> ${to}`, `${rename(from)} -> ${rename(to)}`);
      return [id, kind === "inbound" || port === 0 ? fresh : id] as const;
    }),
  );
  return {
    ...document,
    nodes: document.nodes.map((node) =>
      units.has(node.id) ? { ...node, id: rename(node.id), name: `${node.name} on ${host}` } : node,
    ),
    edges: document.edges.map((edge) => ({
      ...edge,
      id: ids.get(edge.id) ?? edge.id,
      from: rename(edge.from),
      to: rename(edge.to),
    })),
    problems: document.problems.map((problem) => ({
      ...problem,
      subject: ids.get(problem.subject) ?? rename(problem.subject),
      text: `${host}: ${problem.text}`,
    })),
  };
}

/** A node with a name wins over one without; an ejection at one machine is shown. */
function mergeNode(known: Node | undefined, node: Node): Node {
  if (!known) return node;
  const [more, less] =
    known.unknown !== undefined && node.unknown === undefined ? [node, known] : [known, node];
  return { ...less, ...more } as Node;
}

/** Removes what B accepted from A where A counts it, too. */
function joinEnds(
  nodes: Map<string, Node>,
  edges: Map<string, Edge>,
  owner: ReadonlyMap<string, string>,
): void {
  const endpoints = [...nodes.values()].filter((node): node is EndpointNode => node.kind === "endpoint");
  const legs = new Map(
    [...edges.values()].filter(({ kind }) => kind === "endpoint").map((edge) => [edge.to, edge]),
  );
  const inbound = [...edges.values()].filter(({ kind }) => kind === "inbound");
  for (const edge of inbound) {
    const caller = nodes.get(edge.from);
    if (caller?.kind !== "caller" || !owner.has(caller.address)) continue;
    const host = edge.to.slice(edge.to.lastIndexOf("@") + 1);
    const endpoint = endpoints.find(({ address, port }) => port === edge.port && owner.get(address) === host);
    const leg = endpoint && legs.get(endpoint.id);
    if (!endpoint || !leg) continue;
    const peer = leg.peer ? addCounters(leg.peer, edge.recent) : edge.recent;
    edges.set(leg.id, { ...leg, peer });
    legs.set(endpoint.id, { ...leg, peer });
    nodes.set(endpoint.id, { ...endpoint, unit: edge.to });
    edges.delete(edge.id);
  }
}

/** Adds the connections of two machines on the same edge. Means are weighted by their numbers of connections. */
function addEdges(a: Edge, b: Edge): Edge {
  const mean = (of: (edge: Edge) => { mean: number } | undefined) => {
    const known = [a, b].flatMap((edge) => {
      const value = of(edge);
      return value ? [{ mean: value.mean, count: Math.max(1, edge.recent.closed) }] : [];
    });
    const count = known.reduce((sum, each) => sum + each.count, 0);
    return count === 0
      ? undefined
      : { mean: known.reduce((sum, each) => sum + each.mean * each.count, 0) / count };
  };
  const means = Object.entries({
    rtt: mean(({ rtt }) => rtt),
    failed: mean(({ failed }) => failed),
    duration: mean(({ duration }) => duration),
  }).filter(([, value]) => value !== undefined);
  const usedAt = [a.usedAt, b.usedAt]
    .filter((time) => time !== undefined)
    .sort()
    .at(-1);
  const recent = addCounters(a.recent, b.recent);
  const opened = a.recent.opened + b.recent.opened;
  const { histograms: _, carried, ...rest } = a;
  return {
    ...rest,
    ...Object.fromEntries(means),
    ...(usedAt === undefined ? {} : { usedAt }),
    ...(carried && isSameWay(carried, b.carried) ? { carried } : {}),
    total: addCounters(a.total, b.total),
    recent,
    live: a.live + b.live,
    rate: {
      opened: a.rate.opened + b.rate.opened,
      failed: a.rate.failed + b.rate.failed,
      sent: a.rate.sent + b.rate.sent,
      received: a.rate.received + b.rate.received,
    },
    failureShare:
      opened === 0
        ? Math.max(a.failureShare, b.failureShare)
        : (a.failureShare * a.recent.opened + b.failureShare * b.recent.opened) / opened,
    state: severityRank(a.state) < severityRank(b.state) ? a.state : b.state,
  };
}

function isSameWay(a: Carried, b: Carried | undefined): boolean {
  return a.by === b?.by && a.mutualTls === b.mutualTls && a.principal === b.principal;
}

function addCounters(a: EdgeCounters, b: EdgeCounters): EdgeCounters {
  const refused = { ...a.refused };
  for (const [reason, count] of Object.entries(b.refused)) refused[reason] = (refused[reason] ?? 0) + count;
  return {
    opened: a.opened + b.opened,
    closed: a.closed + b.closed,
    sent: a.sent + b.sent,
    received: a.received + b.received,
    retransmits: a.retransmits + b.retransmits,
    failures: {
      refused: a.failures.refused + b.failures.refused,
      timedOut: a.failures.timedOut + b.failures.timedOut,
      unreachable: a.failures.unreachable + b.failures.unreachable,
      reset: a.failures.reset + b.failures.reset,
    },
    refused,
  };
}

/** Worst first. */
function mergeProblems(parts: readonly EdgesDocument[]): Problem[] {
  const rank = { error: 0, warning: 1, info: 2 };
  return parts
    .flatMap(({ problems }) => problems)
    .sort(
      (a, b) => rank[a.severity] - rank[b.severity] || b.value - a.value || compare(a.subject, b.subject),
    );
}

function kindRank({ kind }: Node): number {
  return ["caller", "unit", "service", "endpoint", "outside"].indexOf(kind);
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
