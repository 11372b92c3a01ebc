/** The rows of `kmesh status` about the agent: istiod, its identity, the mesh it knows, what it wrote. */
import type { AgentStatus } from "../../admin/status.ts";
import type { IdentityStatus } from "../../istiod/identity/identity.ts";
import { formatSpan, plural, since } from "../framework/output.ts";
import { formatHealth, formatRegistration } from "./registration-rows.ts";

export function agentFacts(agent: AgentStatus, alive: boolean, now: number): [string, string][] {
  const { stream, tables, mesh } = agent;
  const link = `${stream.target} (${stream.plaintext ? "plaintext" : "TLS"})`;
  const state = !alive
    ? "not followed now"
    : stream.connected
      ? `connected for ${formatSpan(now - (stream.connectedSince ?? now))}`
      : `not connected${stream.disconnectedSince ? ` for ${formatSpan(now - stream.disconnectedSince)}` : ""}; the tables are unchanged`;
  const push = stream.lastPush ? `, last push ${formatSpan(now - stream.lastPush)} ago` : ", no push yet";
  const error =
    !stream.connected && stream.lastError ? [["", stream.lastError.text] as [string, string]] : [];
  const applied = tables.lastApplyAt
    ? `${plural(tables.applies, "push", "pushes")}, ${plural(tables.writes, "map write")} (the last push: ${tables.lastWrites}, ${(tables.lastMilliseconds ?? 0).toFixed(1)} ms)`
    : "nothing written yet by this agent";
  return [
    ["istiod", `${link}, ${state}${push}`],
    ...error,
    ...(agent.identity ? formatIdentity(agent.identity, error[0]?.[1], now) : []),
    ...formatRegistration(agent.registration, alive && stream.connected),
    ...formatHealth(agent, now),
    ...formatWorkloads(agent.workloads),
    ["mesh", formatMesh(mesh, agent.snapshot !== undefined)],
    ["tables", `${agent.adopted ? "adopted from an earlier agent; " : ""}${applied}`],
    ...formatSnapshot(agent.snapshot, now),
  ];
}

/** What dual-engine mode holds. */
function formatWorkloads(workloads: AgentStatus["workloads"]): [string, string][] {
  if (!workloads) return [];
  const {
    services,
    workloads: count,
    waypoints,
    policies,
    ambientLacking,
    unknownPolicies,
    dryRun,
    own,
  } = workloads;
  if (ambientLacking)
    return [["workloads", "istiod sent none: it needs PILOT_ENABLE_AMBIENT=true. The tables are unchanged"]];
  const self = own === undefined ? "" : `; this machine is ${own}`;
  const numbers = `${plural(count, "workload")} of ${plural(services, "service")}, ${plural(policies, "policy", "policies")}`;
  const through = waypoints.map(({ name, services: users }) => `${name} (${plural(users, "service")})`);
  return [
    ["workloads", numbers + self],
    ...(through.length > 0 ? [["waypoints", through.join(", ")] as [string, string]] : []),
    ...(unknownPolicies.length > 0
      ? [["", `policies that are not known yet deny all: ${unknownPolicies.join(", ")}`] as [string, string]]
      : []),
    ...(dryRun.length > 0
      ? [["", `policies of dry run, not enforced: ${dryRun.join(", ")}`] as [string, string]]
      : []),
  ];
}

/** `told` stands there already. */
function formatIdentity(identity: IdentityStatus, told: string | undefined, now: number): [string, string][] {
  const { id, certificate, renewal, lastError } = identity;
  const life = !certificate
    ? "no certificate yet"
    : certificate.notAfter <= now
      ? `its certificate EXPIRED ${formatSpan(now - certificate.notAfter)} ago`
      : `its certificate is good for ${formatSpan(certificate.notAfter - now)}${renewal > now ? `, renewed in ${formatSpan(renewal - now)}` : ""}`;
  const error = lastError && lastError.text !== told ? [["", lastError.text] as [string, string]] : [];
  return [["identity", `${id}, ${life}`], ...error];
}

function formatSnapshot(snapshot: AgentStatus["snapshot"], now: number): [string, string][] {
  if (!snapshot) return [];
  const { writtenAt, appliedAt, writes, milliseconds } = snapshot;
  const took = `${plural(writes, "map write")}, ${milliseconds.toFixed(1)} ms`;
  return [
    [
      "snapshot",
      `governs until istiod's first push; written ${since(writtenAt, now)} ago, live for ${since(appliedAt, now)} (${took})`,
    ],
  ];
}

function formatMesh(mesh: AgentStatus["mesh"], fromSnapshot: boolean): string {
  const { services, frontends, clusters, endpoints } = mesh;
  const numbers = [
    plural(services, "service"),
    plural(frontends, "frontend"),
    plural(clusters, "cluster"),
    plural(endpoints, "endpoint"),
  ];
  if (mesh.current) return numbers.join(", ");
  if (fromSnapshot) return `${numbers.join(", ")}, from the snapshot`;
  return services === 0
    ? "not known yet: istiod has not sent it"
    : `${numbers.join(", ")}, as the agent before knew it: istiod has not answered yet`;
}
