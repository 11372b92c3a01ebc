/**
 * From a document to shapes with fixed places. Pure: the same document and view give the same picture.
 *
 * Four columns: callers, units of this machine, services, endpoints. A column is sorted by trouble, then by name; endpoints
 * have the order of their services. Places do not depend on neighbours, so nothing jumps. `ranks` keeps the trouble that a node
 * had when it was sorted: a node that begins to fail is marked at the next refresh and stays where it is.
 *
 * Above `MOST_SHAPES` nodes, long columns are folded by namespace. A node with trouble is drawn by itself, as far as the
 * column has room; the group that holds the rest has the worst state of its members, and so have its links: an edge that
 * fails is always drawn, whatever bytes it carried.
 */
import type { Edge, EdgeState, EdgesDocument, Node } from "../telemetry/model.ts";
import { describeNode, formatRate, formatShare } from "./format.ts";
import { failuresOf, isTrouble, nodeStates, severityRank, worst } from "./health.ts";

/** Shapes at once before columns are folded. */
export const MOST_SHAPES = 60;
/** Most shapes of a folded column. */
const MOST_OF_COLUMN = MOST_SHAPES / 4;
/** Most nodes with trouble that a folded column draws one by one. */
const MOST_TROUBLED = 10;
/** Share of an edge's connections. */
const SOME_FAIL = 0.01;
/** Most members that an unfolded group shows; the table has all. */
const MOST_MEMBERS = 60;

export const COLUMNS = ["Callers", "Units", "Services", "Endpoints"] as const;
const COLUMN_OF: Readonly<Record<Node["kind"], number>> = {
  caller: 0,
  unit: 1,
  service: 2,
  outside: 2,
  endpoint: 3,
};

/** In pixels at zoom 1. */
export const SIZE = {
  width: 236,
  height: 48,
  gap: 12,
  column: 318,
  top: 44,
  margin: 16,
  indent: 16,
} as const;

export interface View {
  /** Ids of groups that are unfolded. */
  unfolded: ReadonlySet<string>;
  /** What a picture before this gave as `ranks`; empty to sort anew. */
  ranks: ReadonlyMap<string, number>;
}

export interface Shape {
  /** A node's id, or a group's: `group:COLUMN:NAMESPACE`. */
  id: string;
  kind: Node["kind"] | "group";
  column: number;
  x: number;
  y: number;
  width: number;
  height: number;
  title: string;
  detail: string;
  state: EdgeState;
  /** The node, or all that the group stands for. */
  members: string[];
  /** Of groups. */
  unfolded?: boolean;
  /** For screen readers: all that is drawn, in words. */
  label: string;
}

export interface Link {
  /** `FROM -> TO`, of shapes. */
  id: string;
  from: string;
  to: string;
  /** Edges of the document. */
  edges: string[];
  state: EdgeState;
  /** It is not failing, but SOME_FAIL of an edge's connections or more failed: it is hit by a failure behind it. */
  someFail: boolean;
  /** The tunnel carries all of its edges, and both ends prove their identity. */
  locked: boolean;
  /** The d of an SVG path, and a point on it after three quarters, where lines to different shapes are apart. */
  path: string;
  x: number;
  y: number;
  /** Stroke, 1 to 5 pixels, by connections per second. */
  width: number;
}

export interface Picture {
  columns: { title: string; x: number; count: number }[];
  shapes: Shape[];
  /** The worst last, so that they are drawn above others. */
  links: Link[];
  width: number;
  height: number;
  /** Give it to the next layout to keep the order. */
  ranks: Map<string, number>;
  /** Sorting anew would move something. */
  stale: boolean;
}

interface Entry {
  /** Drawn below its group. */
  indented?: boolean;
  node: Node;
  state: EdgeState;
  rank: number;
  title: string;
}

export function layout(document: EdgesDocument, view: View): Picture {
  const states = nodeStates(document);
  const entries = document.nodes.map((node): Entry => {
    const state = states.get(node.id) ?? "idle";
    const rank = view.ranks.get(node.id) ?? severityRank(state);
    return { node, state, rank, title: describeNode(node).title };
  });
  const columns = COLUMNS.map((_, column) => entries.filter(({ node }) => COLUMN_OF[node.kind] === column));
  for (const column of columns.slice(0, 3)) column.sort(byTrouble);
  sortEndpoints(columns[3] ?? [], columns[2] ?? [], document.edges);

  const totals = new Totals(document.edges);
  const isFolding = entries.length > MOST_SHAPES;
  const shapes: Shape[] = [];
  /** Node to shape. */
  const places = new Map<string, string>();
  columns.forEach((column, index) => {
    let y: number = SIZE.top;
    for (const item of isFolding ? fold(column, index, view.unfolded) : column) {
      const shape = "node" in item ? nodeShape(item, totals) : groupShape(item, view.unfolded);
      const inset = "node" in item && item.indented ? SIZE.indent : 0;
      shapes.push({
        ...shape,
        column: index,
        x: SIZE.margin + index * SIZE.column + inset,
        y,
        width: SIZE.width - inset,
        height: SIZE.height,
      });
      y += SIZE.height + SIZE.gap;
      for (const member of shape.members)
        if (!places.has(member) || "node" in item) places.set(member, shape.id);
    }
  });
  return {
    columns: COLUMNS.map((title, index) => ({
      title,
      x: SIZE.margin + index * SIZE.column,
      count: columns[index]?.length ?? 0,
    })),
    shapes,
    links: linksOf(document.edges, shapes, places),
    width: SIZE.margin * 2 + (COLUMNS.length - 1) * SIZE.column + SIZE.width,
    height: Math.max(SIZE.top + SIZE.height, ...shapes.map(({ y, height }) => y + height)) + SIZE.margin,
    ranks: new Map(entries.map(({ node, rank }) => [node.id, rank])),
    stale: entries.some(({ rank, state }) => rank !== severityRank(state)),
  };
}

