/**
 * Does anything stop when the agent or the tunnel stops? New connections at the machine's rate and a thousand long ones run
 * on, and two hundred more by mutual TLS, while the agent is restarted, upgraded, killed, stopped, robbed of its disk, its
 * state and its control plane, and kmesh tunnel restarted, upgraded and killed, in an order that the seed decides
 * (schedule.ts has the kinds):
 *
 *     bun bench/continuity [--events N] [--seed N] [--only KIND,...] [--soak MINUTES] [--rate N] [--mode dual-engine] [--quick] [--logs FOLDER] [--output json]
 *
 * Every connection is written into a ledger at both ends, and judged: was it answered, by an endpoint that might serve it
 * at that time, with the right bytes; and are the kernel's counters what the ledgers say, to the last connection. Another
 * host connects to the machine all the time, from addresses that policy admits and refuses: each outcome is compared with
 * the policies that governed, and the kernel's counters with what the app there has counted: connections, bytes, segments that
 * were lost on the way and sent again. With `--mode dual-engine` the change of the mode is one of the events. Exit code 1 when
 * anything is not as it should be.
 */
import { spawn } from "node:child_process";
import { availableParallelism } from "node:os";
import { MODES } from "../../src/istiod/stream/types.ts";
import { otherBuild } from "../../test/lab/other-build.ts";
import { flagsOf } from "../lab/flags.ts";
import { KMESH, requireTools } from "../lab/machine.ts";
import { progress } from "../lab/measure.ts";
import { isClean, printReport } from "./report.ts";
import { runContinuity } from "./run.ts";
import { EVENTS, type EventKind } from "./schedule.ts";

/** Minutes. */
const LONGEST_SOAK = 240;
/** Set in the process that has the namespaces. */
const INSIDE = "BENCH_CONTINUITY_INSIDE";

const flags = flagsOf({
  events: { type: "string", default: "100" },
  seed: { type: "string" },
  /** Short connections a second; 0: as many as the machine makes. */
  rate: { type: "string", default: "0" },
  hold: { type: "string", default: "1000" },
  /** The same through the tunnel. */
  "tunnel-rate": { type: "string", default: "100" },
  "tunnel-hold": { type: "string", default: "200" },
  mode: { type: "string", default: "kernel-native" },
  /** Short stops and pauses. */
  quick: { type: "boolean", default: false },
  /** Minutes under load before the first event, 240 at most. */
  soak: { type: "string", default: "0" },
  /** Kinds of events, with commas; default: all. */
  only: { type: "string" },
  /** Misroutes on purpose after the last event: the run must end with exit code 1. */
  misroute: { type: "boolean", default: false },
  /** A folder that gets the logs of all processes and the last status of each tunnel. */
  logs: { type: "string" },
  output: { type: "string", default: "text" },
});

if (process.env[INSIDE]) await inside();
else enterNamespaces();

/** Starts this program anew in network and mount namespaces of its own: a fresh process has no thread outside. */
function enterNamespaces(): void {
  requireTools(
    ["ip", "iproute2"],
    ["unshare", "util-linux"],
    ["mount", "mount"],
    ["setpriv", "util-linux"],
    ["nft", "nftables"],
  );
  const child = spawn(
    "unshare",
    [
      ...["--net", "--mount", "--propagation", "private", "--", "setpriv", "--pdeathsig", "TERM", "--"],
      process.execPath,
      ...process.argv.slice(1),
    ],
    { stdio: "inherit", env: { ...process.env, [INSIDE]: "1" } },
  );
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => child.kill("SIGTERM"));
  child.once("error", (error) => {
    console.error(`bench: ${error.message}`);
    process.exit(3);
  });
  child.once("exit", (code) => process.exit(code ?? 1));
}

function kindsOf(text: string | undefined): readonly EventKind[] {
  const all = Object.keys(EVENTS) as EventKind[];
  if (text === undefined) return all;
  return text.split(",").map((name) => {
    const kind = all.find((each) => each === name);
    if (kind === undefined) throw new Error(`--only: no kind "${name}"; there are ${all.join(", ")}`);
    return kind;
  });
}

async function inside(): Promise<void> {
  const seed = flags.seed === undefined ? Math.floor(Math.random() * 2 ** 31) : Number(flags.seed);
  const { quick, misroute } = flags;
  const mode = MODES.find((each) => each === flags.mode);
  if (!mode) throw new Error(`--mode is one of ${MODES.join(", ")}`);
  progress(`seed ${seed}`);
  const report = await runContinuity({
    seed,
    events: Number(flags.events),
    soak: Math.min(Number(flags.soak), LONGEST_SOAK),
    kinds: kindsOf(flags.only),
    misroute,
    ...(flags.logs !== undefined && { logs: flags.logs }),
    mode,
    builds: { own: KMESH, wide: await otherBuild("wide-layout"), bad: await otherBuild("bad-probe") },
    load: {
      makers: Math.max(1, Math.floor(availableParallelism() / 2)),
      window: 32,
      rate: Number(flags.rate),
      hold: Number(flags.hold),
      tunnel: { rate: Number(flags["tunnel-rate"]), hold: Number(flags["tunnel-hold"]) },
    },
    pace: quick
      ? { stopped: 3_000, absence: 300, quiet: 2_000, after: 200 }
      : { stopped: 30_000, absence: 1_000, quiet: 10_000, after: 500 },
    progress,
  });
  if (flags.output === "json") console.log(JSON.stringify({ clean: isClean(report), ...report }, null, 2));
  else printReport(report);
  process.exit(isClean(report) ? 0 : 1);
}
