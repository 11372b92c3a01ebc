import { expect, test } from "bun:test";
import type { AgentStatus } from "../admin/status.ts";
import { agentFindings } from "./istiod-checks.ts";

const workloads = {
  ...{ services: 1, workloads: 2, waypoints: [], policies: 0, ambientLacking: false },
  ...{ unknownPolicies: [] as string[], dryRun: [] },
};
const status = (more: object): AgentStatus =>
  ({
    ...{ pid: 7, stream: { connected: true, target: "istiod:15012" }, tables: {}, workloads },
    ...more,
  }) as unknown as AgentStatus;

test("an agent that is well", () => {
  expect(agentFindings(status({}))).toMatchObject([{ state: "ok" }]);
});

test("an istiod without ambient is an error, and the cure names the setting", () => {
  const [finding] = agentFindings(status({ workloads: { ...workloads, ambientLacking: true } }));
  expect(finding).toMatchObject({ state: "error" });
  expect(finding?.text).toContain("dual-engine mode, and istiod sent no service and no workload");
  expect(finding && "cure" in finding && finding.cure).toContain("PILOT_ENABLE_AMBIENT=true");
});

test("policies that istiod names and has not sent, and policies that are not live", () => {
  const findings = agentFindings(
    status({
      workloads: { ...workloads, unknownPolicies: ["shop/a", "shop/b"] },
      inbound: { enforce: true, attached: false, applied: 0, tooLarge: [], trouble: "EPERM" },
    }),
  );
  expect(findings.map(({ state, text }) => `${state}: ${text}`)).toEqual([
    "warning: every connection from outside is refused: istiod names policies for this machine that it has not sent (shop/a, shop/b)",
    "warning: inbound policies are not up to date: EPERM",
  ]);
});

test("no connection to istiod goes before all else", () => {
  const findings = agentFindings(
    status({ stream: { connected: false }, workloads: { ...workloads, ambientLacking: true } }),
  );
  expect(findings).toMatchObject([{ state: "error" }]);
  expect(findings[0]?.text).toContain("not connected to istiod: it has not tried yet");
});
