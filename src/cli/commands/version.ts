import { release } from "node:os";
import { ABI_ID } from "../../datapath/tables/layout.gen.ts";
import { PROTOCOL } from "../../handover/protocol.ts";
import { ABI_ID as NAMES_ABI } from "../../names/layout.gen.ts";
import { version as number } from "../../runtime/version.ts";
import { command, OUTPUT_FLAG } from "../framework/command.ts";
import { EXIT } from "../framework/exit.ts";
import { formatOf, print, printJson } from "../framework/output.ts";

export const version = command({
  name: "version",
  about: "Print the version",
  access: "anyone",
  flags: OUTPUT_FLAG,
  examples: [["version -o json", "Print version, kernel and table layout as JSON"]],
  async run({ flags }) {
    const { keepId } = await import("../../datapath/generation/keep.ts");
    const runtime =
      "Bun" in globalThis
        ? `Bun ${process.versions.bun}`
        : "Deno" in globalThis
          ? `Deno ${process.versions.deno}`
          : `Node ${process.versions.node}`;
    const about = {
      program: "kmesh",
      version: number,
      runtime,
      kernel: release(),
      architecture: process.arch,
      // `kmesh upgrade` of another version reads these.
      abi: ABI_ID,
      keep: keepId(),
      handover: PROTOCOL,
      // A version without this field does not know names and would leave their programs attached.
      names: NAMES_ABI,
    };
    if (formatOf(flags) === "json") printJson(about);
    else print(`kmesh ${about.version} (${about.runtime}, Linux ${about.kernel}, ${about.architecture})`);
    return EXIT.done;
  },
});
