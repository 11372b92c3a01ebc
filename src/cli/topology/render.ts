/** The map as text for a terminal, and for programs that draw graphs. */
import type { Edge, EdgesDocument, Node, Problem } from "../../telemetry/model.ts";
import { formatSpan, plural, table } from "../framework/output.ts";

const MARK: Record<Edge["state"], string> = { ok: " ", failing: "!", slow: "~", idle: "." };

/** Callers, then each unit with its services and their endpoints; below it the problems. */
export function renderMap(document: EdgesDocument): string {
  const nodes = new Map(document.nodes.map((node) => [node.id, node]));
  const name = (id: string) => label(nodes.get(id), id);
  const rows: (string | number)[][] = [];
  const isCarried = document.edges.some(({ carried }) => carried);
  const hasRates = document.window > 0;
  const put = (edge: Edge, what: string) =>
    rows.push([
      `${hasRates ? MARK[edge.state] : " "} ${what}`,
      ...(hasRates ? [edge.state] : []),
      ...(isCarried ? [wayOf(edge) || "-"] : []),
      ...(hasRates ? ratesOf(edge) : totalsOf(edge)),
    ]);
  const inbound = document.edges.filter(({ kind }) => kind === "inbound");
  for (const edge of sorted(inbound)) put(edge, `${name(edge.from)} -> ${name(edge.to)}:${edge.port}`);
  const shown = new Set<string>();
  const calls = document.edges.filter(({ kind }) => kind === "call" || kind === "passed");
  for (const unit of document.nodes.filter(({ kind }) => kind === "unit")) {
    for (const edge of sorted(calls.filter(({ from }) => from === unit.id))) {
      put(edge, `${unit.name} -> ${name(edge.to)}`);
      if (shown.has(edge.to)) continue;
      shown.add(edge.to);
      for (const leg of sorted(document.edges.filter(({ from }) => from === edge.to)))
        put(leg, `    -> ${name(leg.to)}`);
    }
  }
  // Endpoints of services that no unit of the selection calls.
  for (const edge of document.edges.filter(({ kind, from }) => kind === "endpoint" && !shown.has(from)))
    put(edge, `${name(edge.from)} -> ${name(edge.to)}`);
  const { host, workload, namespace } = document.machine;
  const machine = `${host} (${workload}${namespace === "" ? "" : `, namespace ${namespace}`})`;
  const head = hasRates
    ? `${machine}, the last ${formatSpan(document.window * 1000)}:`
    : `${host}, since the counters began:`;
  const body =
    rows.length === 0
      ? `No traffic.${hasRates ? " --idle shows what there was before." : ""}`
      : table(
          [
            "  WHO",
            ...(hasRates ? ["STATE"] : []),
            ...(isCarried ? ["TUNNEL"] : []),
            hasRates ? "CONN/s" : "CONN",
            "LIVE",
            "FAILED",
            "SENT",
            "RECEIVED",
            ...(hasRates ? ["RTT", "DURATION"] : []),
          ],
          rows,
        );
  const nothing = hasRates ? ["", "No problems."] : [];
  const trouble = document.problems.length === 0 ? nothing : ["", renderProblems(document.problems)];
  return [head, "", body, ...tunnelLines(document), ...trouble, ...notes(document)].join("\n");
}

/** The cells of an edge within the window. */
function ratesOf(edge: Edge): (string | number)[] {
  return [
    rate(edge.rate.opened),
    edge.live,
    edge.failureShare > 0 ? `${(edge.failureShare * 100).toFixed(edge.failureShare < 0.1 ? 1 : 0)}%` : "-",
    `${bytes(edge.rate.sent)}/s`,
    `${bytes(edge.rate.received)}/s`,
    edge.rtt ? ms(edge.rtt.mean) : "-",
    edge.duration ? formatSpan(edge.duration.mean * 1000) : "-",
  ];
}

