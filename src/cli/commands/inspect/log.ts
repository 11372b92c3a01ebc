import { orderAgent } from "../../../admin/client.ts";
import { adminSocket } from "../../../admin/status.ts";
import { mergeFilters } from "../../../config/telemetry.ts";
import type { LogRecord } from "../../../telemetry/access-log/record.ts";
import { UsageError } from "../../framework/arguments.ts";
import { command, FOLDER_FLAGS, OUTPUT_FLAG, textFlag } from "../../framework/command.ts";
import { EXIT, Failure } from "../../framework/exit.ts";
import { formatOf, outputIsLost, print } from "../../framework/output.ts";
import { foldersOf, lastWords, START_AN_AGENT } from "../../framework/view.ts";

/** Longest wait for the next connection, milliseconds. */
const SILENCE = 86_400_000;

export const log = command({
  name: "log",
  about: "Show connections as they end, live",
  flags: {
    follow: { kind: "switch", short: "f", about: "continue until Ctrl-C (default)" },
    count: { kind: "text", hint: "COUNT", about: "end after this number of lines" },
    failures: { kind: "switch", about: "only failed and refused connections" },
    service: { kind: "text", hint: "HOST[:PORT]", about: "only connections to this service" },
    unit: { kind: "text", hint: "NAME", about: "only connections of this unit" },
    ...OUTPUT_FLAG,
    ...FOLDER_FLAGS,
  },
  notes: "With --output json each line is an object. A slow reader loses lines: it never delays the agent.",
  examples: [
    ["log --follow --failures", "Follow failed connections"],
    ["log --count 10 --unit shop.service", "Show the next ten connections of one unit"],
  ],
  async run({ flags }) {
    const format = formatOf(flags);
    const folders = foldersOf(flags);
    const { formatRecord, matches } = await import("../../../telemetry/access-log/record.ts");
    const service = textFlag(flags, "service");
    const unit = textFlag(flags, "unit");
    const filter = mergeFilters([
      ...(flags.failures === true ? [{ kind: "failures" } as const] : []),
      ...(service === undefined ? [] : [{ kind: "service", name: service } as const]),
      ...(unit === undefined ? [] : [{ kind: "unit", name: unit } as const]),
    ]);
    const most = countOf(textFlag(flags, "count"));
    const { promise: enough, resolve } = Promise.withResolvers<true>();
    process.once("SIGINT", () => resolve(true));
    let printed = 0;
    const follow = orderAgent(
      adminSocket(folders.runDir),
      "/log",
      {},
      (line) => {
        const record = line as LogRecord;
        if (printed >= most || !matches(record, filter)) return;
        print(format === "json" ? JSON.stringify(record) : formatRecord(record));
        printed++;
        if (printed >= most || outputIsLost()) resolve(true);
      },
      SILENCE,
    );
    if (await Promise.race([follow, enough])) return EXIT.done;
    throw new Failure(
      EXIT.agentNotRunning,
      lastWords(folders).sentence,
      `The kernel counts without an agent, and only the log needs one. ${START_AN_AGENT}`,
    );
  },
});

function countOf(text: string | undefined): number {
  if (text === undefined) return Number.POSITIVE_INFINITY;
  if (/^[1-9]\d{0,8}$/.test(text)) return Number(text);
  throw new UsageError(`--count: "${text}" is not a number of lines`, "Write a whole number from 1 on.");
}
