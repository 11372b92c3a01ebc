import { mkdirSync } from "node:fs";
import { dirname } from "node:path";
import { replaceFile } from "../../files/replace-file.ts";
import { documents as allDocuments } from "../documents/documents.ts";
import { command, loadAll } from "../framework/command.ts";
import { EXIT } from "../framework/exit.ts";
import { print } from "../framework/output.ts";

/** For packages; build/documents calls it. */
export const documents = command({
  name: "documents",
  about: "Write the manual pages and the completion of three shells below a folder, as below /usr",
  access: "anyone",
  hidden: true,
  positionals: [{ name: "folder", about: "the prefix", required: true }],
  async run({ positionals: [folder = ""] }, { commands, about }) {
    for (const { path, text } of allDocuments(folder, await loadAll(commands), about)) {
      mkdirSync(dirname(path), { recursive: true });
      replaceFile(path, text, { mode: 0o644 });
      print(path);
    }
    return EXIT.done;
  },
});
