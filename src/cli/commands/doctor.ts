import { SETTINGS } from "../../config/settings.ts";
import { CONFIG_FILE, sourcesOf } from "../../config/sources.ts";
import { type Finding, firstError, type Result, runChecks } from "../../doctor/check-runner.ts";
import { checksOf } from "../../doctor/checks.ts";
import { examineFiles } from "../../machine/config-files.ts";
import { CONFIG_FLAG, command, OUTPUT_FLAG } from "../framework/command.ts";
import { EXIT } from "../framework/exit.ts";
import { formatOf, print, printJson } from "../framework/output.ts";

export const doctor = command({
  name: "doctor",
  about: "Look for what keeps this machine from the mesh, and say what mends it",
  flags: { ...SETTINGS, ...CONFIG_FLAG, ...OUTPUT_FLAG },
  notes: [
    "Looks in this order: configuration, kernel, cgroup2, bpffs, clock, files, istiod's name, a connection, TLS, identity, agent.",
    "The settings come from where `kmesh run` has them. Nothing is changed; istiod is asked for a certificate that is not kept.",
    "Exit code 1 when something is wrong; remarks alone are none.",
  ].join("\n"),
  async run({ flags }) {
    const format = formatOf(flags);
    const sources = sourcesOf(flags, process.env);
    const examined = examineFiles(sources);
    await exemptFromMesh(examined.config.bpffs);
    const checks = checksOf(examined, sources.file.path || CONFIG_FILE);
    const width = Math.max(...checks.map(({ name }) => name.length));
    const results = await runChecks(checks, (result) => {
      if (format === "text") print(formatResult(result, width));
    });
    const first = firstError(results);
    if (format === "json") printJson({ ok: first === undefined, first: first ?? null, checks: results });
    else print(`\n${first ? `First: ${first.text}\n  ${first.cure}` : "Nothing is wrong."}`);
    return first ? EXIT.failed : EXIT.done;
  },
});

const MARKS: Readonly<Record<Finding["state"], string>> = { ok: "ok", warning: "note", error: "WRONG" };

/** A line for each finding; what mends it stands below. */
export function formatResult({ check, findings }: Result, width: number): string {
  if (findings.length === 0)
    return `${check.padEnd(width)}  -      not looked at: it needs what is wrong above`;
  return findings
    .flatMap((finding, i) => {
      const head = `${(i === 0 ? check : "").padEnd(width)}  ${MARKS[finding.state].padEnd(5)}  `;
      const cure = "cure" in finding && finding.cure ? [`${" ".repeat(head.length)}${finding.cure}`] : [];
      return [head + finding.text, ...cure];
    })
    .join("\n");
}

/** The mesh may govern this very process, and refuse or redirect what the agent itself would reach. */
async function exemptFromMesh(bpffs: string): Promise<void> {
  // Loaded here: it needs libbpf, which the checks may find to be of no use on this machine.
  try {
    const [{ openPinned }, { exemptSelf }] = await Promise.all([
      import("../../datapath/inspect/inspect.ts"),
      import("../../datapath/tables/enrolment.ts"),
    ]);
    const tables = openPinned(bpffs);
    try {
      exemptSelf(tables.maps.agents);
    } finally {
      tables.close();
    }
  } catch {
    // Nothing is pinned, or not so that this version can read it: the checks say what can be said.
  }
}
