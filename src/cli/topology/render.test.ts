import { expect, test } from "bun:test";
import { noCounters } from "../../../test/page/documents.ts";
import type { Edge, EdgesDocument } from "../../telemetry/model.ts";
import { renderMap, renderTop } from "./render.ts";
import { select } from "./select.ts";

const NOTHING = noCounters();
const edge: Edge = {
  id: "unit:shop.service > service:web.demo:80",
  from: "unit:shop.service",
  to: "service:web.demo:80",
  kind: "call",
  port: 0,
  total: {
    ...NOTHING,
    opened: 1200,
    sent: 5_000_000,
    failures: { ...NOTHING.failures, refused: 3 },
    refused: { "no-endpoint": 4 },
  },
  recent: NOTHING,
  live: 2,
  rate: { opened: 0, failed: 0, sent: 0, received: 0 },
  failureShare: 0,
  state: "idle",
};
const document = (window: number, off: string[]): EdgesDocument => ({
  version: 1,
  at: "2026-01-01T00:00:00Z",
  window,
  history: window,
  machine: { host: "vm", workload: "unknown", namespace: "", cluster: "", addresses: [] },
  nodes: [
    { kind: "unit", id: edge.from, name: "shop.service", namespace: "", source: "unit" },
    { kind: "service", id: edge.to, name: "web", namespace: "demo", host: "web.demo", port: 80 },
  ],
  edges: [{ ...edge, live: 0 }],
  problems: [],
  limits: { rows: { used: 1, room: 2 }, callers: { used: 0, room: 2 }, other: 0, off },
});

test("without an agent the map has totals, and does not say that all is well", () => {
  const text = renderMap(select(document(0, ["No agent runs."]), {}));
  expect(text.split("\n")).toEqual([
    "vm, since the counters began:",
    "",
    "  WHO                          CONN  LIVE  FAILED  SENT    RECEIVED",
    "  shop.service -> web.demo:80  1200     0       7  5.0 MB  0 B",
    "",
    "No agent runs.",
  ]);
  expect(renderTop(document(0, ["No agent runs."]), "rate", 5)).toBe(
    "No agent runs.\nkmesh topology shows the totals.",
  );
});

test("with one it has rates, and an edge without traffic only when it is asked for", () => {
  const idle = renderMap(select(document(300, []), {}));
  expect(idle).toBe(
    "vm (unknown), the last 5 min:\n\nNo traffic. --idle shows what there was before.\n\nNo problems.",
  );
  expect(renderMap(select(document(300, []), { idle: true }))).toMatch(
    /^\. shop\.service -> web\.demo:80 +idle/m,
  );
});
