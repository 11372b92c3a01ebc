import { AdminError } from "../../../admin/client.ts";
import type { Explained } from "../../../admin/explain.ts";
import { BadRequest } from "../../../admin/server.ts";
import type { ConfigError } from "../../../config/config-error.ts";
import { SETTINGS } from "../../../config/settings.ts";
import {
  CONFIG_FILE,
  type Flags,
  readAsFarAsUsable,
  type Sources,
  sourcesOf,
} from "../../../config/sources.ts";
import { type Finding, firstError, type Result, runChecks } from "../../../doctor/check-runner.ts";
import { checksOf } from "../../../doctor/checks.ts";
import { isFaulty, type Trial, tryEndpoints } from "../../../doctor/endpoints.ts";
import { ActionableError } from "../../../errors/actionable-error.ts";
import { reasonOf } from "../../../errors/reason.ts";
import { type ExaminedConfig, examineFiles } from "../../../machine/config-files.ts";
import { formatMatch } from "../../../mesh/frontend.ts";
import { CONFIG_FLAG, command, OUTPUT_FLAG } from "../../framework/command.ts";
import { EXIT, Failure } from "../../framework/exit.ts";
import { type Format, formatOf, indent, plural, print, printJson, table } from "../../framework/output.ts";
import { foldersOf, view } from "../../framework/view.ts";

