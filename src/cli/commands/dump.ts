import { stringify } from "yaml";
import { toJson } from "../../admin/json.ts";
import type { Snapshot } from "../../state/snapshot.ts";
import { command, FOLDER_FLAGS, OUTPUT_FLAG } from "../framework/command.ts";
import { EXIT, Failure } from "../framework/exit.ts";
import { formatOf, formatSpan, print, printJson, remark } from "../framework/output.ts";
import { foldersOf, kernelState, lastWords, view } from "../framework/view.ts";

const PARTS = ["received", "model", "tables"] as const;

export const dump = command({
  name: "dump",
  about: "Print the configuration as received, the model made of it, or the kernel's tables",
  access: "reader",
  positionals: [{ name: "part", about: "received, model or tables", required: true, choices: PARTS }],
  flags: { ...FOLDER_FLAGS, ...OUTPUT_FLAG },
  async run({ flags, positionals: [part = ""] }) {
    const format = formatOf(flags);
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
          `${sentence} What it received and made of it went with it`,
          "kmesh dump tables shows what the kernel holds.",
        );
      }
      return kernelState(folders.bpffs, true);
    });
    if (value === undefined || value === null) throw nothing(alive, part, folders.bpffs);
    if (!alive && part === "tables")
      remark(`${lastWords(folders).sentence} These are the tables that it left.`);
    if (format === "json") {
      printJson(value as object);
    } else {
      // The agent's answer was JSON; what is read here becomes the same by it.
      const same: unknown = alive ? value : JSON.parse(toJson(value));
      print(stringify(same, { lineWidth: 0, aliasDuplicateObjects: false }).trimEnd());
    }
    return EXIT.done;
  },
});

/** The snapshot that a dead agent left on this machine, when it can be used. */
async function lastSnapshot(stateDir: string): Promise<Snapshot | undefined> {
  const [{ BadSnapshot, readSnapshot }, { machineId }] = await Promise.all([
    import("../../state/snapshot.ts"),
    import("../../machine/machine-id.ts"),
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
    "Start one with kmesh run, or name another folder with --bpffs.",
  );
}
