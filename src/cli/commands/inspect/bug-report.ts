import { hostname } from "node:os";
import { resolve } from "node:path";
import { type Folders, readFolders } from "../../../config/config.ts";
import { readAsFarAsUsable, type Sources, sourcesOf } from "../../../config/sources.ts";
import { replaceFile } from "../../../files/replace-file.ts";
import { archive } from "../../bug-report/archive.ts";
import { type Fact, gather, sources } from "../../bug-report/facts.ts";
import { command, FOLDER_FLAGS, OUTPUT_FLAG } from "../../framework/command.ts";
import { EXIT } from "../../framework/exit.ts";
import { formatOf, print, printJson, remark } from "../../framework/output.ts";

export const bugReport = command({
  name: "bug-report",
  about: "Write an archive with diagnostic information, without secrets",
  changes: true,
  positionals: [
    {
      name: "file",
      about: "the archive (default: kmesh-report-HOST-TIME.tar.gz here)",
      required: false,
      completes: "file",
    },
  ],
  flags: { ...OUTPUT_FLAG, ...FOLDER_FLAGS },
  notes:
    "It has status, doctor, history, certificates, the map, dumps, the configuration, the journal, and facts " +
    "of kernel, network and BPF. Keys, tokens, passwords, header values and arguments of probes are left out; names, addresses " +
    "and labels are not: read it before you share it.",
  examples: [["bug-report /tmp/report.tar.gz", "Write the archive to this file; tar -tzf lists it"]],
  async run({ flags, positionals: [file] }) {
    const format = formatOf(flags);
    const from = sourcesOf(flags, process.env);
    const mesh = meshOf(from);
    const now = new Date();
    const stamp = now.toISOString().replace(/[-:]|\.\d+/g, "");
    const name = `kmesh-report-${hostname()}-${stamp}`;
    const path = resolve(file ?? `${name}.tar.gz`);
    const facts: Fact[] = [];
    for (const source of sources(mesh, from.file.path)) {
      if (format === "text") remark(`kmesh: ${source.name}`);
      facts.push(await gather(source));
    }
    const bytes = archive(name, facts, now.getTime() / 1000);
    replaceFile(path, bytes, { mode: 0o600 });
    if (format === "json")
      printJson({ file: path, bytes: bytes.length, files: facts.map((each) => each.name) });
    else
      print(
        `${path} (${facts.length} files, ${Math.ceil(bytes.length / 1024)} KB). Read it before you pass it on.`,
      );
    return EXIT.done;
  },
});

/** The flags of kmesh's own commands. A configuration that can't be read is in the report, and decides nothing. */
function meshOf(from: Sources): string[] {
  let named = from.file.required ? [`--config=${from.file.path}`] : [];
  const optional = { ...from, file: { ...from.file, required: false } };
  const folders = readAsFarAsUsable(optional, readFolders, ({ message }) => {
    named = [];
    remark(`kmesh: ${message}. The report is about the default folders.`);
  });
  return [...folderFlags(folders), ...named];
}

function folderFlags({ bpffs, stateDir, runDir }: Folders): string[] {
  return [`--bpffs=${bpffs}`, `--state-dir=${stateDir}`, `--run-dir=${runDir}`];
}
