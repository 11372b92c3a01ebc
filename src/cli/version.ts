import { release } from "node:os";
import { version as number } from "../runtime/version.ts";
import { command, OUTPUT_FLAG } from "./command.ts";
import { EXIT } from "./exit.ts";
import { formatOf, print, printJson } from "./output.ts";

export const version = command({
  name: "version",
  about: "Print the version",
  flags: OUTPUT_FLAG,
  async run({ flags }) {
    const runtime =
      "Bun" in globalThis
        ? `Bun ${process.versions.bun}`
        : "Deno" in globalThis
          ? `Deno ${process.versions.deno}`
          : `Node ${process.versions.node}`;
    const about = { version: number, runtime, kernel: release(), architecture: process.arch };
    if (formatOf(flags) === "json") printJson(about);
    else print(`kmesh ${about.version} (${about.runtime}, Linux ${about.kernel}, ${about.architecture})`);
    return EXIT.done;
  },
});
