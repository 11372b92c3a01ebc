import { readFolders } from "../../../config/config.ts";
import { sourcesOf } from "../../../config/sources.ts";
import { reasonOf } from "../../../errors/reason.ts";
import { UsageError } from "../../framework/arguments.ts";
import { command, FOLDER_FLAGS, OUTPUT_FLAG, textFlag } from "../../framework/command.ts";
import { EXIT, Failure } from "../../framework/exit.ts";
import { formatOf, printJson, remark } from "../../framework/output.ts";

/** Poll interval, milliseconds: at first, and later. */
const LOOK = 100;
const SLOW_LOOK = 1_000;
const SOON = 30_000;
const LONGEST = 3600;

export const wait = command({
  name: "wait",
  about: "Wait until connections are governed, with or without an agent",
  flags: {
    timeout: {
      kind: "text",
      hint: "SECONDS",
      about: "longest wait; 0: check once; infinity: no limit",
      fallback: "30",
    },
    ...OUTPUT_FLAG,
    ...FOLDER_FLAGS,
  },
  notes: [
    `Ends silently with 0 as soon as all hooks are attached, with ${EXIT.notGoverned} when they are not in time. Hooks are attached`,
    "last, over tables that hold a mesh. With infinity it also waits for a readable configuration. For a unit that must",
    "not start outside the mesh, use kmesh enrol UNIT --at-boot closed.",
  ].join("\n"),
  examples: [
    ["wait --timeout 60 && ./app", "Start an application when its connections are governed"],
    ["wait --timeout 0", "Ask whether connections are governed now"],
  ],
  async run({ flags }) {
    const format = formatOf(flags);
    const seconds = secondsOf(textFlag(flags, "timeout") ?? "30");
    const { governsPinned } = await import("../../../datapath/inspect/inspect.ts");
    const begin = performance.now();
    const until = begin + seconds * 1000;
    let bpffs = "";
    let trouble = "";
    for (;;) {
      try {
        ({ bpffs } = readFolders(sourcesOf(flags, process.env)));
        if (governsPinned(bpffs)) {
          if (format === "json") printJson({ governs: true, seconds: (performance.now() - begin) / 1000 });
          return EXIT.done;
        }
      } catch (error) {
        // Without a time limit, wait until somebody repairs it.
        if (seconds !== Number.POSITIVE_INFINITY) throw error;
        const text = reasonOf(error);
        if (text !== trouble) remark(`kmesh: waiting, since ${text}`);
        trouble = text;
      }
      const left = until - performance.now();
      if (left <= 0) break;
      const look = performance.now() - begin < SOON ? LOOK : SLOW_LOOK;
      await new Promise((resolve) => setTimeout(resolve, Math.min(look, left)));
    }
    if (format === "json") printJson({ governs: false, seconds });
    throw new Failure(
      EXIT.notGoverned,
      `connections are not governed${seconds > 0 ? ` after ${seconds} s` : ""}: not all hooks are attached in ${bpffs}`,
      "kmesh status and kmesh doctor show why; systemctl start kmesh starts the agent.",
    );
  },
});

/** Throws UsageError. */
export function secondsOf(text: string): number {
  if (text === "infinity") return Number.POSITIVE_INFINITY;
  const seconds = Number(text.replace(/s$/, ""));
  if (/^\d/.test(text) && seconds >= 0 && seconds <= LONGEST) return seconds;
  throw new UsageError(
    `--timeout: "${text}" is not a number of seconds`,
    `Write --timeout 30 (at most ${LONGEST}), or infinity.`,
  );
}
