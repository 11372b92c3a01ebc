import { expect, test } from "bun:test";
import type { AgentStatus } from "../../admin/status.ts";
import type { TypeStatus } from "../../istiod/stream/status.ts";
import { formatSync } from "./sync.ts";

const NOW = Date.parse("2026-01-01T00:10:00Z");
const none: TypeStatus = {
  resources: 0,
  subscribed: 0,
  unanswered: 0,
  rejected: 0,
  responses: 0,
  bytes: 0,
  unchanged: 0,
  changed: 0,
  removed: 0,
  refused: 0,
};

function agent(types: Partial<Record<string, Partial<TypeStatus>>>): AgentStatus {
  const names = ["cluster", "listener", "endpoints", "route", "names"];
  const stream = { types: Object.fromEntries(names.map((name) => [name, { ...none, ...types[name] }])) };
  return { stream } as unknown as AgentStatus;
}

test("each type with its state, its answers and the last version", () => {
  const answered = { version: "2026-01-01T00:09:58Z/24", at: NOW - 2_000, acks: 3, nacks: 0 };
  const text = formatSync(
    agent({
      cluster: { resources: 12, answered },
      listener: {
        resources: 4,
        rejected: 1,
        answered: { ...answered, nacks: 2, lastNack: { version: "v", at: NOW } },
      },
      endpoints: { resources: 9, unanswered: 2, answered },
      route: { answered: { ...answered, version: "" } },
    }),
    NOW,
  );
  expect(text?.split("\n")).toEqual([
    "ISTIOD  STATE          HELD  ANSWERED       LAST VERSION             RECEIVED",
    "CDS     SYNCED         12    3 ACK, 0 NACK  2026-01-01T00:09:58Z/24  2.0 s ago",
    "LDS     REJECTED 1     4     3 ACK, 2 NACK  2026-01-01T00:09:58Z/24  2.0 s ago",
    "EDS     WAITING for 2  9     3 ACK, 0 NACK  2026-01-01T00:09:58Z/24  2.0 s ago",
    "RDS     SYNCED         0     3 ACK, 0 NACK  -                        2.0 s ago",
    "NDS     NOT SENT       0     -              -                        -",
  ]);
});

test("nothing before the first response, and nothing from an agent that does not count answers", () => {
  expect(formatSync(agent({}), NOW)).toBeUndefined();
});