function byTrouble(a: Entry, b: Entry): number {
  return a.rank - b.rank || byName(a, b);
}

function byName(a: Entry, b: Entry): number {
  return (
    compare(a.node.namespace, b.node.namespace) || compare(a.title, b.title) || compare(a.node.id, b.node.id)
  );
}

/** In the order of the first service that has them. */
function sortEndpoints(endpoints: Entry[], services: readonly Entry[], edges: readonly Edge[]): void {
  const order = new Map(services.map(({ node }, index) => [node.id, index]));
  const first = new Map<string, number>();
  for (const { from, to, kind } of edges)
    if (kind === "endpoint")
      first.set(
        to,
        Math.min(first.get(to) ?? Number.POSITIVE_INFINITY, order.get(from) ?? Number.POSITIVE_INFINITY),
      );
  const at = ({ node }: Entry) => first.get(node.id) ?? Number.MAX_SAFE_INTEGER;
  endpoints.sort((a, b) => at(a) - at(b) || byTrouble(a, b));
}

interface Group {
  id: string;
  name: string;
  members: Entry[];
  /** Members that are drawn below it while it is unfolded. */
  shown: number;
}

type Item = Entry | Group;

/** A column as troubled nodes and one group for each namespace. Short columns stay as they are. */
function fold(column: readonly Entry[], index: number, unfolded: ReadonlySet<string>): Item[] {
  if (column.length <= MOST_OF_COLUMN) return [...column];
  const single = [...column]
    .filter(({ state }) => isTrouble(state))
    .sort((a, b) => severityRank(a.state) - severityRank(b.state) || byName(a, b))
    .slice(0, MOST_TROUBLED);
  const alone = new Set(single);
  const byNamespace = Map.groupBy(
    column.filter((entry) => !alone.has(entry)),
    ({ node }) => node.namespace,
  );
  const groups = [...byNamespace]
    .map(([name, members]): Group => ({ id: `group:${index}:${name}`, name, members, shown: 0 }))
    .sort((a, b) => rankOf(a) - rankOf(b) || compare(a.name, b.name));
  const room = MOST_OF_COLUMN - single.length;
  const rest = groups.splice(groups.length > room ? room - 1 : room);
  if (rest.length > 0)
    groups.push({
      id: `group:${index}:*`,
      name: `${rest.length} more namespaces`,
      members: rest.flatMap(({ members }) => members),
      shown: 0,
    });
  const items: Item[] = column.filter((entry) => alone.has(entry));
  for (const group of groups) {
    const [only] = group.members;
    if (group.members.length === 1 && only) {
      items.push(only);
      continue;
    }
    items.push(group);
    if (!unfolded.has(group.id)) continue;
    const shown = group.members.slice(0, MOST_MEMBERS);
    group.shown = shown.length;
    items.push(...shown.map((entry) => ({ ...entry, indented: true })));
  }
  return items;
}

function rankOf({ members }: Group): number {
  return Math.min(...members.map(({ rank }) => rank));
}

type Placeless = Omit<Shape, "column" | "x" | "y" | "width" | "height">;

const KIND_WORDS: Readonly<Record<Node["kind"], string>> = {
  caller: "Caller",
  unit: "Unit",
  service: "Service",
  endpoint: "Endpoint",
  outside: "Outside the mesh",
};

const STATE_PHRASES: Readonly<Record<EdgeState, string>> = {
  failing: "failing",
  slow: "slow or lossy",
  ok: "healthy",
  idle: "idle",
};

function nodeShape({ node, state, title }: Entry, totals: Totals): Placeless {
  const { detail } = describeNode(node);
  const { failed, rate } = totals.of(node);
  // Text that does not fit is cut at its end. So failures come first, and then the place before the rate.
  const parts = (failed === "" ? [rate, detail] : [failed, detail, rate]).filter((part) => part !== "");
  return {
    id: node.id,
    kind: node.kind,
    title,
    detail: parts.join(" · "),
    state,
    members: [node.id],
    label: [`${KIND_WORDS[node.kind]} ${title}`, STATE_PHRASES[state], ...parts].join(", "),
  };
}

