/** The rows of `kmesh status` about this machine's WorkloadEntry and its health. */
import type { AgentStatus } from "../../admin/status.ts";
import { formatSpan, plural } from "../framework/output.ts";

export function formatRegistration(
  registration: AgentStatus["registration"],
  connected: boolean,
): [string, string][] {
  if (!registration) return [];
  const { namespace, entry, group } = registration;
  const where = `WorkloadEntry ${entry} of namespace ${namespace}`;
  if (group === undefined) return [["registered", `by hand, as ${where}`], ...formatPeers(registration)];
  if (!connected)
    return [
      ["registered", `not for long: istiod takes away ${where} (group ${group}) 10 s after a connection`],
    ];
  return [["registered", `while connected, as ${where} by group ${group}`], ...formatPeers(registration)];
}

/** The protocol that istiod tells peers to use for this machine, and the next step when that is mTLS. */
function formatPeers({
  address,
  group,
  needs,
  peers,
}: NonNullable<AgentStatus["registration"]>): [string, string][] {
  const { plaintext = [], mtls = [] } = peers ?? {};
  if (mtls.length > 0) {
    const why = group === undefined ? "it lacks a label" : "another agent made the entry";
    return [
      [
        "",
        `peers are told to send mTLS to ${address} for ${mtls.join(", ")}, WHICH KMESH DOES NOT END: ${why}`,
      ],
      ...formatCommands(needs),
    ];
  }
  if (plaintext.length > 0)
    return [["", `peers are told to send plaintext to ${address}, for ${plaintext.join(", ")}`]];
  if (group !== undefined)
    return [
      [
        "",
        `peers are told to send plaintext (security.istio.io/tlsMode: disabled); no service has ${address} now`,
      ],
    ];
  return [["", `no service has ${address} now; kmesh ends no mTLS, so it needs`], ...formatCommands(needs)];
}

function formatCommands(commands: readonly string[]): [string, string][] {
  return commands.map((command) => ["", `  ${command}`]);
}

export function formatHealth({ health, stream, registration }: AgentStatus, now: number): [string, string][] {
  if (!health) return [];
  const { healthy, since: from = now, message, streak, checks, probe } = health;
  const state =
    healthy === undefined
      ? `not known yet after ${plural(checks, "check")}`
      : `${healthy ? "healthy" : "NOT HEALTHY"} for ${formatSpan(now - from)}`;
  const against = streak > 0 && healthy !== undefined ? `, ${plural(streak, "check")} against it` : "";
  const reported = !registration
    ? "not reported to istiod: set workload-group, or workload-entry"
    : (stream.healthNotTaken ?? (stream.reported ? "reported to istiod" : "not reported to istiod yet"));
  return [
    ["health", `${state}${against} (${probe}); ${reported}`],
    ...(message === undefined ? [] : [["", message] as [string, string]]),
    ...(registration?.healthNeeds
      ? [["", "the entry was made by hand: istiod heeds it only after"] as [string, string]]
      : []),
    ...formatCommands(registration?.healthNeeds ?? []),
  ];
}
