import { sourcesOf } from "../../config/sources.ts";
import { command, FOLDER_FLAGS, OUTPUT_FLAG } from "../framework/command.ts";
import { EXIT } from "../framework/exit.ts";
import { formatOf, print, printJson } from "../framework/output.ts";
import { readStanding } from "../framework/version-rows.ts";
import { damageNow, foldersOf, kernelState, lastWords, olderThanAttach, view } from "../framework/view.ts";
import { bootOrders } from "../service/boot-order.ts";
import { installedPaths } from "../service/install-plan.ts";
import { type Answer, formatStatus } from "../status/page.ts";

export const status = command({
  name: "status",
  about: "Show the agent, its stream to istiod, the services and what is not enforced",
  access: "reader",
  flags: {
    all: { kind: "switch", about: "list every service, also those without a connection" },
    ...FOLDER_FLAGS,
    ...OUTPUT_FLAG,
  },
  async run({ flags }) {
    const format = formatOf(flags);
    const sources = sourcesOf(flags, process.env);
    const folders = foldersOf(flags);
    const { alive, value } = await view<Answer>(folders, "/status", async () => ({
      agent: lastWords(folders).status,
      kernel: await kernelState(folders.bpffs, false),
    }));
    // An agent of an earlier version does not look for it.
    const damage = value.damage ?? (await damageNow(folders, sources));
    const older = value.kernel && (await olderThanAttach(folders.bpffs));
    const atBoot = bootOrders(installedPaths().units);
    const standing = readStanding(folders.stateDir);
    if (format === "json") {
      const kernel = value.kernel ?? null;
      const manifest = standing ?? null;
      printJson({
        alive,
        ...value.agent,
        kernel,
        preexistingConnections: older ?? null,
        atBoot,
        manifest,
        damage,
      });
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
