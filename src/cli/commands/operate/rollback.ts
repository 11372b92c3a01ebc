import { existsSync } from "node:fs";
import { readFolders } from "../../../config/config.ts";
import { sourcesOf } from "../../../config/sources.ts";
import { command, FOLDER_FLAGS, OUTPUT_FLAG } from "../../framework/command.ts";
import { EXIT, Failure } from "../../framework/exit.ts";
import { formatOf, remark } from "../../framework/output.ts";
import { examine } from "../../service/executable.ts";
import { printProof, TIMEOUT_FLAG, timeoutOf } from "../../service/handover-client.ts";
import { formatLayout, replace, requireOwnExecutable, runningNames } from "../../service/swap-executable.ts";

export const rollback = command({
  name: "rollback",
  about: "Go back to the previous version; connections continue",
  changes: true,
  flags: { ...TIMEOUT_FLAG, ...OUTPUT_FLAG, ...FOLDER_FLAGS },
  notes: [
    "The same as `kmesh upgrade` with NAME.previous, which the last upgrade or install left. The present version becomes the",
    "previous one, so a second rollback goes forward again.",
  ].join("\n"),
  examples: [["rollback", "Go back to the version before the last upgrade"]],
  async run({ flags }) {
    const format = formatOf(flags);
    const timeout = timeoutOf(flags);
    const folders = readFolders(sourcesOf(flags, process.env));
    const names = await runningNames(folders);
    requireOwnExecutable(names);
    if (!existsSync(names.previous))
      throw new Failure(
        EXIT.failed,
        `there is no ${names.previous} to go back to`,
        "kmesh upgrade FILE takes any version, older ones too.",
      );
    const examined = examine(names.previous);
    remark(`${names.previous} is kmesh ${examined.version}`);
    formatLayout(examined.abi);
    const proof = await replace("rollback", folders, names, names.previous, examined, timeout);
    printProof("Rolled back", proof, format, { executable: names.installed, previous: names.previous });
    return EXIT.done;
  },
});
