/** The document as a table: the same data for screen readers, for sorting, and for more than a map can show. */
import type { Edge, EdgesDocument, Node } from "../../telemetry/model.ts";
import {
  describeNode,
  describeWay,
  formatBytes,
  formatCount,
  formatMicroseconds,
  formatRate,
  formatSeconds,
  formatShare,
} from "../format.ts";
import { failuresOf, STATE_WORDS, severityRank } from "../health.ts";
import { html } from "./dom.ts";
import { icon } from "./symbols.ts";

interface Column {
  title: string;
  /** Sorts by it. */
  value(edge: Edge, name: (id: string) => string): number | string;
  text(edge: Edge, name: (id: string) => string): string;
  isText?: boolean;
}

const COLUMNS: readonly Column[] = [
  {
    title: "State",
    isText: true,
    value: (edge) => severityRank(edge.state),
    text: (edge) => STATE_WORDS[edge.state],
  },
  {
    title: "From",
    isText: true,
    value: (edge, name) => name(edge.from),
    text: (edge, name) => name(edge.from),
  },
  {
    title: "To",
    isText: true,
    value: (edge, name) => name(edge.to),
    text: (edge, name) => `${name(edge.to)}${edge.port > 0 ? ` port ${edge.port}` : ""}`,
  },
  {
    title: "Way",
    isText: true,
    value: ({ carried }) => (carried ? describeWay(carried) : ""),
    text: ({ carried }) => (carried ? describeWay(carried) : "–"),
  },
  { title: "Connections", value: (edge) => edge.rate.opened, text: (edge) => formatRate(edge.rate.opened) },
  { title: "Open now", value: (edge) => edge.live, text: (edge) => formatCount(edge.live) },
  {
    title: "Failed",
    value: (edge) => edge.failureShare,
    text: (edge) =>
      failuresOf(edge) === 0 ? "0" : `${formatCount(failuresOf(edge))} (${formatShare(edge.failureShare)})`,
  },
  { title: "Sent", value: (edge) => edge.rate.sent, text: (edge) => `${formatBytes(edge.rate.sent)}/s` },
  {
    title: "Received",
    value: (edge) => edge.rate.received,
    text: (edge) => `${formatBytes(edge.rate.received)}/s`,
  },
  {
    title: "Retransmits",
    value: (edge) => edge.recent.retransmits,
    text: (edge) => formatCount(edge.recent.retransmits),
  },
  {
    title: "Round trip",
    value: (edge) => edge.rtt?.mean ?? -1,
    text: (edge) => (edge.rtt ? formatMicroseconds(edge.rtt.mean) : "–"),
  },
  {
    title: "Duration",
    value: (edge) => edge.duration?.mean ?? -1,
    text: (edge) => (edge.duration ? formatSeconds(edge.duration.mean) : "–"),
  },
];

/** Rows at first, and more at each press of the button. */
const PAGE = 200;

export class TableView {
  readonly element = html("div", {
    class: "table-box",
    tabindex: 0,
    role: "region",
    "aria-label": "Table of edges",
  });
  readonly #select: (id: string) => void;
  #sort = { column: "State", descending: false };
  #rows = PAGE;
  #last: { document: EdgesDocument; selected: string | undefined } | undefined;

  constructor(select: (id: string) => void) {
    this.#select = select;
  }

  draw(document: EdgesDocument, selected: string | undefined): void {
    this.#last = { document, selected };
    const focus = window.document.activeElement;
    const focused =
      focus instanceof HTMLElement && this.element.contains(focus) ? focus.dataset.key : undefined;
    const nodes = new Map(document.nodes.map((node) => [node.id, node]));
    const name = (id: string) => nameOf(nodes.get(id), id);
    const edges = this.#sorted(document.edges, name);
    // A column that is empty takes room.
    const hasWay = document.edges.some(({ carried }) => carried);
    const columns = COLUMNS.filter(({ title }) => hasWay || title !== "Way");
    const rows = edges
      .slice(0, this.#rows)
      .map((edge) => this.#row(edge, name, columns, edge.id === selected));
    this.element.replaceChildren(
      html(
        "table",
        {},
        html(
          "caption",
          {},
          `${formatCount(document.edges.length)} edges, the last ${formatSeconds(document.window)}`,
        ),
        html("thead", {}, html("tr", {}, ...columns.map((column) => this.#head(column)))),
        html("tbody", {}, ...rows),
      ),
      ...(edges.length > this.#rows
        ? [
            html(
              "button",
              {
                type: "button",
                class: "more",
                "data-key": "more",
                click: () =>
                  this.#again(() => {
                    this.#rows += PAGE;
                  }),
              },
              `Show ${Math.min(PAGE, edges.length - this.#rows)} more of ${formatCount(edges.length)}`,
            ),
          ]
        : []),
    );
    if (focused !== undefined)
      this.element
        .querySelector<HTMLElement>(`[data-key="${CSS.escape(focused)}"]`)
        ?.focus({ preventScroll: true });
  }

  #sorted(edges: readonly Edge[], name: (id: string) => string): Edge[] {
    const { column, descending } = this.#sort;
    const value = COLUMNS.find(({ title }) => title === column)?.value ?? (() => 0);
    const keyed = edges.map((edge) => ({ edge, key: value(edge, name) }));
    const sign = descending ? -1 : 1;
    keyed.sort((a, b) => (a.key < b.key ? -sign : a.key > b.key ? sign : a.edge.id < b.edge.id ? -1 : 1));
    return keyed.map(({ edge }) => edge);
  }

  #head({ title, isText }: Column): HTMLElement {
    const isSorted = title === this.#sort.column;
    return html(
      "th",
      {
        scope: "col",
        class: isText ? "" : "number",
        "aria-sort": isSorted ? (this.#sort.descending ? "descending" : "ascending") : "none",
      },
      html(
        "button",
        {
          type: "button",
          "data-key": `sort ${title}`,
          click: () =>
            this.#again(() => {
              // Of numbers the greatest are looked for first.
              this.#sort = { column: title, descending: isSorted ? !this.#sort.descending : !isText };
            }),
        },
        title,
        html(
          "span",
          { class: "order", "aria-hidden": "true" },
          isSorted ? (this.#sort.descending ? " ▼" : " ▲") : "",
        ),
      ),
    );
  }

  #row(
    edge: Edge,
    name: (id: string) => string,
    columns: readonly Column[],
    isSelected: boolean,
  ): HTMLElement {
    return html(
      "tr",
      { class: `${edge.state}${isSelected ? " selected" : ""}`, click: () => this.#select(edge.id) },
      ...columns.map((column, index) => {
        const text = column.text(edge, name);
        if (index === 0)
          return html(
            "td",
            {},
            html(
              "button",
              {
                type: "button",
                class: "state",
                "data-key": edge.id,
                "aria-label": `${text}: details of ${name(edge.from)} to ${name(edge.to)}`,
              },
              icon(edge.state),
              text,
            ),
          );
        return html(
          "td",
          { class: column.isText ? "name" : "number", ...(column.isText ? { title: text } : {}) },
          text,
        );
      }),
    );
  }

  #again(change: () => void): void {
    change();
    if (this.#last) this.draw(this.#last.document, this.#last.selected);
  }
}

export function nameOf(node: Node | undefined, id: string): string {
  if (!node) return id;
  const { title } = describeNode(node);
  return node.kind === "service" && node.namespace !== "" ? `${title} (${node.namespace})` : title;
}
