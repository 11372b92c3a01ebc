/** The files that come with the executable: manual pages, and completion for three shells. */
import { basename, join } from "node:path";
import type { Command } from "../framework/command.ts";
import { completionScript } from "./completion.ts";
import { manualPage } from "./manual.ts";

/** The path of each file below a prefix (/usr, /usr/local), where man(1) and the shells look. */
const PLACES = {
  "kmesh.8": "share/man/man8/kmesh.8",
  "kmesh.yaml.5": "share/man/man5/kmesh.yaml.5",
  bash: "share/bash-completion/completions/kmesh",
  zsh: "share/zsh/vendor-completions/_kmesh",
  fish: "share/fish/vendor_completions.d/kmesh.fish",
} as const;

export interface Document {
  path: string;
  text: string;
}

/** The paths of all files, whether or not they exist. */
export function documentPaths(prefix: string): string[] {
  return Object.values(PLACES).map((place) => pathBelow(prefix, place));
}

/** zsh has another folder for files that no package brought. */
function pathBelow(prefix: string, place: string): string {
  return join(
    prefix,
    basename(prefix) === "local" ? place.replace("vendor-completions", "site-functions") : place,
  );
}

/** All of them, as files below `prefix`. */
export function documents(
  prefix: string,
  commands: readonly Command[],
  about: { version: string; description: string },
): Document[] {
  const texts: Record<keyof typeof PLACES, string> = {
    "kmesh.8": manualPage("kmesh.8", commands, about),
    "kmesh.yaml.5": manualPage("kmesh.yaml.5", commands, about),
    bash: completionScript("bash"),
    zsh: completionScript("zsh"),
    fish: completionScript("fish"),
  };
  return Object.entries(PLACES).map(([name, place]) => ({
    path: pathBelow(prefix, place),
    text: texts[name as keyof typeof PLACES],
  }));
}
