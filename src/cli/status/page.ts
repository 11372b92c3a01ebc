/** The page that `kmesh status` prints. */
import type { AgentStatus } from "../../admin/status.ts";
import type { Damage } from "../../datapath/inspect/damage.ts";
import type { PreexistingConnections } from "../../datapath/inspect/preexisting-connections.ts";
import type { Summary } from "../../datapath/inspect/state.ts";
import type { KeptName } from "../../doctor/resolved.ts";
import type { InboundView } from "../../inbound/view.ts";
import type { ListenerState } from "../../machine/tunnel/sockets.ts";
import type { TunnelStatus } from "../../tunnel/process/status-file.ts";
import { indent, since } from "../framework/output.ts";
import { formatStanding, type readStanding } from "../framework/version-rows.ts";
import { type NotKnown, START_AN_AGENT } from "../framework/view.ts";
import type { BootOrder } from "../service/boot-order.ts";
import { agentFacts } from "./agent-rows.ts";
import { formatInboundRefusals, inboundFacts, inboundWarnings } from "./inbound-rows.ts";
import { formatBoot, kernelFacts } from "./kernel-rows.ts";
import { namesFacts, namesWarnings } from "./names-rows.ts";
import { formatRecent } from "./recent.ts";
import { formatRemarks, formatServices, isInTrouble, troubleFacts } from "./services.ts";
import { formatSync } from "./sync.ts";
import { formatEncryption, tunnelFacts, tunnelWarnings } from "./tunnel-rows.ts";
import { formatClock, formatDamage, formatOlder, warningsOf } from "./warnings.ts";

export interface Answer {
  agent: AgentStatus | undefined;
  kernel: Summary | undefined;
  /** Inbound connections; undefined from an agent of an earlier version. */
  inbound?: InboundView | undefined;
  /** Values that the command reads itself, so that the agent does not wait for them. */
  older?: PreexistingConnections | NotKnown | undefined;
  /** Running tunnel processes. */
  tunnels?: TunnelStatus[] | undefined;
  /** The tunnel's listening sockets. */
  sockets?: ListenerState[] | undefined;
  standing?: ReturnType<typeof readStanding>;
  /** By unit. */
  atBoot?: Record<string, BootOrder>;
  /** Mesh names that the machine's resolver asks nobody for, such as this one. */
  lostNames?: ({ example: string } & KeptName) | undefined;
  damage?: Damage[];
}

/** The whole page. `dead` is the sentence about the agent when none runs. */
export function formatStatus(
  { agent, kernel, inbound, older, atBoot, tunnels, sockets, standing, lostNames, damage = [] }: Answer,
  dead: string | undefined,
  bpffs: string,
  all: boolean,
  now = Date.now(),
): string {
  const facts: [string, string][] = [
    ...troubleFacts(kernel),
    ...(dead === undefined ? [["agent", formatAgent(agent, now)] as [string, string]] : deadFacts(dead)),
    ...(agent ? agentFacts(agent, dead === undefined, now) : []),
    ...kernelFacts(kernel, bpffs),
    ...namesFacts(agent?.names),
    ...inboundFacts(inbound, agent?.inbound),
    ...tunnelFacts(kernel, tunnels),
    ...formatBoot(atBoot),
    ...formatStanding(standing, dead === undefined, now),
  ];
  const parts = [formatFacts(facts)];
  parts.push(...formatTrouble({ agent, kernel, inbound, older, tunnels, sockets, lostNames, damage }, now));
  const sync = agent && formatSync(agent, now);
  if (sync !== undefined) parts.push(sync);
  if (kernel) parts.push(formatServices(kernel, all));
  parts.push(...formatEncryption(kernel, inbound, all));
  parts.push(...formatRecent(kernel?.recent), ...formatInboundRefusals(inbound));
  if (agent) parts.push(...formatRemarks(agent, all));
  return parts.join("\n\n");
}

function formatAgent(agent: AgentStatus | undefined, now: number): string {
  if (!agent) return "runs";
  return `runs: pid ${agent.pid}, for ${since(agent.startedAt, now)}, ${agent.mode}, version ${agent.version}`;
}

