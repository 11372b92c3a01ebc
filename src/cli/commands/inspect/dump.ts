import { stringify } from "yaml";
import { toJson } from "../../../admin/json.ts";
import { closest } from "../../../config/did-you-mean.ts";
import type { Setting } from "../../../config/settings.ts";
import type { Flags } from "../../../config/sources.ts";
import type { Snapshot } from "../../../state/snapshot.ts";
import { type Filter, filterDump, isEmpty, SECTIONS } from "../../dump/filter.ts";
import { UsageError } from "../../framework/arguments.ts";
import { command, FOLDER_FLAGS, OUTPUT_FLAG, textFlag } from "../../framework/command.ts";
import { EXIT, Failure } from "../../framework/exit.ts";
import { formatOf, formatSpan, print, printJson, remark } from "../../framework/output.ts";
import { foldersOf, kernelState, lastWords, START_AN_AGENT, view } from "../../framework/view.ts";

const FILTER_FLAGS: Record<string, Setting> = {
  type: { kind: "list", hint: "TYPE", choices: SECTIONS, about: `only these: ${SECTIONS.join(", ")}` },
  name: { kind: "text", hint: "NAME", about: "only what has exactly this name" },
  fqdn: { kind: "text", hint: "TEXT", about: "only hosts whose name has this in it" },
  port: { kind: "text", hint: "PORT", about: "only this port of a service or frontend" },
  direction: {
    kind: "text",
    hint: "inbound|outbound",
    choices: ["inbound", "outbound"],
    about: "only clusters and listeners of this direction",
  },
  subset: { kind: "text", hint: "NAME", about: "only clusters of this subset" },
  address: { kind: "text", hint: "ADDRESS", about: "only what is reached at, or leads to, this address" },
};

const PARTS = ["received", "model", "tables"] as const;

export const dump = command({
  name: "dump",
  about: "Print the received configuration, the compiled model, or the kernel's tables",
  access: "reader",
  positionals: [{ name: "part", about: "received, model or tables", required: true, choices: PARTS }],
  flags: { ...FILTER_FLAGS, ...FOLDER_FLAGS, ...OUTPUT_FLAG },
  examples: [
    ["dump model --type frontends --port 80", "Print the frontends of port 80"],
    ["dump received --fqdn reviews.shop", "Print istiod's resources for a host"],
    ["dump tables --type clusters --subset v2 -o json", "Print a subset's clusters in the kernel as JSON"],
  ],
  async run({ flags, positionals: [part = ""] }) {
    const format = formatOf(flags);
    const filter = filterOf(flags);
    const folders = foldersOf(flags);
    const { alive, value } = await view<unknown>(folders, `/dump/${part}`, async () => {
      const { sentence } = lastWords(folders);
      const snapshot = part === "model" ? await lastSnapshot(folders.stateDir) : undefined;
      if (snapshot) {
        const age = formatSpan(Date.now() - snapshot.writtenAt.getTime());
        remark(`${sentence} This is its last good snapshot, written ${age} ago.`);
        return snapshot.mesh;
      }
      if (part !== "tables") {
        throw new Failure(
          EXIT.agentNotRunning,
          `${sentence} What istiod sent it, and the model of that, ended with it`,
          "kmesh dump tables shows what the kernel holds.",
        );
      }
      return kernelState(folders.bpffs, true);
    });
    if (value === undefined || value === null) throw nothing(alive, part, folders.bpffs);
    if (!alive && part === "tables")
      remark(`${lastWords(folders).sentence} These are the tables that it left.`);
    if (format === "json" && isEmpty(filter)) {
      printJson(value as object);
    } else {
      // The agent answers in JSON. Convert data that was read here to the same form.
      const whole = (alive ? value : JSON.parse(toJson(value))) as Record<string, unknown>;
      const same = isEmpty(filter) ? whole : filterDump(whole, filter);
      if (!isEmpty(filter) && Object.keys(same).length === 0) {
        throw new Failure(
          EXIT.failed,
          `nothing in kmesh dump ${part} fits these filters`,
          "Leave one out, or ask for another part.",
        );
      }
      if (format === "json") printJson(same);
      else print(stringify(same, { lineWidth: 0, aliasDuplicateObjects: false }).trimEnd());
    }
    return EXIT.done;
  },
});

function filterOf(flags: Flags): Filter {
  const types = flags.type;
  const list = Array.isArray(types) ? types.flatMap((text) => text.split(",")) : [];
  for (const type of list) {
    if ((SECTIONS as readonly string[]).includes(type)) continue;
    const near = closest(type, SECTIONS);
    throw new UsageError(
      `there is no type "${type}" in a dump`,
      near ? `Did you mean "${near}"?` : `Write one of ${SECTIONS.join(", ")}.`,
    );
  }
  const filter: Filter = { types: list };
  for (const name of ["name", "fqdn", "direction", "subset", "address"] as const) {
    const text = textFlag(flags, name);
    if (text !== undefined) filter[name] = text;
  }
  const { direction } = filter;
  if (direction !== undefined && direction !== "inbound" && direction !== "outbound")
    throw new UsageError(`"${direction}" is not a direction`, "Write inbound or outbound.");
  const port = textFlag(flags, "port");
  if (port === undefined) return filter;
  if (!/^\d{1,5}$/.test(port) || Number(port) < 1 || Number(port) > 65535)
    throw new UsageError(`"${port}" is not a port`, "Write a number from 1 to 65535.");
  return { ...filter, port: Number(port) };
}

/** The snapshot of an agent that is gone, if it is usable. */
async function lastSnapshot(stateDir: string): Promise<Snapshot | undefined> {
  const [{ BadSnapshot, readSnapshot }, { machineId }] = await Promise.all([
    import("../../../state/snapshot.ts"),
    import("../../../machine/machine-id.ts"),
  ]);
  const machine = machineId();
  try {
    return machine === undefined ? undefined : readSnapshot(stateDir, { machine });
  } catch (error) {
    if (error instanceof BadSnapshot) return undefined;
    throw error;
  }
}

function nothing(alive: boolean, part: string, bpffs: string): Failure {
  if (alive)
    return new Failure(
      EXIT.failed,
      `there is no ${part} yet: istiod has not sent anything`,
      "kmesh status shows the stream.",
    );
  return new Failure(
    EXIT.agentNotRunning,
    `no agent runs, and nothing is pinned in ${bpffs}`,
    `${START_AN_AGENT} --bpffs names another folder.`,
  );
}
