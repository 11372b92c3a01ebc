import { SETTINGS, type Setting } from "../../config/settings.ts";
import { sourcesOf } from "../../config/sources.ts";
import type { DemoEvent, DemoReport, Step } from "../../demo/script.ts";
import type { Stage } from "../../demo/stage.ts";
import { reasonOf } from "../../errors/reason.ts";
import { MODES, type Mode } from "../../istiod/stream/types.ts";
import { UsageError } from "../framework/arguments.ts";
import { command, OUTPUT_FLAG, textFlag } from "../framework/command.ts";
import { EXIT, Failure } from "../framework/exit.ts";
import { formatOf, formatSpan, indent, print, printJson, remark } from "../framework/output.ts";

const FLAGS: Record<string, Setting> = {
  keep: { kind: "switch", about: "leave it up afterwards to play with, until Ctrl-C" },
  seconds: { kind: "text", hint: "N", about: "how long each step is watched", fallback: "5" },
  mode: SETTINGS.mode,
  ...OUTPUT_FLAG,
};

const RATE = 250;
const LONG_LIVED = 20;

export const demo = command({
  name: "demo",
  about: "Show kmesh at work in a separate network namespace, in under a minute",
  flags: FLAGS,
  examples: [
    ["demo", "Run the demo, half a minute"],
    ["demo --keep", "Keep it running afterwards, to try it out"],
    ["demo --mode dual-engine", "Run it with ambient's workload API"],
  ],
  async run({ flags }) {
    formatOf(flags);
    const seconds = secondsOf(textFlag(flags, "seconds"));
    const { enterStage } = await import("../../demo/demo.ts");
    const output = textFlag(flags, "output") ?? "text";
    return enterStage([
      "demo-stage",
      "--output",
      output,
      "--seconds",
      String(seconds),
      "--mode",
      modeOf(textFlag(flags, "mode")),
      ...(flags.keep === true ? ["--keep"] : []),
    ]);
  },
});

/** Throws UsageError for an unknown mode. */
function modeOf(text = "kernel-native"): Mode {
  const mode = MODES.find((each) => each === text);
  if (!mode) throw new UsageError(`"${text}" is not a mode`, `Name one of ${MODES.join(", ")}.`);
  return mode;
}

/** Runs the demo inside its network namespace. */
export const demoStage = command({
  name: "demo-stage",
  about: "The demo, already in its network namespace",
  hidden: true,
  flags: FLAGS,
  async run({ flags }) {
    const text = formatOf(flags) === "text";
    const { Aborted, playDemo } = await import("../../demo/demo.ts");
    const ended = new AbortController();
    for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => ended.abort());
    if (text) print(opening());
    const options = {
      mode: modeOf(textFlag(flags, "mode")),
      seconds: secondsOf(textFlag(flags, "seconds")),
      rate: RATE,
      longLived: LONG_LIVED,
      on: (event: DemoEvent) => {
        const line = formatEvent(event);
        if (text && line !== "") print(line);
      },
    };
    try {
      const { report, left } = await playDemo(options, ended.signal, async (stage, result) => {
        if (text) print(await mapOf(stage).catch((error) => `The map can't be shown: ${reasonOf(error)}\n`));
        if (flags.keep !== true) return;
        if (text) print(formatReport(result));
        remark(howToPlay(stage));
        await new Promise(() => {});
      });
      if (!text) printJson({ ...report, left });
      else if (flags.keep !== true) print(formatReport(report));
      if (left.length > 0) throw new Failure(EXIT.failed, `the demo could not clean up ${left.join(", ")}`);
      return report.ok ? EXIT.done : EXIT.failed;
    } catch (error) {
      if (!(error instanceof Aborted)) throw error;
      throw new Failure(130, error.message);
    }
  },
});

export const demoPart = command({
  name: "demo-part",
  about: "One process of the demo",
  hidden: true,
  positionals: [
    { name: "part", about: "its name", required: true },
    { name: "options", about: "JSON", required: true },
  ],
  async run({ positionals: [part = "", options = ""] }) {
    const { runPart } = await import("../../demo/parts.ts");
    await runPart(part, options);
    return EXIT.done;
  },
});

function secondsOf(text = "5"): number {
  const seconds = Number(text);
  if (Number.isFinite(seconds) && seconds >= 0.5 && seconds <= 3600) return seconds;
  throw new UsageError(`--seconds: "${text}" is not a number from 0.5 to 3600`, "Write --seconds 5.");
}