/** The cells of an edge of which there are no rates. */
function totalsOf({ total, live }: Edge): (string | number)[] {
  const failures = [...Object.values(total.failures), ...Object.values(total.refused)];
  const failed = failures.reduce((sum, count) => sum + count, 0);
  return [total.opened, live, failed, bytes(total.sent), bytes(total.received)];
}

/** How the tunnel carries an edge, in the words of the column TUNNEL; "" when it does not. */
function wayOf({ carried }: Edge): string {
  if (!carried) return "";
  return { istio: "mTLS", hbone: "HBONE", tls: "TLS", "proxy-protocol": "PROXY" }[carried.by];
}

function tunnelLines({ tunnel }: EdgesDocument): string[] {
  if (!tunnel) return [];
  const { principal, certified, outbound, inbound, hbone, handshakes, peers } = tunnel;
  const ways = Object.entries({ out: outbound, in: inbound, "in by HBONE": hbone });
  const carried = ways
    .filter(([, { total }]) => total > 0)
    .map(
      ([name, { total, open, sent, received }]) =>
        `${total} ${name} (${open} open, ${bytes(sent)} sent, ${bytes(received)} received)`,
    );
  const failed = ways.flatMap(([name, { failures }]) =>
    Object.entries(failures).map(([reason, count]) => `${reason} ${name} ${count}`),
  );
  const identity = principal === "" ? "without a certificate" : `as ${principal}`;
  return [
    "",
    `Tunnel ${identity}${principal !== "" && !certified ? ", which is not valid" : ""}: ${[
      carried.length === 0 ? "nothing carried yet" : carried.join(", "),
      plural(handshakes, "handshake"),
      plural(Object.keys(peers).length, "peer"),
    ].join(", ")}.`,
    ...(failed.length > 0 ? [`Tunnel failures since it started: ${failed.join(", ")}.`] : []),
  ];
}

/** Worst first, each with what to type next. */
export function renderProblems(problems: readonly Problem[]): string {
  return problems
    .map(
      ({ severity, text, next, rule }) =>
        `${severity.toUpperCase()}  ${text} (${rule})\n       next: ${next}`,
    )
    .join("\n");
}

function notes({ limits }: EdgesDocument): string[] {
  const lines = [...limits.off];
  if (limits.other > 0)
    lines.push(
      `${plural(limits.other, "connection")} found no row of their own: ${limits.rows.used} of ${limits.rows.room} pairs, ${limits.callers.used} of ${limits.callers.room} callers are in use.`,
    );
  return lines.length > 0 ? ["", ...lines] : [];
}

/** For Graphviz. */
export function renderDot(document: EdgesDocument): string {
  const colour: Record<Edge["state"], string> = { ok: "black", failing: "red", slow: "orange", idle: "gray" };
  const shape: Record<Node["kind"], string> = {
    caller: "ellipse",
    unit: "box",
    service: "hexagon",
    endpoint: "oval",
    outside: "cds",
  };
  const quote = (text: string) =>
    `"${text.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", " ")}"`;
  return [
    "digraph kmesh {",
    "  rankdir=LR;",
    ...document.nodes.map(
      (node) => `  ${quote(node.id)} [label=${quote(label(node, node.id))}, shape=${shape[node.kind]}];`,
    ),
    ...document.edges.map(
      (edge) =>
        `  ${quote(edge.from)} -> ${quote(edge.to)} [label=${quote(legend(edge))}, color=${colour[edge.state]}${edge.carried?.mutualTls ? ", style=bold" : ""}];`,
    ),
    "}",
  ].join("\n");
}

