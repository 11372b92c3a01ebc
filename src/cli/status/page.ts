/** The page that `kmesh status` prints. */
import type { AgentStatus } from "../../admin/status.ts";
import type { Damage } from "../../datapath/inspect/damage.ts";
import type { Summary } from "../../datapath/inspect/inspect.ts";
import type { PreexistingConnections } from "../../datapath/inspect/preexisting-connections.ts";
import { indent, since } from "../framework/output.ts";
import { formatStanding, type readStanding } from "../framework/version-rows.ts";
import type { NotKnown } from "../framework/view.ts";
import type { BootOrder } from "../service/boot-order.ts";
import { agentFacts } from "./agent-rows.ts";
import { formatBoot, kernelFacts } from "./kernel-rows.ts";
import { formatRemarks, formatServices } from "./services.ts";
import { formatSync } from "./sync.ts";
import { formatClock, formatDamage, formatOlder, warningsOf } from "./warnings.ts";

export interface Answer {
  agent: AgentStatus | undefined;
  kernel: Summary | undefined;
  /** What this command counts itself, so that no agent waits for it. */
  older?: PreexistingConnections | NotKnown | undefined;
  standing?: ReturnType<typeof readStanding>;
  /** By unit. */
  atBoot?: Record<string, BootOrder>;
  damage?: Damage[];
}

/** The whole page. `dead` is the sentence about the agent when none lives. */
export function formatStatus(
  { agent, kernel, older, atBoot, standing, damage = [] }: Answer,
  dead: string | undefined,
  bpffs: string,
  all: boolean,
  now = Date.now(),
): string {
  const facts: [string, string][] = [
    [
      "agent",
      dead ??
        (agent
          ? `runs: pid ${agent.pid}, since ${since(agent.startedAt, now)}, ${agent.mode}, version ${agent.version}`
          : ""),
    ],
    ...(agent ? agentFacts(agent, dead === undefined, now) : []),
    ...kernelFacts(kernel, bpffs),
    ...formatBoot(atBoot),
    ...formatStanding(standing, dead === undefined, now),
  ];
  const width = Math.max(...facts.map(([name]) => name.length));
  const parts = [facts.map(([name, text]) => `${name.padEnd(width)}  ${text}`).join("\n")];
  if (damage.length > 0) parts.push(`DAMAGED\n${indent(damage.map(formatDamage).join("\n"))}`);
  const warnings = [...warningsOf(agent, kernel), ...formatOlder(older), ...formatClock(agent, now)];
  if (warnings.length > 0) parts.push(`NOT ENFORCED, OR WORTH KNOWING\n${indent(warnings.join("\n"))}`);
  const sync = agent && formatSync(agent, now);
  if (sync !== undefined) parts.push(sync);
  if (kernel) parts.push(formatServices(kernel, all));
  if (agent) parts.push(...formatRemarks(agent, all));
  return parts.join("\n\n");
}