function opening(): string {
  return [
    "kmesh demo: a service with two versions, an agent, and a load that must not notice anything.",
    "It has its own network namespace and cgroup; the host's traffic is not touched.",
    "",
  ].join("\n");
}

/** Describes an event in one line; "" when it needs no line. */
export function formatEvent(event: DemoEvent): string {
  switch (event.kind) {
    case "built":
      return `The agent runs (pid ${event.agentPid}): istiod's configuration is in the kernel's tables.`;
    case "load":
      return `The load runs: ${event.rate} new connections a second, ${event.longLived} that stay open and pass data.\n`;
    case "shifted":
      return `Shifted to ${event.to.v1}/${event.to.v2} under load: live after ${formatSpan(event.milliseconds)}.`;
    case "killed":
      return `Killed the agent (pid ${event.pid}) with SIGKILL. No agent is in control; the kernel continues.`;
    case "changed-unseen":
      return `Changed the configuration to ${event.to.v1}/${event.to.v2}: no agent runs to notice.`;
    case "restarted":
      return `Started the agent again (pid ${event.pid}): it ${event.adopted ? "adopted the pinned tables" : "built new tables"}, ${event.writes} map writes.`;
    case "watched":
      return `${indent(formatStep(event.step))}\n`;
  }
}

function formatStep(step: Step): string {
  const { v1, v2 } = step.configured;
  const head = `${step.name}: ${step.connections} new connections, v1/v2 = ${v1}/${v2}`;
  const bars = step.spread.map(({ upstream, share, connections, expected }) => {
    const bar = "#".repeat(Math.round(share * 40)).padEnd(40);
    return `${upstream}  ${bar} ${percent(share)} of ${percent(expected)}  ${String(connections).padStart(6)}`;
  });
  return [head, ...bars].join("\n");
}

export function formatReport(report: DemoReport): string {
  const { connections, longLived, names, restart } = report;
  const reasons = Object.entries(report.reasons).map(([reason, count]) => `${reason}: ${count}`);
  const rows: [string, string][] = [
    ["connections made", String(connections.made)],
    ["failed", String(connections.failed)],
    [
      "long-lived connections cut",
      `${longLived.cut} of ${longLived.opened} (${longLived.answers} answers over them)`,
    ],
    [
      "no agent in control for",
      `${formatSpan(report.unattendedMilliseconds)}, ${connections.withoutAgent} connections made in it`,
    ],
    ["map writes after the restart", String(restart.mapWrites)],
    ["apps that saw a wrong peer address", String(report.wrongPeer)],
    ["the name resolved", `${names.resolved} times, ${names.unresolved} without a right answer`],
    ...reasons.map((reason): [string, string] => ["reason", reason]),
  ];
  const width = Math.max(...rows.map(([name]) => name.length));
  const verdict = report.ok ? "As promised." : "NOT as promised: the figures above say where.";
  return [...rows.map(([name, value]) => `${name.padEnd(width)}  ${value}`), "", verdict].join("\n");
}

function percent(share: number): string {
  return `${(share * 100).toFixed(1)} %`.padStart(7);
}

/** The topology of the last minute, from the demo agent's counters. */
async function mapOf(stage: Stage): Promise<string> {
  const [{ readFolders }, { askMap }, { renderMap }] = await Promise.all([
    import("../../config/config.ts"),
    import("../topology/ask.ts"),
    import("../topology/render.ts"),
  ]);
  const folders = readFolders(sourcesOf({ config: stage.configFile }, {}));
  return `${renderMap(await askMap(folders, 60))}\n`;
}

function howToPlay(stage: Stage): string {
  const shell = `sh -c 'echo $$ > ${stage.cgroup}/play/cgroup.procs; exec nsenter --net=/proc/${process.pid}/ns/net unshare --mount sh -c "mount --bind ${stage.resolvFile} $(readlink -f /etc/resolv.conf) && exec bash"'`;
  return [
    "",
    "It stays up until Ctrl-C here. In another terminal, as root:",
    `  kmesh topology --open --config ${stage.configFile}`,
    `  kmesh status --config ${stage.configFile}`,
    `  kmesh explain shop.demo.internal:80 --config ${stage.configFile}`,
    `  ${shell}`,
    "      ... a shell in the mesh: curl http://shop.demo.internal shows which upstream answers",
    `  edit ${stage.meshFile}: the control plane serves it at once; control-plane.log beside it names mistakes`,
    `  kill -9 $(cat ${stage.folder}/run/agent.lock): the kernel goes on`,
    `  kmesh run --config ${stage.configFile}, in that shell's namespace: takes over again`,
  ].join("\n");
}