function groupShape({ id, name, members, shown }: Group, unfolded: ReadonlySet<string>): Placeless {
  const states = members.map(({ state }) => state);
  const counts = (["failing", "slow", "idle"] as const).flatMap((state) => {
    const count = states.filter((each) => each === state).length;
    return count === 0 ? [] : [`${count} ${STATE_PHRASES[state]}`];
  });
  const isOpen = unfolded.has(id);
  const more = isOpen && shown < members.length ? [`first ${shown} shown`] : [];
  const title = name === "" ? "no namespace" : name;
  const detail = [`${members.length} ${members.length === 1 ? "entry" : "entries"}`, ...counts, ...more].join(
    " · ",
  );
  return {
    id,
    kind: "group",
    title,
    detail,
    state: worst(states),
    members: members.map(({ node }) => node.id),
    unfolded: isOpen,
    label: `Namespace ${title}, ${STATE_PHRASES[worst(states)]}, ${detail}`,
  };
}

/** Connections of each node in the window: what ends there, for callers and units what begins there. */
class Totals {
  readonly #rates = new Map<string, { opened: number; failed: number; attempts: number }>();

  constructor(edges: readonly Edge[]) {
    for (const edge of edges) {
      // What a unit accepts is counted for the caller.
      const id = edge.kind === "inbound" ? edge.from : edge.kind === "endpoint" ? edge.to : edge.from;
      this.#add(id, edge);
      if (edge.kind === "call" || edge.kind === "passed") this.#add(edge.to, edge);
    }
  }

  /** "" for what is zero. */
  of({ id }: Node): { failed: string; rate: string } {
    const { opened, failed, attempts } = this.#rates.get(id) ?? { opened: 0, failed: 0, attempts: 0 };
    const share = Math.min(1, failed / Math.max(1, attempts));
    return {
      failed: failed === 0 ? "" : `${formatShare(share)} failed`,
      rate: opened === 0 && failed === 0 ? "" : formatRate(opened),
    };
  }

  #add(id: string, edge: Edge): void {
    const sum = this.#rates.get(id) ?? { opened: 0, failed: 0, attempts: 0 };
    const denied = Object.values(edge.recent.refused).reduce((all, count) => all + count, 0);
    sum.opened += edge.rate.opened;
    sum.failed += failuresOf(edge);
    sum.attempts += edge.recent.opened + denied;
    this.#rates.set(id, sum);
  }
}

function linksOf(
  edges: readonly Edge[],
  shapes: readonly Shape[],
  places: ReadonlyMap<string, string>,
): Link[] {
  const byId = new Map(shapes.map((shape) => [shape.id, shape]));
  const grouped = Map.groupBy(
    edges,
    ({ from, to }) => `${places.get(from) ?? ""} -> ${places.get(to) ?? ""}`,
  );
  const links: Link[] = [];
  for (const [id, members] of grouped) {
    const [first] = members;
    const from = byId.get(places.get(first?.from ?? "") ?? "");
    const to = byId.get(places.get(first?.to ?? "") ?? "");
    if (!from || !to) continue;
    const rate = members.reduce((sum, edge) => sum + edge.rate.opened, 0);
    const state = worst(members.map((edge) => edge.state));
    links.push({
      id,
      from: from.id,
      to: to.id,
      edges: members.map((edge) => edge.id),
      state,
      someFail: state !== "failing" && members.some(({ failureShare }) => failureShare >= SOME_FAIL),
      locked: members.every(({ carried }) => carried?.mutualTls === true),
      path: pathBetween(from, to),
      ...pointOn(from, to),
      width: 1.25 + Math.min(3.75, Math.log10(1 + rate)),
    });
  }
  const rank = ({ state, someFail }: Link) => (someFail ? 0.5 : severityRank(state));
  return links.sort((a, b) => rank(b) - rank(a) || compare(a.id, b.id));
}

/** Between neighbouring columns, so it never crosses another shape. */
function pathBetween(from: Shape, to: Shape): string {
  const x1 = from.x + from.width;
  const y1 = from.y + from.height / 2;
  const x2 = to.x;
  const y2 = to.y + to.height / 2;
  const bend = Math.max(24, (x2 - x1) / 2);
  return `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`;
}

/** Of the curve that pathBetween draws, at three quarters. */
function pointOn(from: Shape, to: Shape): { x: number; y: number } {
  const x1 = from.x + from.width;
  const y1 = from.y + from.height / 2;
  return { x: x1 + 0.703 * (to.x - x1), y: y1 + 0.844 * (to.y + to.height / 2 - y1) };
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
