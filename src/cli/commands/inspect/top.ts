import { UsageError } from "../../framework/arguments.ts";
import { command, FOLDER_FLAGS, OUTPUT_FLAG, textFlag } from "../../framework/command.ts";
import { EXIT } from "../../framework/exit.ts";
import { formatOf, print, printJson } from "../../framework/output.ts";
import { foldersOf } from "../../framework/view.ts";
import { askMap, watch } from "../../topology/ask.ts";
import { renderTop, TOP_ORDERS, type TopOrder } from "../../topology/render.ts";

/** Seconds that rates cover. */
const WINDOW = 10;

export const top = command({
  name: "top",
  about: "Show the busiest edges: who calls what, how often, how much, how slow",
  access: "reader",
  flags: {
    by: {
      kind: "text",
      hint: TOP_ORDERS.join("|"),
      choices: TOP_ORDERS,
      about: "the sort order",
      fallback: "rate",
    },
    once: { kind: "switch", about: "print once" },
    lines: { kind: "text", hint: "COUNT", about: "number of edges", fallback: "20" },
    ...OUTPUT_FLAG,
    ...FOLDER_FLAGS,
  },
  examples: [["top --by failures", "Show the edges with most failures, live"]],
  async run({ flags }) {
    const format = formatOf(flags);
    const folders = foldersOf(flags);
    const asked = textFlag(flags, "by") ?? "rate";
    const by: TopOrder | undefined = TOP_ORDERS.find((each) => each === asked);
    if (!by)
      throw new UsageError(`--by: "${asked}" is not an order`, `Write one of ${TOP_ORDERS.join(", ")}.`);
    const lines = Number(textFlag(flags, "lines") ?? "20");
    if (!Number.isInteger(lines) || lines < 1)
      throw new UsageError(
        `--lines: "${textFlag(flags, "lines")}" is not a number of lines`,
        "Write a whole number from 1 on.",
      );
    if (format === "json") printJson(await askMap(folders, WINDOW));
    else if (flags.once === true || !process.stdout.isTTY)
      print(renderTop(await askMap(folders, WINDOW), by, lines));
    else await watch(2, async () => renderTop(await askMap(folders, WINDOW), by, lines));
    return EXIT.done;
  },
});
