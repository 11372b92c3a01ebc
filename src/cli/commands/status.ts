import { dirname } from "node:path";
import type { AgentStatus } from "../../admin/status.ts";
import { readFolders } from "../../config/config.ts";
import { sourcesOf } from "../../config/sources.ts";
import type { Damage } from "../../datapath/inspect/damage.ts";
import type { Summary } from "../../datapath/inspect/inspect.ts";
import type { OlderConnections } from "../../datapath/inspect/preexisting-connections.ts";
import type { IdentityStatus } from "../../istiod/identity/identity.ts";
import { formatMatch } from "../../mesh/frontend.ts";
import { NOTE_TITLES } from "../../mesh/model.ts";
import { command, FOLDER_FLAGS, OUTPUT_FLAG } from "../framework/command.ts";
import { EXIT } from "../framework/exit.ts";
import { formatOf, formatSpan, indent, print, printJson, table } from "../framework/output.ts";
import { formatStanding, readStanding } from "../framework/version-rows.ts";
import {
  damageNow,
  kernelState,
  lastWords,
  type NotKnown,
  olderThanAttach,
  view,
} from "../framework/view.ts";
import { type BootOrder, bootOrders } from "../service/boot-order.ts";
import { installedPaths } from "../service/install-plan.ts";

/** Rows of text that a screen bears; JSON and --all have the rest. */
const ROWS = 40;

interface Answer {
  agent: AgentStatus | undefined;
  kernel: Summary | undefined;
  /** What this command counts itself, so that no agent waits for it. */
  older?: OlderConnections | NotKnown | undefined;
  standing?: ReturnType<typeof readStanding>;
  /** By unit. */
  atBoot?: Record<string, BootOrder>;
  damage?: Damage[];
}

export const status = command({
  name: "status",
  about: "Show the agent, its stream to istiod, the services and what is not enforced",
  flags: {
    all: { kind: "switch", about: "list every service, also those without a connection" },
    ...FOLDER_FLAGS,
    ...OUTPUT_FLAG,
  },
  async run({ flags }) {
    const format = formatOf(flags);
    const folders = readFolders(sourcesOf(flags, process.env));
    const { alive, value } = await view<Answer>(folders, "/status", async () => ({
      agent: lastWords(folders).status,
      kernel: await kernelState(folders.bpffs, false),
    }));
    // An agent of an earlier version does not look for it.
    const damage = value.damage ?? (await damageNow(folders));
    const older = value.kernel && (await olderThanAttach(folders.bpffs));
    const atBoot = bootOrders(dirname(installedPaths().unit));
    const standing = readStanding(folders.stateDir);
    if (format === "json") {
      const kernel = value.kernel ?? null;
      const manifest = standing ?? null;
      printJson({ alive, ...value.agent, kernel, olderConnections: older ?? null, atBoot, manifest, damage });
    } else
      print(
        formatStatus(
          { ...value, older, atBoot, standing, damage },
          alive ? undefined : lastWords(folders).sentence,
          folders.bpffs,
          flags.all === true,
        ),
      );
    if (damage.length > 0) return EXIT.damaged;
    return alive ? EXIT.done : EXIT.agentNotRunning;
  },
});

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
  if (kernel) parts.push(formatServices(kernel, all));
  if (agent) parts.push(...formatRemarks(agent, all));
  return parts.join("\n\n");
}

function formatDamage({ what, consequence, cure }: Damage): string {
  return [what, indent(`so: ${consequence}`), indent(`cure: ${cure}`)].join("\n");
}