/** The sentence about an agent that is gone, and the next step. */
function deadFacts(dead: string): [string, string][] {
  return [
    ["agent", dead],
    ["", START_AN_AGENT],
  ];
}

/** Damage and warnings. */
function formatTrouble(
  { agent, kernel, inbound, older, tunnels, sockets, lostNames, damage = [] }: Answer,
  now: number,
): string[] {
  const parts: string[] = [];
  if (damage.length > 0) parts.push(`DAMAGED\n${indent(damage.map(formatDamage).join("\n"))}`);
  const warnings = [
    ...warningsOf(agent, kernel),
    ...namesWarnings(agent?.names),
    ...(lostNames ? [`${lostNames.example} does not resolve: ${lostNames.text}. ${lostNames.cure}`] : []),
    ...inboundWarnings(agent?.inbound, inbound),
    ...tunnelWarnings(tunnels, kernel, sockets),
    ...formatOlder(older),
    ...formatClock(agent, now),
  ];
  if (warnings.length > 0) parts.push(`NOT ENFORCED, OR WORTH KNOWING\n${indent(warnings.join("\n"))}`);
  return parts;
}

/** `--problems`: damage and warnings only. */
export function formatProblems(answer: Answer, dead: string | undefined, now = Date.now()): string {
  const { agent, kernel, inbound, damage = [] } = answer;
  const parts: string[] = [];
  const facts = [...troubleFacts(kernel), ...(dead === undefined ? [] : deadFacts(dead))];
  const off = kernel?.hooks.filter(({ attached }) => !attached).map(({ hook }) => hook) ?? [];
  if (off.length > 0) facts.push(["hooks", `NOT attached: ${off.join(", ")}`]);
  const stream = agent?.stream;
  if (dead === undefined && stream && !stream.connected)
    facts.push(["istiod", stream.lastError?.text ?? "not connected; the tables are unchanged"]);
  if (facts.length > 0) parts.push(formatFacts(facts));
  parts.push(...formatTrouble(answer, now));
  const concerned = kernel?.services.filter(isInTrouble) ?? [];
  if (kernel && concerned.length > 0) parts.push(formatServices({ ...kernel, services: concerned }, true));
  parts.push(...formatRecent(kernel?.recent), ...formatInboundRefusals(inbound));
  if (agent) parts.push(...formatRemarks(agent, true));
  if (damage.length === 0 && parts.length === 0) return "No problems.";
  return parts.join("\n\n");
}

/** `--brief`: a few lines. */
export function formatBrief({ agent, kernel, damage = [] }: Answer, dead: string | undefined): string {
  const services = kernel?.services.filter(({ service }) => service !== "") ?? [];
  const off = kernel?.hooks.filter(({ attached }) => !attached).map(({ hook }) => hook) ?? [];
  const hooks = kernel
    ? off.length === 0
      ? "all attached"
      : `NOT attached: ${off.join(", ")}`
    : "none: nothing is pinned";
  return formatFacts([
    ...troubleFacts(kernel),
    ...(damage.length > 0
      ? [["DAMAGED", `${damage.map(({ what }) => what).join("; ")}`] as [string, string]]
      : []),
    ...(dead === undefined
      ? [["agent", agent ? `runs: pid ${agent.pid}, version ${agent.version}` : "runs"] as [string, string]]
      : deadFacts(dead)),
    ...(agent && dead === undefined
      ? [["istiod", agent.stream.connected ? "connected" : "NOT connected"] as [string, string]]
      : []),
    ["hooks", hooks],
    [
      "services",
      `${services.length}, ${services.filter(isInTrouble).length} with refused or failed connections`,
    ],
  ]);
}

function formatFacts(facts: readonly (readonly [string, string])[]): string {
  const width = Math.max(...facts.map(([name]) => name.length));
  return facts.map(([name, text]) => `${name.padEnd(width)}  ${text}`).join("\n");
}