/** For Markdown. Ids of Mermaid are plain words, so nodes are numbered. */
export function renderMermaid(document: EdgesDocument): string {
  const ids = new Map(document.nodes.map((node, i) => [node.id, `n${i}`]));
  // A quote, a bracket or a line's end would end the text: Mermaid takes entities.
  const quote = (text: string) => `"${text.replace(/["&<>#\n`|]/g, (char) => `#${char.charCodeAt(0)};`)}"`;
  const failing = document.edges.flatMap((edge, i) => (edge.state === "failing" ? [i] : []));
  return [
    "flowchart LR",
    ...document.nodes.map((node) => `  ${ids.get(node.id)}[${quote(label(node, node.id))}]`),
    ...document.edges.map(
      (edge) =>
        `  ${ids.get(edge.from)} ${edge.carried?.mutualTls ? "==>" : "-->"}|${quote(legend(edge))}| ${ids.get(edge.to)}`,
    ),
    ...(failing.length > 0 ? [`  linkStyle ${failing.join(",")} stroke:#c00`] : []),
  ].join("\n");
}

/** A line an edge, those first that `by` says. */
export function renderTop(document: EdgesDocument, by: TopOrder, lines: number): string {
  if (document.window === 0) return [...document.limits.off, "kmesh topology shows the totals."].join("\n");
  const nodes = new Map(document.nodes.map((node) => [node.id, node]));
  const edges = document.edges
    .filter(({ kind }) => kind !== "endpoint")
    .sort((a, b) => weight(b, by) - weight(a, by) || (a.id < b.id ? -1 : 1))
    .slice(0, lines);
  return table(
    ["FROM", "TO", "STATE", "CONN/s", "LIVE", "FAILED/s", "SENT", "RECEIVED", "RTT"],
    edges.map((edge) => [
      label(nodes.get(edge.from), edge.from),
      label(nodes.get(edge.to), edge.to),
      edge.state,
      rate(edge.rate.opened),
      edge.live,
      rate(edge.rate.failed),
      `${bytes(edge.rate.sent)}/s`,
      `${bytes(edge.rate.received)}/s`,
      edge.rtt ? ms(edge.rtt.mean) : "-",
    ]),
  );
}

export const TOP_ORDERS = ["rate", "failures", "latency", "bytes"] as const;
export type TopOrder = (typeof TOP_ORDERS)[number];

function weight(edge: Edge, by: TopOrder): number {
  if (by === "failures") return edge.rate.failed;
  if (by === "latency") return edge.rtt?.mean ?? 0;
  if (by === "bytes") return edge.rate.sent + edge.rate.received;
  return edge.rate.opened;
}

function sorted(edges: readonly Edge[]): Edge[] {
  const rank: Record<Edge["state"], number> = { failing: 0, slow: 1, ok: 2, idle: 3 };
  return [...edges].sort((a, b) => rank[a.state] - rank[b.state] || (a.id < b.id ? -1 : 1));
}

function label(node: Node | undefined, id: string): string {
  if (!node) return id;
  if (node.kind === "service")
    return `${node.name}${node.namespace === "" ? "" : `.${node.namespace}`}${node.port > 0 ? `:${node.port}` : ""}`;
  if (node.kind === "endpoint") {
    const at = node.address.includes(":") ? `[${node.address}]:${node.port}` : `${node.address}:${node.port}`;
    return node.workload ? `${node.name} ${at}` : at;
  }
  if (node.kind === "caller" && node.workload) return `${node.name} (${node.address})`;
  return node.name;
}

function legend(edge: Edge): string {
  const failed = edge.failureShare > 0 ? `, ${(edge.failureShare * 100).toFixed(0)}% failed` : "";
  const way = wayOf(edge);
  return `${way === "" ? "" : `${way}, `}${rate(edge.rate.opened)}/s${failed}`;
}

function rate(perSecond: number): string {
  if (perSecond === 0) return "0";
  return perSecond >= 10 ? perSecond.toFixed(0) : perSecond.toFixed(2);
}

export function bytes(count: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = count;
  let at = 0;
  while (value >= 1000 && at < units.length - 1) {
    value /= 1000;
    at++;
  }
  return `${value >= 100 || at === 0 ? value.toFixed(0) : value.toFixed(1)} ${units[at]}`;
}

function ms(us: number): string {
  return us < 10_000 ? `${(us / 1000).toFixed(2)} ms` : `${(us / 1000).toFixed(0)} ms`;
}
