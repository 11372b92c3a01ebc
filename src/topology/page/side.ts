/** The panel beside the map: problems, and what is known of the selected node or edge. */
import type { Edge, EdgeHistory, EdgesDocument, Node, Problem, Workload } from "../../telemetry/model.ts";
import {
  describeNode,
  describeWay,
  endpointAddress,
  formatBytes,
  formatCount,
  formatMicroseconds,
  formatRate,
  formatSeconds,
  formatShare,
} from "../format.ts";
import { failuresOf, nodeStates, STATE_WORDS, severityRank } from "../health.ts";
import { html } from "./dom.ts";
import { icon } from "./symbols.ts";
import { nameOf } from "./table.ts";

export interface SideListener {
  select(id: string | undefined): void;
  /** Rejects with a sentence when there is none. */
  history(edge: string): Promise<EdgeHistory>;
}

const SEVERITIES = {
  error: { state: "failing", word: "Error" },
  warning: { state: "slow", word: "Warning" },
  info: { state: "idle", word: "Note" },
} as const;

/** Most entries of a list; the table has all. */
const MOST_EDGES = 40;
const MOST_PROBLEMS = 100;

export class SideView {
  readonly element: HTMLElement;
  readonly #listener: SideListener;
  readonly #details = html("section", { class: "details", "aria-label": "Details", hidden: true });
  readonly #problems = html("section", { class: "problems", "aria-label": "Problems" });
  /** The edge and the document of the curves. They are fetched again when one of the two changes. */
  #curves: { edge: string; at: string; element: HTMLElement } | undefined;

  constructor(listener: SideListener) {
    this.#listener = listener;
    this.element = html(
      "aside",
      { class: "side", "aria-label": "Problems and details" },
      this.#details,
      this.#problems,
    );
  }

  draw(document: EdgesDocument, selected: string | undefined): void {
    const active = window.document.activeElement;
    const key =
      active instanceof HTMLElement && this.element.contains(active) ? active.dataset.key : undefined;
    this.#drawProblems(document, selected);
    this.#drawDetails(document, selected);
    if (key !== undefined)
      this.element
        .querySelector<HTMLElement>(`[data-key="${CSS.escape(key)}"]`)
        ?.focus({ preventScroll: true });
  }