export const doctor = command({
  name: "doctor",
  about: "Find what keeps this machine out of the mesh, or a service from answering, and say how to fix it",
  positionals: [
    {
      name: "destination",
      about: "HOST, HOST:PORT or IP:PORT: try each endpoint with a real connection",
      required: false,
      completes: "service",
    },
  ],
  flags: { ...SETTINGS, ...CONFIG_FLAG, ...OUTPUT_FLAG },
  notes:
    "Every setting is a flag, as for kmesh run: kmesh run --help lists them.\n\nChecks in this order: configuration, kernel, " +
    "cgroup2, bpffs, clock, files, names, istiod's name, a connection, TLS, identity, agent, tunnel. It changes nothing; it " +
    "requests a certificate from istiod and discards it. Exit code 1 for an error, 0 with warnings only.\n\nWith a destination it shows the kernel's decision for a connection to it, " +
    "and connects to each endpoint from this process, which the mesh does not govern. Exit code 1 when the connection would be refused " +
    "or an endpoint does not answer.",
  examples: [
    ["doctor", "Check this machine and its connection to istiod"],
    ["doctor shop.demo:80", "Find which endpoint of a service fails, and why"],
  ],
  async run({ flags, positionals: [destination] }) {
    const format = formatOf(flags);
    if (destination !== undefined) return tryDestination(destination, flags, format);
    const sources = sourcesOf(flags, process.env);
    const examined = examine(sources);
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

/** A file that is not a configuration is the only problem: the checks that need none are made all the same. */
function examine(sources: Sources): ExaminedConfig {
  const faults: ConfigError[] = [];
  const examined = readAsFarAsUsable(sources, examineFiles, (fault) => faults.push(fault));
  return faults.length > 0 ? { ...examined, problems: faults } : examined;
}

/** Connects to each endpoint of a destination. */
async function tryDestination(destination: string, flags: Flags, format: Format): Promise<number> {
  const folders = foldersOf(flags);
  await exemptFromMesh(folders.bpffs);
  const path = `/explain?target=${encodeURIComponent(destination)}`;
  let explanations: Explained[];
  try {
    ({ value: explanations } = await view<Explained[]>(folders, path, async () => {
      const { explainDestination } = await import("../../../admin/explain.ts");
      return explainDestination(folders.bpffs, destination);
    }));
  } catch (error) {
    const refused = error instanceof BadRequest || (error instanceof AdminError && error.status === 400);
    if (refused) throw new Failure(EXIT.usage, reasonOf(error), "kmesh status lists the services.");
    if (error instanceof ActionableError && error.name === "NothingPinned")
      throw new Failure(EXIT.agentNotRunning, error.message, error.next);
    throw error;
  }
  const trials: Trial[] = [];
  for (const explanation of explanations) trials.push(await tryEndpoints(explanation));
  const ok = !trials.some(isFaulty);
  if (format === "json")
    printJson({
      ok,
      destinations: trials.map(({ explanation: { asked, verdict, reason, service }, endpoints, left }) => ({
        asked,
        verdict,
        reason: reason ?? null,
        service: service ?? null,
        endpoints,
        left,
      })),
    });
  else print(trials.map(formatTrial).join("\n\n"));
  return ok ? EXIT.done : EXIT.failed;
}

const VERDICTS: Record<Explained["verdict"], string> = {
  redirect: "goes to one of these endpoints",
  pass: "goes to the address itself",
  refuse: "is refused",
};

/** Prints the kernel's decision, a row for each endpoint, and the next step for endpoints that fail. */
export function formatTrial({ explanation, endpoints, left }: Trial): string {
  const { asked, verdict, reason, why } = explanation;
  const at = (address: string, port: number) => formatMatch({ kind: "address", address, port });
  const head = `A connection to ${at(asked.address, asked.port)} ${VERDICTS[verdict]}${reason ? `: ${reason}` : ""}`;
  if (verdict === "refuse") return [head, indent(why.join("\n"))].join("\n");
  const rows = endpoints.map(({ cluster, address, port, share, ejectedFor, state, milliseconds, error }) => [
    at(address, port),
    `${(share * 100).toFixed(1)} %`,
    ejectedFor > 0 ? `no, for ${Math.ceil(ejectedFor / 1000)} s` : "yes",
    state === "ok" ? `ok, ${milliseconds} ms` : `FAILS: ${error?.code} ${error?.text}`,
    cluster,
  ]);
  const failing = endpoints.filter(({ state }) => state === "error");
  const cures = [...new Set(failing.flatMap(({ error }) => error?.cure || []))];
  return [
    head,
    indent(table(["ENDPOINT", "SHARE", "TAKES NEW", "CONNECT", "CLUSTER"], rows)),
    ...(left > 0 ? [indent(`${plural(left, "more endpoint")} not tried`)] : []),
    failing.length === 0
      ? `${plural(endpoints.length, "endpoint")}: all answer.`
      : `${failing.length} of ${plural(endpoints.length, "endpoint")} ${failing.length === 1 ? "fails" : "fail"}. ${cures.join(" ")}`,
  ].join("\n");
}

const MARKS: Readonly<Record<Finding["state"], string>> = { ok: "ok", warning: "note", error: "WRONG" };

/** One line for each finding, followed by the fix. */
export function formatResult({ check, findings }: Result, width: number): string {
  if (findings.length === 0)
    return `${check.padEnd(width)}  -      not checked: it needs what is wrong above`;
  return findings
    .flatMap((finding, i) => {
      const head = `${(i === 0 ? check : "").padEnd(width)}  ${MARKS[finding.state].padEnd(5)}  `;
      const cure = "cure" in finding && finding.cure ? [`${" ".repeat(head.length)}${finding.cure}`] : [];
      return [head + finding.text, ...cure];
    })
    .join("\n");
}

/** Exempts this process, because the mesh may govern it and redirect connections that the agent makes directly. */
async function exemptFromMesh(bpffs: string): Promise<void> {
  // Loaded here, because libbpf may not load on this machine; the checks report that.
  try {
    const [{ openPinned }, { exemptSelf }] = await Promise.all([
      import("../../../datapath/inspect/inspect.ts"),
      import("../../../datapath/tables/enrolment.ts"),
    ]);
    const tables = openPinned(bpffs);
    try {
      exemptSelf(tables.maps.agents);
    } finally {
      tables.close();
    }
  } catch {
    // Nothing is pinned, or this version can't read it. The checks report that.
  }
}
