import { type Folders, readFolders } from "../../../config/config.ts";
import { sourcesOf } from "../../../config/sources.ts";
import { command, FOLDER_FLAGS, OUTPUT_FLAG } from "../../framework/command.ts";
import { EXIT, Failure } from "../../framework/exit.ts";
import { formatOf, print, printJson } from "../../framework/output.ts";
import { confirmed, type Found, findAll, takeDown } from "../../service/teardown.ts";

export const down = command({
  name: "down",
  about: "Stop the agent, then detach and remove everything of kmesh from the kernel",
  changes: true,
  flags: { yes: { kind: "switch", about: "do not ask" }, ...FOLDER_FLAGS, ...OUTPUT_FLAG },
  examples: [["down --yes", "Remove kmesh from the kernel without a question"]],
  async run({ flags }) {
    const format = formatOf(flags);
    const folders = readFolders(sourcesOf(flags, process.env));
    const found = await findAll(folders);
    if (found.pins === 0 && found.agent === undefined && !found.snapshot && !found.manifest) {
      if (format === "json") printJson({ stopped: null, removed: [], snapshot: false });
      else print(`Nothing to do: nothing is pinned in ${folders.bpffs}, and no agent runs.`);
      return EXIT.done;
    }
    if (flags.yes !== true && !(await confirmed(question(folders, found))))
      throw new Failure(EXIT.failed, "nothing was changed");
    const { removed, snapshot, service } = await takeDown(folders);
    if (format === "json")
      printJson({ stopped: found.agent ?? null, service: service ?? null, removed, snapshot });
    else {
      const also = snapshot ? `, and the snapshot in ${folders.stateDir}` : "";
      print(
        `Removed ${removed.length} pins in ${folders.bpffs}${also}. New connections go where apps send them.`,
      );
      if (service !== undefined)
        print(
          `${service} was stopped; if it is enabled it starts at the next boot (systemctl disable ${service}).`,
        );
    }
    return EXIT.done;
  },
});

function question(folders: Folders, { pins, agent }: Found): string {
  const stop = agent === undefined ? "" : `The agent (pid ${agent}) will be stopped. `;
  const snapshot = `The snapshot in ${folders.stateDir} goes too.`;
  if (pins === 0) return stop + snapshot;
  return `${stop}${pins} programs, maps and links in ${folders.bpffs} will be detached and removed; new connections then go where apps send them. ${snapshot}`;
}
