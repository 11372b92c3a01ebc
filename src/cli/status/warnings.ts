/** The warnings of `kmesh status`: damage, pending configuration, ungoverned connections, a clock that was set back. */
import type { AgentStatus } from "../../admin/status.ts";
import type { Damage } from "../../datapath/inspect/damage.ts";
import type { PreexistingConnections } from "../../datapath/inspect/preexisting-connections.ts";
import type { Summary } from "../../datapath/inspect/state.ts";
import { formatSpan, indent, plural } from "../framework/output.ts";
import type { NotKnown } from "../framework/view.ts";

export function formatDamage({ what, consequence, cure }: Damage): string {
  return [what, indent(`so: ${consequence}`), indent(`cure: ${cure}`)].join("\n");
}

export function warningsOf(agent: AgentStatus | undefined, kernel: Summary | undefined): string[] {
  const warnings: string[] = [];
  if (kernel?.foreign !== undefined) {
    warnings.push(
      `The tables of another kmesh version govern (layout ${kernel.foreign}, this one reads ${kernel.abi}): who is governed ` +
        "and where connections go, only that version's executable can tell. Counters are shared and shown.",
    );
  } else if (kernel?.settings?.shadow)
    warnings.push("Shadow mode: decisions are counted, no connection is changed.");
  for (const note of agent?.mesh.notes ?? []) warnings.push(note.text);
  if (agent?.tables.lastError) warnings.push(`Not all is live: ${agent.tables.lastError.text}`);
  for (const { type, resource, reason } of agent?.stream.rejected ?? []) {
    warnings.push(`Refused istiod's ${type} ${resource}: ${reason}. The one before stays.`);
  }
  return warnings;
}

/** Cgroups that are listed by name. */
const CGROUPS = 5;

export function formatOlder(older: PreexistingConnections | NotKnown | undefined): string[] {
  if (!older) return [];
  if ("error" in older) return [`Whether connections are older than the attach is not known: ${older.error}`];
  const { connections, complete, cgroups } = older;
  if (connections === 0) return [];
  const named = cgroups.slice(0, CGROUPS).map(({ cgroup, connections }) => `${cgroup} (${connections})`);
  const more = cgroups.length > CGROUPS ? `, and ${plural(cgroups.length - CGROUPS, "more cgroup")}` : "";
  const are = connections === 1 ? "connection is" : "connections are";
  return [
    `${complete ? "" : "At least "}${connections} ${are} older than the attach (or than the enrolment or service ` +
      `that would govern it) and ${connections === 1 ? "goes" : "go"} directly, until the app connects anew: ` +
      `restart it if it keeps its connections. By cgroup: ${named.join(", ")}${more}`,
  ];
}

/** Tolerance for times in the future, milliseconds. */
const AHEAD = 60_000;

/** A time in the future means that the clock was set back since. */
export function formatClock(agent: AgentStatus | undefined, now: number): string[] {
  if (!agent) return [];
  const { startedAt, writtenAt, snapshot, tables, stream } = agent;
  const times = [
    ...[startedAt, writtenAt, snapshot?.writtenAt, tables.lastApplyAt].map((at) => (at ? Date.parse(at) : 0)),
    stream.connectedSince ?? 0,
    stream.lastPush ?? 0,
  ];
  const ahead = Math.max(...times) - now;
  if (!(ahead > AHEAD)) return [];
  return [
    `This machine's clock was set back: something above was written ${formatSpan(ahead)} from now, so ages are too small. ` +
      "Traffic goes by no clock that can be set; certificates do: timedatectl shows whether it is right now.",
  ];
}
