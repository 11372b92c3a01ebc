/** The map from the agent, or from the kernel when none runs. */
import type { Folders } from "../../config/config.ts";
import type { EdgesDocument } from "../../telemetry/model.ts";
import { UsageError } from "../framework/arguments.ts";
import { EXIT, Failure } from "../framework/exit.ts";
import { outputIsLost, print } from "../framework/output.ts";
import { lastWords, START_AN_AGENT, view } from "../framework/view.ts";

/** `window` in seconds. Throws Failure when nothing is pinned either. */
export async function askMap(folders: Folders, window: number): Promise<EdgesDocument> {
  const { value } = await view<EdgesDocument | undefined>(folders, `/edges?window=${window}`, async () => {
    const [{ pinnedDocument }, { NothingPinned }] = await Promise.all([
      import("../../telemetry/pinned.ts"),
      import("../../datapath/inspect/inspect.ts"),
    ]);
    try {
      return pinnedDocument(folders.bpffs);
    } catch (error) {
      if (error instanceof NothingPinned) return undefined;
      throw error;
    }
  });
  if (value) return value;
  throw new Failure(
    EXIT.agentNotRunning,
    `${lastWords(folders).sentence} Nothing is pinned in ${folders.bpffs}`,
    `${START_AN_AGENT} --bpffs names another folder.`,
  );
}

/** 30s, 5m, 1h as seconds: from ten seconds to an hour, which is how far back the agent remembers. */
export function parseSpan(text: string): number {
  const [, digits, unit = ""] = /^(\d{1,5})([smh])$/.exec(text) ?? [];
  const seconds = Number(digits) * ({ s: 1, m: 60, h: 3600 }[unit] ?? 0);
  if (digits === undefined || seconds < 10 || seconds > 3600)
    throw new UsageError(
      `--since: "${text}" is not a time span that the agent remembers`,
      "Write 10s to 1h, for example 5m.",
    );
  return seconds;
}

/** Has `draw` show the newest every `seconds`, until Ctrl-C, or until nobody can see it any more. */
export async function watch(seconds: number, draw: () => Promise<string>): Promise<void> {
  let stopped = false;
  const stop = Promise.withResolvers<void>();
  process.once("SIGINT", () => {
    stopped = true;
    stop.resolve();
  });
  while (!stopped) {
    const text = await draw();
    print(process.stdout.isTTY ? `\x1b[2J\x1b[H${text}` : `${text}\n`);
    if (outputIsLost()) return;
    await Promise.race([new Promise((resolve) => setTimeout(resolve, seconds * 1000)), stop.promise]);
  }
}
