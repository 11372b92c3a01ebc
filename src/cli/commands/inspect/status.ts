import { sourcesOf } from "../../../config/sources.ts";
import { lostInResolved } from "../../../doctor/resolved.ts";
import { listenerStates } from "../../../machine/tunnel/sockets.ts";
import type { NamesStatus } from "../../../names/status.ts";
import { readTunnels } from "../../../tunnel/process/status-file.ts";
import { command, FOLDER_FLAGS, OUTPUT_FLAG } from "../../framework/command.ts";
import { EXIT } from "../../framework/exit.ts";
import { type Format, formatOf, outputIsLost, print, printJson } from "../../framework/output.ts";
import { readStanding } from "../../framework/version-rows.ts";
import { damageNow, foldersOf, kernelState, lastWords, olderThanAttach, view } from "../../framework/view.ts";
import { bootOrders } from "../../service/boot-order.ts";
import { installedPaths } from "../../service/install-plan.ts";
import { type Answer, formatBrief, formatProblems, formatStatus } from "../../status/page.ts";
import { type Filter, narrow, noMatch, troubles } from "../../status/services.ts";

/** Interval of --watch, milliseconds. */
const LOOK = 2_000;

export const status = command({
  name: "status",
  about: "Show the agent, its stream to istiod, the services, and unenforced configuration",
  access: "reader",
  positionals: [
    {
      name: "pattern",
      about: "show services whose name contains this, or matches it if it has * or ?",
      required: false,
      completes: "service",
    },
  ],
  flags: {
    all: { kind: "switch", short: "a", about: "list all services, also idle ones" },
    problems: { kind: "switch", short: "p", about: "show problems only" },
    brief: { kind: "switch", short: "b", about: "show a few lines: agent, istiod, hooks, problems" },
    watch: { kind: "switch", short: "w", about: "repeat every 2 s until Ctrl-C" },
    ...FOLDER_FLAGS,
    ...OUTPUT_FLAG,
  },
  notes:
    "Refused and failed connections come first, with their services. The counters are the kernel's: they continue " +
    "over restarts of the agent. Exit code 10 when something is damaged, 3 when no agent runs.",
  examples: [
    ["status --problems", "Show refused and failed connections, damage, and unenforced configuration"],
    ["status shop.demo", "Show the services with this name, also idle ones"],
    ["status '*.internal:*' -o json", "Print counters and notes of some services as JSON"],
  ],
  async run({ flags, positionals: [pattern] }) {
    const format = formatOf(flags);
    const filter: Filter = { pattern, problems: flags.problems === true };
    const page = (answer: Answer, dead: string | undefined, bpffs: string) => {
      const none = filter.problems ? undefined : noMatch(answer.kernel, pattern);
      if (none !== undefined) return none;
      if (flags.brief === true) return formatBrief(answer, dead);
      if (filter.problems) return formatProblems(answer, dead);
      return formatStatus(answer, dead, bpffs, flags.all === true || pattern !== undefined);
    };
    if (flags.watch !== true) return look(flags, filter, format, page, "");
    const clear = process.stdout.isTTY === true ? "\u001b[H\u001b[2J" : "";
    for (;;) {
      const code = await look(flags, filter, format, page, clear);
      if (outputIsLost()) return code;
      await new Promise((resolve) => setTimeout(resolve, LOOK));
    }
  },
});

/** Reads and prints the status once, after the text `before`. Returns the exit code. */
async function look(
  flags: Parameters<typeof sourcesOf>[0],
  filter: Filter,
  format: Format,
  page: (answer: Answer, dead: string | undefined, bpffs: string) => string,
  before: string,
): Promise<number> {
  const folders = foldersOf(flags);
  const { alive, value } = await view<Answer>(folders, "/status", async () => ({
    agent: lastWords(folders).status,
    kernel: await kernelState(folders.bpffs, false),
    inbound: await inboundState(folders.bpffs),
  }));
  // An agent of an earlier version does not check this.
  const damage = value.damage ?? (await damageNow(folders, sourcesOf(flags, process.env)));
  // Members of admin-group get the agent's answer only; the following needs root.
  const root = process.geteuid?.() === 0;
  const older = root && value.kernel ? await olderThanAttach(folders.bpffs) : undefined;
  const standing = root ? readStanding(folders.stateDir) : undefined;
  const tunnels = root ? readTunnels(folders.runDir) : [];
  const sockets = root ? listenerStates() : undefined;
  const atBoot = bootOrders(installedPaths().units);
  const lostNames = lookForLostNames(value.agent?.names);
  const answer = narrow({ ...value, older, atBoot, tunnels, sockets, standing, lostNames, damage }, filter);
  if (format === "json") {
    printJson({
      alive,
      ...answer.agent,
      inbound: answer.inbound
        ? { ...answer.agent?.inbound, ...answer.inbound }
        : (answer.agent?.inbound ?? null),
      kernel: answer.kernel ?? null,
      trouble: answer.kernel ? troubles(answer.kernel) : null,
      tunnels,
      preexistingConnections: older ?? null,
      atBoot,
      manifest: standing ?? null,
      lostNames: lostNames ?? null,
      damage,
    });
  } else print(before + page(answer, alive ? undefined : lastWords(folders).sentence, folders.bpffs));
  if (damage.length > 0) return EXIT.damaged;
  return alive ? EXIT.done : EXIT.agentNotRunning;
}

/** Mesh names that systemd-resolved asks nobody for. */
function lookForLostNames(names: NamesStatus | undefined): Answer["lostNames"] {
  const { localHost, askers } = names ?? {};
  if (localHost === undefined || askers === "nobody") return undefined;
  const lost = lostInResolved(localHost);
  return lost && { example: localHost, ...lost };
}

/** Inbound policies and refusals, read from the pins; undefined without inbound policies. */
async function inboundState(bpffs: string): Promise<Answer["inbound"]> {
  const { viewInbound } = await import("../../../inbound/view.ts");
  return viewInbound(bpffs);
}
