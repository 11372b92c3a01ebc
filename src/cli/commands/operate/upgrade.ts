import { resolve } from "node:path";
import { readFolders } from "../../../config/config.ts";
import { sourcesOf } from "../../../config/sources.ts";
import { command, FOLDER_FLAGS, OUTPUT_FLAG, textFlag } from "../../framework/command.ts";
import { EXIT } from "../../framework/exit.ts";
import { formatOf, print, printJson, remark } from "../../framework/output.ts";
import { examine } from "../../service/executable.ts";
import { printProof, TIMEOUT_FLAG, timeoutOf } from "../../service/handover-client.ts";
import {
  formatLayout,
  replace,
  requireOwnExecutable,
  runningNames,
  same,
} from "../../service/swap-executable.ts";

export const upgrade = command({
  name: "upgrade",
  about: "Replace the running agent by another version; connections continue",
  changes: true,
  positionals: [{ name: "FILE", about: "a kmesh executable, newer or older", required: true }],
  flags: {
    sha256: {
      kind: "text",
      hint: "SUM",
      about: "FILE's checksum (default: from FILE.sha256 or SHA256SUMS beside it)",
    },
    ...TIMEOUT_FLAG,
    ...OUTPUT_FLAG,
    ...FOLDER_FLAGS,
  },
  notes: [
    "FILE is checked first: it must be an undamaged kmesh that runs on this machine. It is then copied beside",
    "the running one, and the agent hands over to it as in `kmesh restart --graceful`. If that works, it gets the installed",
    "name, and the old one stays as NAME.previous for `kmesh rollback`; otherwise the old agent continues (exit code 6).",
    "The systemd unit and the configuration are not changed: `FILE install` brings a new unit.",
  ].join("\n"),
  examples: [
    ["upgrade ./kmesh-0.2.0-linux-x64", "Hand over to another version; the checksum beside it is checked"],
  ],
  async run({ flags, positionals }) {
    const format = formatOf(flags);
    const timeout = timeoutOf(flags);
    const folders = readFolders(sourcesOf(flags, process.env));
    const file = resolve(positionals[0] ?? "");
    const examined = examine(file, textFlag(flags, "sha256"));
    const { version, checksumFrom } = examined;
    const names = await runningNames(folders);
    requireOwnExecutable(names);
    if (same(file, names.installed)) {
      const text = `Nothing to do: ${names.installed} is that very file. kmesh restart --graceful restarts it.`;
      if (format === "json") printJson({ nothing: text });
      else print(text);
      return EXIT.done;
    }
    remark(
      `${file} is kmesh ${version}${checksumFrom === undefined ? "" : `, with the checksum of ${checksumFrom}`}`,
    );
    formatLayout(examined.abi);
    const proof = await replace("upgrade", folders, names, file, examined, timeout);
    printProof("Upgraded", proof, format, { executable: names.installed, previous: names.previous });
    return EXIT.done;
  },
});
