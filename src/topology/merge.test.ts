import { describe, expect, test } from "bun:test";
import { documentOf, edge, shop } from "../../test/page/documents.ts";
import type { EdgesDocument, Node } from "../telemetry/model.ts";
import { mergeDocuments } from "./merge.ts";
import { parseDocument } from "./read-documents.ts";

const unit = (name: string): Node => ({
  kind: "unit",
  id: `unit:${name}`,
  name,
  namespace: "",
  source: "unit",
});
const orders: Node = {
  kind: "service",
  id: "service:orders:80",
  name: "orders",
  namespace: "shop",
  host: "orders",
  port: 80,
};
const end: Node = {
  kind: "endpoint",
  id: "endpoint:10.0.0.2:8080",
  name: "orders-vm",
  namespace: "shop",
  address: "10.0.0.2",
  port: 8080,
};
const caller = (address: string): Node => ({
  kind: "caller",
  id: `caller:${address}`,
  name: address,
  namespace: "",
  address,
});

function machine(host: string, address: string, document: EdgesDocument): EdgesDocument {
  return { ...document, machine: { ...document.machine, host, addresses: [address] } };
}

/** Calls orders `opened` times. */
const client = (host: string, address: string, opened: number) =>
  machine(
    host,
    address,
    documentOf(
      [unit("app"), orders, end],
      [
        edge({ from: "unit:app", to: orders.id, kind: "call", recent: { opened } }),
        edge({
          from: orders.id,
          to: end.id,
          kind: "endpoint",
          recent: { opened },
          rtt: { mean: 100 * opened },
        }),
      ],
    ),
  );

/** Is orders, and calls nobody. */
const server = machine(
  "vm-b",
  "10.0.0.2",
  documentOf(
    [caller("10.0.0.1"), caller("10.0.0.3"), caller("192.0.2.1"), unit("app")],
    [
      ...[
        ["10.0.0.1", 10],
        ["10.0.0.3", 30],
        ["192.0.2.1", 5],
      ].map(([address, opened]) =>
        edge({
          from: `caller:${address}`,
          to: "unit:app",
          kind: "inbound",
          port: 8080,
          recent: { opened: Number(opened) },
        }),
      ),
    ],
  ),
);

describe("merging maps", () => {
  const merged = mergeDocuments([client("vm-a", "10.0.0.1", 10), client("vm-c", "10.0.0.3", 30), server]);

  test("has each edge once, by both ends", () => {
    expect(merged.edges.map(({ id }) => id)).toEqual([
      "caller:192.0.2.1 -> unit:app@vm-b port 8080",
      "service:orders:80 -> endpoint:10.0.0.2:8080",
      "unit:app@vm-a -> service:orders:80",
      "unit:app@vm-c -> service:orders:80",
    ]);
    const leg = merged.edges.find(({ kind }) => kind === "endpoint");
    expect(leg?.recent.opened).toBe(40);
    expect(leg?.peer?.opened).toBe(40);
    // By 10 connections of 1,000 us and 30 of 3,000.
    expect(leg?.rtt?.mean).toBe(2_500);
  });

  test("keeps units of one name apart, and says which accepts", () => {
    const names = merged.nodes.map(({ id }) => id);
    expect(names).toEqual([
      "caller:192.0.2.1",
      "unit:app@vm-a",
      "unit:app@vm-b",
      "unit:app@vm-c",
      "service:orders:80",
      "endpoint:10.0.0.2:8080",
    ]);
    expect(merged.nodes.at(-1)).toMatchObject({ unit: "unit:app@vm-b" });
  });

  test("takes the newer one of the same machine, and gives a single one back", () => {
    const old = { ...client("vm-a", "10.0.0.1", 99), at: "2020-01-01T00:00:00.000Z" };
    expect(mergeDocuments([old, client("vm-a", "10.0.0.1", 10)]).edges[0]?.recent.opened).toBe(10);
    const one = shop();
    expect(mergeDocuments([one])).toBe(one);
  });

  test("problems name their machine and their renamed subject", () => {
    const problem = {
      subject: "unit:app -> service:orders:80",
      rule: "no-endpoint",
      severity: "error",
      text: "x",
      value: 1,
      next: "",
    } as const;
    const { problems } = mergeDocuments([{ ...client("vm-a", "10.0.0.1", 1), problems: [problem] }, server]);
    expect(problems).toEqual([
      { ...problem, subject: "unit:app@vm-a -> service:orders:80", text: "vm-a: x" },
    ]);
  });

  test("what is no map is refused with a word", () => {
    for (const text of ["", "[]", "null", '{"version":1}', "<html>"])
      expect(() => parseDocument(text)).toThrow(/it is no/);
    expect(() => parseDocument(JSON.stringify({ ...shop(), version: 2 }))).toThrow("version 2");
    expect(parseDocument(JSON.stringify(shop())).edges.length).toBe(14);
  });
});