function agentFacts(agent: AgentStatus, alive: boolean, now: number): [string, string][] {
  const { stream, tables, mesh } = agent;
  const link = `${stream.target} (${stream.plaintext ? "plaintext" : "TLS"})`;
  const state = !alive
    ? "not followed now"
    : stream.connected
      ? `connected for ${formatSpan(now - (stream.connectedSince ?? now))}`
      : `not connected${stream.disconnectedSince ? ` for ${formatSpan(now - stream.disconnectedSince)}` : ""}; the tables stay as they are`;
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
    ["mesh", formatMesh(mesh, agent.snapshot !== undefined)],
    ["tables", `${agent.adopted ? "taken over from an earlier agent; " : ""}${applied}`],
    ...formatSnapshot(agent.snapshot, now),
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

function formatRegistration(
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

/** What istiod tells others to send to this machine, and what to do when that is mTLS. */
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

function formatHealth({ health, stream, registration }: AgentStatus, now: number): [string, string][] {
  if (!health) return [];
  const { healthy, since: from = now, message, streak, checks, probe } = health;
  const state =
    healthy === undefined
      ? `not known yet after ${plural(checks, "check")}`
      : `${healthy ? "healthy" : "NOT HEALTHY"} for ${formatSpan(now - from)}`;
  const against = streak > 0 && healthy !== undefined ? `, ${plural(streak, "check")} against it` : "";
  const reported = !registration
    ? "istiod is not told: set workload-group, or workload-entry"
    : (stream.healthNotTaken ?? (stream.reported ? "istiod is told" : "istiod is not told yet"));
  return [
    ["health", `${state}${against} (${probe}); ${reported}`],
    ...(message === undefined ? [] : [["", message] as [string, string]]),
    ...(registration?.healthNeeds
      ? [["", "the entry was made by hand: istiod heeds it only after"] as [string, string]]
      : []),
    ...formatCommands(registration?.healthNeeds ?? []),
  ];
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

function plural(count: number, one: string, many = `${one}s`): string {
  return `${count} ${count === 1 ? one : many}`;
}

function kernelFacts(kernel: Summary | undefined, bpffs: string): [string, string][] {
  if (!kernel) return [["kernel", `holds nothing: nothing is pinned in ${bpffs}`]];
  const off = kernel.hooks.filter((hook) => !hook.attached).map(({ hook }) => hook);
  const on = kernel.hooks.filter((hook) => hook.attached).map(({ hook }) => hook);
  const { settings } = kernel;
  const memory = kernel.tables.reduce((sum, { bytes }) => sum + bytes, 0);
  return [
    [
      "hooks",
      on.length === 0
        ? "none attached: no connection is governed"
        : `attached: ${on.join(", ")}${off.length > 0 ? `; NOT attached: ${off.join(", ")}` : ""}`,
    ],
    ...formatSettings(kernel.foreign === undefined ? settings : undefined),
    ...formatEjections(kernel.foreign === undefined ? kernel.ejections : undefined),
    ["memory", `${(memory / 2 ** 20).toFixed(1)} MB of tables, pinned in ${kernel.bpffs}`],
  ];
}

function formatSettings(settings: Summary["settings"]): [string, string][] {
  if (!settings) return [];
  return [
    ["governs", `${formatEnrolled(settings)}; network namespace: ${settings.netns}`],
    ["excluded", settings.exclusions.join(", ") || "nothing but loopback, link-local and agents"],
    ["other addresses", settings.fallback],
  ];
}

/** What units get at boot when kmesh can't come up. */
function formatBoot(atBoot: Answer["atBoot"] = {}): [string, string][] {
  const orders = Object.entries(atBoot);
  const of = (order: BootOrder) =>
    orders.flatMap(([unit, each]) => (each === order ? [unit] : [])).join(", ");
  const parts = [
    ["open (rather outside the mesh than not at all)", of("open")],
    ["closed (not before it is governed)", of("closed")],
    ["by a drop-in that was edited", of("edited")],
  ].flatMap(([how, units]) => (units === "" ? [] : [`${how}: ${units}`]));
  return parts.length > 0 ? [["at boot", parts.join("; ")]] : [];
}

/** Endpoints that are told; --output json has all. */
const EJECTED = 5;

function formatEjections(ejections: Summary["ejections"]): [string, string][] {
  if (!ejections) return [];
  const { now, ever, stale } = ejections;
  const shown = now.slice(0, EJECTED).map(({ cluster, address, port, forMs }) => {
    const at = formatMatch({ kind: "address", address, port });
    return `${at} of ${cluster} for ${Math.ceil(forMs / 1000)} s`;
  });
  if (now.length > EJECTED) shown.push(`and ${now.length - EJECTED} more`);
  const times = ever > 0 ? `; ${plural(ever, "time")} in all` : "";
  const why = stale
    ? "; the tables follow no istiod now, so each cluster leaves out endpoints whose connects fail 5 times in a row"
    : "";
  return [["ejected", `${shown.join(", ") || "no endpoint"}${times}${why}`]];
}

function formatEnrolled({ cgroups, units }: NonNullable<Summary["settings"]>): string {
  const running = ({ cgroup, populated }: (typeof units)[number]) =>
    populated ? "runs" : cgroup === undefined ? "is not there now" : "has no process now";
  const named = units.map((each) => `${each.unit} (${running(each)})`);
  return [...cgroups, ...named].join(", ") || "nothing: no cgroup and no unit is enrolled";
}

function warningsOf(agent: AgentStatus | undefined, kernel: Summary | undefined): string[] {
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

/** Cgroups that are named one by one. */
const CGROUPS = 5;

function formatOlder(older: Answer["older"]): string[] {
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

/** What may lie ahead of the clock without a word, milliseconds. */
const AHEAD = 60_000;

/** Every time in the status has passed: one that has not says that the clock was set back since. */
function formatClock(agent: AgentStatus | undefined, now: number): string[] {
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

function formatServices(kernel: Summary, all: boolean): string {
  const shadow = kernel.settings?.shadow ?? true;
  const rows = kernel.services
    .map((each) => ({ ...each, refusals: Object.entries(each.refused) }))
    .sort(
      (a, b) =>
        b.redirected + b.wouldRedirect - a.redirected - a.wouldRedirect || (a.service < b.service ? -1 : 1),
    );
  const shown = all ? rows : rows.slice(0, ROWS);
  const head = [
    "SERVICE",
    "REDIRECTED",
    "PASSED",
    ...(shadow ? ["WOULD REDIRECT", "WOULD REFUSE"] : []),
    "REFUSED",
    "FAILED",
  ];
  const body = shown.map((row) => [
    row.service === "" ? "(no service)" : row.service,
    row.redirected,
    row.passed,
    ...(shadow ? [row.wouldRedirect, row.wouldRefuse] : []),
    row.refusals.map(([reason, count]) => `${count} ${reason}`).join(", ") || "-",
    row.failed,
  ]);
  const more =
    rows.length > shown.length ? `\n... and ${rows.length - shown.length} more: --all lists them` : "";
  return table(head, body) + more;
}

function formatRemarks(agent: AgentStatus, all: boolean): string[] {
  return NOTE_TITLES.flatMap(({ kind, title }) => {
    const lines = agent.mesh.serviceNotes.flatMap(({ service, notes }) =>
      notes.filter((note) => note.kind === kind).map((note) => `${service}: ${note.text}`),
    );
    if (lines.length === 0) return [];
    const shown = all ? lines : lines.slice(0, ROWS);
    const more =
      lines.length > shown.length ? [`... and ${lines.length - shown.length} more: --all lists them`] : [];
    return [`${heading(title)}\n${indent([...shown, ...more].join("\n"))}`];
  });
}

/** The abbreviation keeps its spelling. */
function heading(title: string): string {
  return title.toUpperCase().replace("MTLS", "mTLS");
}

function since(time: string, now: number): string {
  return formatSpan(now - Date.parse(time));
}