  #drawProblems({ problems, limits }: EdgesDocument, selected: string | undefined): void {
    const errors = problems.filter(({ severity }) => severity !== "info").length;
    this.#problems.replaceChildren(
      html("h2", {}, "Problems ", html("span", { class: "count" }, String(errors))),
      problems.length === 0
        ? html("p", { class: "calm" }, icon("ok"), "No problems in this time.")
        : html(
            "ol",
            {},
            ...problems.slice(0, MOST_PROBLEMS).map((problem) => this.#problem(problem, selected)),
          ),
      ...(problems.length > MOST_PROBLEMS
        ? [
            html(
              "p",
              { class: "muted" },
              `${problems.length - MOST_PROBLEMS} more: kmesh topology --problems`,
            ),
          ]
        : []),
      ...notes(limits).map((text) => html("p", { class: "note" }, text)),
    );
  }

  #problem({ subject, severity, text, rule, next }: Problem, selected: string | undefined): HTMLElement {
    const { state, word } = SEVERITIES[severity];
    return html(
      "li",
      { class: severity },
      html(
        "button",
        {
          type: "button",
          class: "problem",
          "data-key": `${rule} ${subject}`,
          "aria-current": subject === selected ? "true" : undefined,
          click: () => this.#listener.select(subject),
        },
        icon(state),
        html("span", {}, html("b", {}, `${word}: ${rule.replaceAll("-", " ")}`), html("span", {}, text)),
      ),
      commandLine(next, `${rule} ${subject}`),
    );
  }

  #drawDetails(document: EdgesDocument, selected: string | undefined): void {
    const nodes = new Map(document.nodes.map((node) => [node.id, node]));
    const edge = document.edges.find(({ id }) => id === selected);
    const node = selected === undefined ? undefined : nodes.get(selected);
    const isGone = selected !== undefined && !edge && !node;
    this.#details.hidden = selected === undefined;
    if (selected === undefined) {
      this.#curves = undefined;
      return;
    }
    const close = html(
      "button",
      {
        type: "button",
        class: "close",
        "aria-label": "Close details",
        title: "Close (Escape)",
        "data-key": "close",
        click: () => this.#listener.select(undefined),
      },
      "×",
    );
    if (edge) this.#details.replaceChildren(close, ...this.#edgeDetails(edge, nodes, document));
    else if (node) this.#details.replaceChildren(close, ...this.#nodeDetails(node, nodes, document));
    else if (isGone) {
      const many = document.edges.filter(({ id }) => selectedEdges(selected).has(id));
      this.#details.replaceChildren(
        close,
        html("h2", {}, many.length > 0 ? `${many.length} edges` : "Not in this selection"),
        many.length > 0
          ? this.#edgeList(many, nodes, "both")
          : html("p", { class: "muted" }, "It had no traffic in this time, or a filter hides it."),
      );
    }
  }

  #edgeDetails(edge: Edge, nodes: ReadonlyMap<string, Node>, document: EdgesDocument): HTMLElement[] {
    const end = (id: string) =>
      html(
        "button",
        { type: "button", class: "link", "data-key": `end ${id}`, click: () => this.#listener.select(id) },
        nameOf(nodes.get(id), id),
      );
    const { refused, timedOut, unreachable, reset } = edge.recent.failures;
    const kinds = [
      ...Object.entries({ refused, "timed out": timedOut, unreachable, reset }),
      ...Object.entries(edge.recent.refused).map(([reason, count]): [string, number] => [
        `on purpose: ${reason}`,
        count,
      ]),
    ].filter(([, count]) => count > 0);
    const rows: [string, string][] = [
      ["Connections", `${formatRate(edge.rate.opened)} (${formatCount(edge.recent.opened)})`],
      ["Open now", formatCount(edge.live)],
      [
        "Failed",
        failuresOf(edge) === 0
          ? "none"
          : `${formatCount(failuresOf(edge))} (${formatShare(edge.failureShare)})`,
      ],
      ...kinds.map(([kind, count]): [string, string] => [`· ${kind}`, formatCount(count)]),
      ["Sent", `${formatBytes(edge.rate.sent)}/s (${formatBytes(edge.recent.sent)})`],
      ["Received", `${formatBytes(edge.rate.received)}/s (${formatBytes(edge.recent.received)})`],
      ["Retransmits", `${formatCount(edge.recent.retransmits)} segments`],
      ["Round trip, least", edge.rtt ? formatMicroseconds(edge.rtt.mean) : "no connection ended"],
      ["Duration", edge.duration ? formatSeconds(edge.duration.mean) : "no connection ended"],
      ...(edge.failed
        ? [["Until a failure", formatSeconds(edge.failed.mean / 1000)] as [string, string]]
        : []),
      ["Ever", `${formatCount(edge.total.opened)} connections`],
      ...(edge.peer
        ? [["Seen by the other end", `${formatCount(edge.peer.opened)} connections`] as [string, string]]
        : []),
      ...(edge.kind === "endpoint" || edge.kind === "call" || edge.carried ? wayFacts(edge) : []),
      ["Last used", edge.usedAt ? ago(edge.usedAt, document.at) : "not known"],
    ];
    return [
      html("p", { class: "kind" }, edge.kind === "inbound" ? `Accepted here, port ${edge.port}` : "Edge"),
      html(
        "h2",
        {},
        end(edge.from),
        html("span", { class: "arrow-to", "aria-label": "to" }, " → "),
        end(edge.to),
      ),
      stateLine(edge.state, document.window),
      definitions(rows),
      this.#curvesOf(edge.id, document.at),
      commands(commandsOf(edge, nodes)),
    ];
  }

  #nodeDetails(node: Node, nodes: ReadonlyMap<string, Node>, document: EdgesDocument): HTMLElement[] {
    const edges = document.edges.filter(({ from, to }) => from === node.id || to === node.id);
    const incoming = edges.filter(({ to }) => to === node.id);
    const outgoing = edges.filter(({ from }) => from === node.id);
    const { title } = describeNode(node);
    return [
      html("p", { class: "kind" }, KIND_TITLES[node.kind]),
      html("h2", {}, title),
      stateLine(nodeStates(document).get(node.id) ?? "idle", document.window),
      ...(node.unknown === undefined
        ? []
        : [html("p", { class: "note" }, `Why it has no better name: ${node.unknown}`)]),
      definitions(factsOf(node)),
      ...(incoming.length > 0 ? [html("h3", {}, "From"), this.#edgeList(incoming, nodes, "from")] : []),
      ...(outgoing.length > 0 ? [html("h3", {}, "To"), this.#edgeList(outgoing, nodes, "to")] : []),
      commands(commandsOf(node, nodes)),
    ];
  }

  #edgeList(
    edges: readonly Edge[],
    nodes: ReadonlyMap<string, Node>,
    show: "from" | "to" | "both",
  ): HTMLElement {
    const name = (id: string) => nameOf(nodes.get(id), id);
    const sorted = edges.toSorted(
      (a, b) => severityRank(a.state) - severityRank(b.state) || (a.id < b.id ? -1 : 1),
    );
    const title = ({ from, to }: Edge) =>
      show === "both" ? `${name(from)} → ${name(to)}` : name(show === "from" ? from : to);
    return html(
      "ul",
      { class: "edges" },
      ...sorted.slice(0, MOST_EDGES).map((edge) =>
        html(
          "li",
          {},
          html(
            "button",
            {
              type: "button",
              "data-key": `edge ${edge.id}`,
              "aria-label": `${STATE_WORDS[edge.state]}: ${title(edge)}, ${formatRate(edge.rate.opened)}`,
              click: () => this.#listener.select(edge.id),
            },
            icon(edge.state),
            html("span", { class: "name" }, title(edge)),
            html(
              "span",
              { class: "number" },
              edge.failureShare > 0
                ? `${formatShare(edge.failureShare)} failed`
                : formatRate(edge.rate.opened),
            ),
          ),
        ),
      ),
      ...(sorted.length > MOST_EDGES
        ? [html("li", { class: "muted" }, `${sorted.length - MOST_EDGES} more in the table`)]
        : []),
    );
  }

  /** The curves that are there stay until newer ones have come. */
  #curvesOf(edge: string, at: string): HTMLElement {
    if (this.#curves?.edge === edge && this.#curves.at === at) return this.#curves.element;
    const element = this.#curves?.edge === edge ? this.#curves.element : html("div", { class: "curves" });
    this.#curves = { edge, at, element };
    // The curves' library begins to run here: the first picture does not wait for it.
    Promise.all([this.#listener.history(edge), import("./chart.ts")]).then(
      ([history, { charts }]) => {
        if (this.#curves?.edge === edge)
          element.replaceChildren(charts(history, Math.max(220, element.clientWidth || 300)));
      },
      (error: Error) => element.replaceChildren(html("p", { class: "muted" }, `No curve: ${error.message}.`)),
    );
    return element;
  }
}

const KIND_TITLES: Readonly<Record<Node["kind"], string>> = {
  caller: "Caller",
  unit: "Unit of this machine",
  service: "Service",
  endpoint: "Endpoint",
  outside: "Outside the mesh",
};

/** The edges of a link between groups are chosen together: their ids, one a line. */
export function joinEdges(edges: readonly string[]): string {
  return edges.join("\n");
}

function selectedEdges(selected: string): Set<string> {
  return new Set(selected.split("\n"));
}

function stateLine(state: Edge["state"], window: number): HTMLElement {
  return html(
    "p",
    { class: `state-line ${state}` },
    icon(state),
    `${STATE_WORDS[state]}, the last ${formatSeconds(window)}`,
  );
}

function definitions(rows: readonly (readonly [string, string])[]): HTMLElement {
  return html("dl", {}, ...rows.flatMap(([name, value]) => [html("dt", {}, name), html("dd", {}, value)]));
}

function wayFacts({ kind, carried }: Edge): [string, string][] {
  const peer = kind === "inbound" ? "The caller is" : "The peer must be";
  return [
    ["Protected by", describeWay(carried)],
    ...(carried?.principal ? [[peer, carried.principal] as [string, string]] : []),
  ];
}

function workloadFacts(workload: Workload | undefined): [string, string][] {
  return workload === undefined
    ? []
    : [
        ["Workload", workload.name],
        ["Canonical service", `${workload.canonicalService} (${workload.canonicalRevision})`],
        ["Cluster", workload.cluster],
      ];
}

function factsOf(node: Node): [string, string][] {
  const namespace: [string, string][] = node.namespace === "" ? [] : [["Namespace", node.namespace]];
  switch (node.kind) {
    case "caller":
      return [["Address", node.address], ...namespace, ...workloadFacts(node.workload)];
    case "unit":
      return [["Kind", node.source === "unit" ? "systemd unit" : node.source], ...namespace];
    case "service":
      return [
        ["Host", node.host],
        ["Port", String(node.port)],
        ...namespace,
        ...(node.endpoints
          ? [["Endpoints", `${node.endpoints.usable} of ${node.endpoints.known} usable`] as [string, string]]
          : []),
        ...(node.limit
          ? [
              [
                "Connections",
                `${formatCount(node.limit.live)} of at most ${formatCount(node.limit.most)}`,
              ] as [string, string],
            ]
          : []),
      ];
    case "endpoint":
      return [
        ["Address", endpointAddress(node.address, node.port)],
        ...namespace,
        ...workloadFacts(node.workload),
        ...(node.unit === undefined
          ? []
          : [["Accepted by", node.unit.replace(/^[a-z]+:/, "")] as [string, string]]),
        ...(node.ejected === undefined
          ? []
          : [["Left out for", `${formatSeconds(node.ejected)} more`] as [string, string]]),
      ];
    case "outside":
      return namespace;
  }
}

/** Commands that show more. */
function commandsOf(subject: Node | Edge, nodes: ReadonlyMap<string, Node>): string[] {
  const ends = "from" in subject ? [nodes.get(subject.from), nodes.get(subject.to)] : [subject];
  return ends.flatMap((node): string[] => {
    if (node?.kind === "service" && node.port > 0)
      return [
        `kmesh explain ${node.host}:${node.port}`,
        `kmesh log --follow --service ${node.host}:${node.port}`,
      ];
    if (node?.kind === "unit") return [`kmesh log --follow --unit ${node.name}`];
    if (node?.kind === "endpoint") return [`ping -c 5 ${node.address}`];
    return [];
  });
}

function commands(lines: readonly string[]): HTMLElement {
  if (lines.length === 0) return html("div");
  return html(
    "div",
    { class: "commands" },
    html("h3", {}, "Look closer"),
    ...lines.map((line) => commandLine(line, "more")),
  );
}

function commandLine(text: string, key: string): HTMLElement {
  const button = html(
    "button",
    {
      type: "button",
      class: "copy",
      "data-key": `copy ${key} ${text}`,
      "aria-label": `Copy the command ${text}`,
    },
    "Copy",
  );
  button.addEventListener("click", () => {
    navigator.clipboard.writeText(text).then(
      () => {
        button.textContent = "Copied";
      },
      () => {
        button.textContent = "Select it";
      },
    );
    setTimeout(() => {
      button.textContent = "Copy";
    }, 2_000);
  });
  return html("div", { class: "command" }, html("code", {}, text), button);
}

function notes({ off, other, rows, callers }: EdgesDocument["limits"]): string[] {
  if (other === 0) return off;
  return [
    ...off,
    `${formatCount(other)} connections found no row of their own: ${rows.used} of ${rows.room} pairs and ${callers.used} of ${callers.room} callers are in use.`,
  ];
}

function ago(time: string, now: string): string {
  const seconds = (Date.parse(now) - Date.parse(time)) / 1000;
  return seconds < 1 ? "now" : `${formatSeconds(seconds)} ago`;
}
