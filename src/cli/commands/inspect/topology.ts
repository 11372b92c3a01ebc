import type { Flags } from "../../../config/sources.ts";
import { reasonOf } from "../../../errors/reason.ts";
import type { EdgesDocument } from "../../../telemetry/model.ts";
import { UsageError } from "../../framework/arguments.ts";
import { command, FOLDER_FLAGS, textFlag } from "../../framework/command.ts";
import { EXIT, Failure } from "../../framework/exit.ts";
import { print, printJson } from "../../framework/output.ts";
import { foldersOf } from "../../framework/view.ts";
import { askMap, parseSpan, watch } from "../../topology/ask.ts";
import { renderDot, renderMap, renderMermaid, renderProblems } from "../../topology/render.ts";
import { select } from "../../topology/select.ts";

const FORMATS = ["text", "json", "dot", "mermaid"] as const;

export const topology = command({
  name: "topology",
  about: "Show who talks to whom: callers, units, services and endpoints, and what is wrong",
  access: "reader",
  flags: {
    since: { kind: "text", hint: "TIME", about: "the time window, at most 1h", fallback: "5m" },
    namespace: { kind: "text", hint: "NAME", about: "show only edges of this namespace" },
    failing: { kind: "switch", about: "show only edges with a problem" },
    idle: { kind: "switch", about: "also show edges without traffic in the window" },
    problems: { kind: "switch", about: "show only the problems, worst first; exit code 1 for an error" },
    watch: { kind: "switch", about: "repeat every two seconds" },
    open: { kind: "switch", about: "serve the map as a page on 127.0.0.1 until Ctrl-C, and open a browser" },
    port: { kind: "text", hint: "PORT", about: "the port of --open (default: a free port)" },
    from: {
      kind: "list",
      hint: "FILE|URL",
      about: "show the merged map of other machines: files of --output json --idle, or URLs of --open",
    },
    output: {
      kind: "text",
      short: "o",
      hint: FORMATS.join("|"),
      choices: FORMATS,
      about: "the output format",
      fallback: "text",
    },
    ...FOLDER_FLAGS,
  },
  notes: [
    "The kernel counts, also while no agent runs. Rates and history need the agent.",
    "",
    "Marks: ! fails, ~ is slow or lossy, . had no traffic in the window.",
  ].join("\n"),
  examples: [
    ["topology --problems", "Show problems, each with the next command"],
    ["topology --since 1h --namespace shop", "Show an hour of one namespace"],
    ["topology --open", "Show the map as a page, with curves and details"],
    ["topology --from vm-a.json --from vm-b.json", "Show one map of two machines"],
    ["topology -o mermaid", "Print a graph for a Markdown page"],
  ],
  async run({ flags }) {
    const format = FORMATS.find((each) => each === (textFlag(flags, "output") ?? "text"));
    if (format === undefined)
      throw new UsageError(
        `--output: none of ${FORMATS.join(", ")}`,
        "Write --output text, json, dot or mermaid.",
      );
    const folders = foldersOf(flags);
    const window = parseSpan(textFlag(flags, "since") ?? "5m");
    const namespace = textFlag(flags, "namespace");
    const selection = {
      ...(namespace === undefined ? {} : { namespace }),
      failing: flags.failing === true,
      idle: flags.idle === true,
    };
    const problemsOnly = flags.problems === true;
    const sources = listFlag(flags, "from");
    const whole = async (seconds: number) => {
      if (sources.length === 0) return askMap(folders, seconds);
      const { mergeDocuments } = await import("../../../topology/merge.ts");
      return mergeDocuments(await readAll(sources, seconds));
    };
    if (flags.open === true) {
      const { openPage } = await import("../../topology/open.ts");
      await openPage(folders, whole, portOf(textFlag(flags, "port")), window);
      return EXIT.done;
    }
    const take = async () => select(await whole(window), selection);
    if (flags.watch === true) {
      await watch(2, async () => {
        const document = await take();
        return problemsOnly ? renderProblems(document.problems) : renderMap(document);
      });
      return EXIT.done;
    }
    const document = await take();
    if (format === "json") printJson(document);
    else if (format === "dot") print(renderDot(document));
    else if (format === "mermaid") print(renderMermaid(document));
    else if (!problemsOnly) print(renderMap(document));
    else if (document.problems.length > 0) print(renderProblems(document.problems));
    else print(document.window > 0 ? "No problems." : document.limits.off.join("\n"));
    const bad = problemsOnly && document.problems.some(({ severity }) => severity === "error");
    return bad ? EXIT.failed : EXIT.done;
  },
});

function portOf(text = "0"): number {
  const port = Number(text);
  if (/^\d{1,5}$/.test(text) && port < 65_536) return port;
  throw new UsageError(
    `--port: "${text}" is not a port`,
    "Write a number from 1 to 65535, or leave it out for a free port.",
  );
}

/** Throws Failure for a document that can't be read. */
async function readAll(sources: readonly string[], window: number): Promise<EdgesDocument[]> {
  const { readDocument } = await import("../../../topology/read-documents.ts");
  try {
    return await Promise.all(sources.map((source) => readDocument(source, window)));
  } catch (error) {
    throw new Failure(EXIT.failed, reasonOf(error));
  }
}

function listFlag(flags: Flags, name: string): string[] {
  const value = flags[name];
  return Array.isArray(value) ? value.map(String) : [];
}
