import { completionScript, SHELLS, type Shell } from "../documents/completion.ts";
import { command, loadAll } from "../framework/command.ts";
import { EXIT } from "../framework/exit.ts";
import { print } from "../framework/output.ts";

export const completion = command({
  name: "completion",
  about: "Print the completion script of a shell: commands, flags, services and units",
  access: "anyone",
  positionals: [{ name: "shell", about: "bash, zsh or fish", required: true, choices: SHELLS }],
  notes:
    "kmesh install and the packages install it for new shells. Names of services come from the running agent, names of " +
    "units from systemd.",
  examples: [
    ["completion bash > /etc/bash_completion.d/kmesh", "Install completion for bash, for all users"],
    ["completion fish | source", "Load completion into this fish"],
  ],
  async run({ positionals: [shell] }) {
    print(completionScript(shell as Shell).trimEnd());
    return EXIT.done;
  },
});

export const completeWords = command({
  name: "complete-words",
  about: "What could come next on a command line; the shells' scripts ask it",
  access: "anyone",
  hidden: true,
  positionals: [
    { name: "word", about: "the words after kmesh, the last one unfinished", required: false, many: true },
  ],
  async run({ positionals }, { commands }) {
    const [{ candidates }, { MACHINE_NAMES }] = await Promise.all([
      import("../documents/words.ts"),
      import("../documents/names.ts"),
    ]);
    const words = positionals.map((word) => word ?? "");
    const found = await candidates(words, await loadAll(commands), MACHINE_NAMES);
    if (found.length > 0) print(found.map(([word, about]) => `${word}\t${about}`).join("\n"));
    return EXIT.done;
  },
});
