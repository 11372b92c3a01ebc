/** The rows of `kmesh status` about this machine's WorkloadEntry and its health. */
import type { AgentStatus } from "../../admin/status.ts";
import { differencesOf } from "../../istiod/registration.ts";
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
  reach,
}: NonNullable<AgentStatus["registration"]>): [string, string][] {
  const { plaintext = [], mtls, hbone = [] } = peers ?? {};
  const { unserved, unused } = differencesOf({ plaintext, mtls, hbone }, reach);
  const sent = [
    ["plaintext", plaintext],
    ["mTLS", mtls ?? []],
    ["HBONE", hbone],
  ] as const;
  const rows = sent
    .filter(([, services]) => services.length > 0)
    .map(([what, services]): [string, string] => {
      const isLost = unserved.some((each) => each === what);
      const tail = isLost ? `, WHICH NO TUNNEL TAKES: ${whyOf(group)}` : "";
      return ["", `peers are told to send ${what} to ${address} for ${services.join(", ")}${tail}`];
    });
  if (unserved.length > 0) return [...rows, ...formatCommands(needs)];
  if (unused.length > 0)
    return [
      ...rows,
      ["", `the tunnel takes ${unused.join(" and ")}, and peers are not told: ${whyOf(group)}`],
      ...formatCommands(needs),
    ];
  if (rows.length > 0) return rows;
  const ways = [reach?.mtls ? "mTLS" : "plaintext", ...(reach?.hbone ? ["HBONE"] : [])].join(" and ");
  if (group !== undefined) return [["", `peers are told to send ${ways}; no service has ${address} now`]];
  return [["", `no service has ${address} now; for ${ways} it needs`], ...formatCommands(needs)];
}

/** Why an entry's labels are not those of this machine. */
function whyOf(group: string | undefined): string {
  return group === undefined
    ? "the entry lacks labels"
    : "the entry is another agent's, or older than the tunnel, and istiod changes no labels of an entry that exists";
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
