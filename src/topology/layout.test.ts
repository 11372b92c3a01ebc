import { describe, expect, test } from "bun:test";
import { documentOf, edge, large, shop } from "../../test/page/documents.ts";
import { filterDocument, NO_FILTER } from "./filter.ts";
import { layout, MOST_SHAPES, type Picture, SIZE, type View } from "./layout.ts";

const FRESH: View = { unfolded: new Set(), ranks: new Map() };
const titles = ({ shapes }: Picture, column: number) =>
  shapes.filter((shape) => shape.column === column).map(({ title }) => title);

describe("layout", () => {
  test("sorts columns by trouble, then by namespace and name; endpoints follow their services", () => {
    const picture = layout(shop(), FRESH);
    expect(titles(picture, 2)).toEqual([
      "payments:443",
      "stock:9090",
      "api.example.com:443",
      "ledger:5432",
      "orders:8080",
    ]);
    expect(titles(picture, 3)).toEqual([
      "payments-v2",
      "payments-v1",
      "stock-v1",
      "ledger-0",
      "orders-v1",
      "orders-v2",
    ]);
  });

  test("overlaps nothing, and draws lines only between neighbouring columns", () => {
    for (const document of [shop(), large(500, 2_000)]) {
      const { shapes, links } = layout(document, FRESH);
      for (const a of shapes)
        for (const b of shapes)
          if (a !== b)
            expect(
              a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height,
            ).toBe(false);
      const column = new Map(shapes.map((shape) => [shape.id, shape.column]));
      for (const { from, to } of links) expect((column.get(to) ?? 0) - (column.get(from) ?? 0)).toBe(1);
    }
  });

  test("leaves a node where it is when it begins to fail, until it is sorted anew", () => {
    const before = shop();
    const first = layout(before, FRESH);
    const after = {
      ...before,
      edges: before.edges.map((each) =>
        each.from.includes("orders") ? { ...each, state: "failing" as const } : each,
      ),
    };
    const second = layout(after, { ...FRESH, ranks: first.ranks });
    expect(second.shapes.map(({ id, x, y }) => ({ id, x, y }))).toEqual(
      first.shapes.map(({ id, x, y }) => ({ id, x, y })),
    );
    expect(second.shapes.find(({ title }) => title === "orders:8080")?.state).toBe("failing");
    expect(first.stale).toBe(false);
    expect(second.stale).toBe(true);
    expect(titles(layout(after, FRESH), 2)[0]).toBe("orders:8080");
  });

  test("folds long columns by namespace, and draws what fails by itself, also without a byte", () => {
    const document = large(500, 2_000);
    const picture = layout(document, FRESH);
    expect(picture.shapes.length).toBeLessThanOrEqual(MOST_SHAPES);
    const failing = document.edges.filter(({ state }) => state === "failing");
    expect(failing.length).toBe(8);
    for (const { id, from, to, recent } of failing) {
      expect(recent.sent + recent.received).toBe(0);
      const link = picture.links.find(({ edges }) => edges.includes(id));
      expect(link).toMatchObject({ from, to, state: "failing" });
    }
    // Every edge is in exactly one line.
    expect(picture.links.flatMap(({ edges }) => edges).sort()).toEqual(
      document.edges.map(({ id }) => id).sort(),
    );
  });

  test("gives a group the worst state of its members when there is no room for all of them", () => {
    const document = large(500, 2_000);
    const all = document.edges.map((each) => ({ ...each, state: "failing" as const }));
    const picture = layout({ ...document, edges: all }, FRESH);
    expect(picture.shapes.length).toBeLessThanOrEqual(MOST_SHAPES);
    expect(picture.links.every(({ state }) => state === "failing")).toBe(true);
    expect(picture.shapes.every(({ state }) => state === "failing")).toBe(true);
  });

  test("unfolds a group below itself, indented", () => {
    const document = large(200, 600);
    const folded = layout(document, FRESH);
    const group = folded.shapes.find(({ kind, column }) => kind === "group" && column === 2);
    if (!group) throw new Error("nothing is folded");
    const { shapes } = layout(document, { ...FRESH, unfolded: new Set([group.id]) });
    const at = shapes.findIndex(({ id }) => id === group.id);
    const members = shapes.slice(at + 1, at + 1 + group.members.length);
    expect(members.map(({ id }) => id)).toEqual(group.members);
    expect(members.every(({ x }) => x === group.x + SIZE.indent)).toBe(true);
  });
});

describe("filter", () => {
  test("hides idle edges, but none that fails", () => {
    const document = documentOf(shop().nodes, [
      edge({ from: "unit:a", to: "service:b:1", kind: "call" }),
      edge({ from: "unit:a", to: "service:c:1", kind: "call", state: "failing" }),
    ]);
    expect(filterDocument(document, NO_FILTER).edges.map(({ to }) => to)).toEqual(["service:c:1"]);
    expect(filterDocument(document, { ...NO_FILTER, idle: true }).edges.length).toBe(2);
  });

  test("keeps what leads to a match and from it", () => {
    const found = filterDocument(shop(), { ...NO_FILTER, search: "LEDGER" });
    expect(found.nodes.map(({ name }) => name)).toEqual(["report-worker.service", "ledger", "ledger-0"]);
    const failing = filterDocument(shop(), { ...NO_FILTER, failing: true });
    expect(failing.nodes.map(({ name }) => name)).toEqual(
      expect.arrayContaining(["frontend-v1", "billing.service", "payments", "payments-v2", "stock-v1"]),
    );
    expect(failing.nodes.map(({ name }) => name)).not.toContain("orders-v1");
  });

  test("narrows problems with the rest", () => {
    const { problems } = filterDocument(shop(), { ...NO_FILTER, unit: "unit:billing.service" });
    expect(problems.map(({ rule }) => rule)).toEqual(["connect-refused", "ejected"]);
  });
});
