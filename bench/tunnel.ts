/**
 * An app's connections through kmesh tunnel and through Envoy to the same peer, in turns: by sidecar mTLS, and by HBONE to
 * another Envoy that terminates it; and without any, in plaintext.
 *
 *     bun bench/tunnel.ts [--rounds N] [--workers N|auto]
 *     ZTUNNEL=/path/to/ztunnel bun bench/tunnel.ts ...       with ztunnel as the third one by HBONE; as root
 *
 * The figure that holds on a shared machine is the CPU time of the proxy for one connection, one request, one GB; rates and
 * latencies depend on the load generator, which runs beside. Prints medians, the ratio to Envoy, and the bar for it. Both may
 * resume TLS sessions. The tunnel's heap is as small as that of `kmesh tunnel`.
 */
import { dialTcp } from "../test/lab/mesh-member.ts";
import { flagsOf } from "./lab/flags.ts";
import { median, printTable, progress } from "./lab/measure.ts";
import { Bench, type Contender, WAYS, type Way } from "./tunnel/contender.ts";
import { startEnvoy, startTerminator } from "./tunnel/envoy.ts";
import { startKmesh } from "./tunnel/kmesh.ts";
import { fresh, HELD_ROW, measure } from "./tunnel/load.ts";
import { enterOwnNamespace, startZtunnel } from "./tunnel/ztunnel.ts";

const WARM_UP = 1_000;

/** What each figure is measured for: ratios to Envoy's, or the figure itself. */
const BARS: Readonly<Record<string, string>> = {
  "new connections/s": "ratio >= 1",
  "p99 of a new connection and its answer, ms": "ratio <= 1",
  "keep-alive requests/s": "ratio >= 1",
  "MB of a stream per CPU second": "ratio >= 0.8",
  "p50 of a request beside a download, ms": "ratio <= 1",
  "% answered beside 3 unread downloads": "100",
  [HELD_ROW]: "<= 20",
  "most memory, MB": "<= 110",
};

const values = flagsOf({
  rounds: { type: "string", default: "3" },
  workers: { type: "string", default: "1" },
});
const ztunnel = process.env.ZTUNNEL;
if (ztunnel) enterOwnNamespace();
const bench = new Bench();
try {
  await main(Number(values.rounds));
} finally {
  bench.close();
}
process.exit(0);

async function main(rounds: number): Promise<void> {
  await bench.open();
  await startTerminator(bench);
  const contenders = [
    await startKmesh(bench, values.workers === "auto" ? "auto" : Number(values.workers)),
    await startEnvoy(bench),
    ...(ztunnel ? [await startZtunnel(bench, ztunnel)] : []),
    noMesh(),
  ];
  for (const { connect } of contenders)
    for (const way of WAYS) if (connect[way]) await fresh(connect[way], WARM_UP);
  for (const way of WAYS) printTable(...(await compare(contenders, way, rounds)));
}

/** The app asks the peer's app itself, in plaintext. */
function noMesh(): Contender {
  const connect = () => dialTcp(bench.app);
  return { name: "no mesh", pids: () => [], connect: { "sidecar mTLS": connect, HBONE: connect } };
}

/** The head and the rows of the table of a way: kmesh, then each other one that speaks it with kmesh's ratio to it. */
async function compare(
  contenders: readonly Contender[],
  way: Way,
  rounds: number,
): Promise<[string[], (string | number)[][]]> {
  const rows = new Map<string, Map<string, number[]>>();
  const speaking = contenders.flatMap(({ name, pids, connect }) =>
    connect[way] ? [{ name, pids, connect: connect[way] }] : [],
  );
  for (let round = 1; round <= rounds; round++) {
    progress(`${way}: round ${round} of ${rounds}`);
    for (const { name, pids, connect } of speaking)
      for (const [figure, value] of Object.entries(await measure(pids, connect))) {
        const row = rows.get(figure) ?? new Map<string, number[]>();
        row.set(name, [...(row.get(name) ?? []), value]);
        rows.set(figure, row);
      }
  }
  const table = [...rows].map(([figure, row]) => {
    // Memory that was free already hides what later rounds need.
    const of = figure === HELD_ROW ? (values: number[]) => Math.max(...values) : median;
    const [kmesh = 0, envoy = 0, ...others] = speaking.map(({ name }) => of(row.get(name) ?? []));
    const beside = others.flatMap((other) => [other, kmesh / other]);
    return [figure, kmesh, envoy, kmesh / envoy, BARS[figure] ?? "", ...beside];
  });
  const [, , ...others] = speaking;
  const head = [way, "kmesh", "Envoy", "ratio", "bar", ...others.flatMap(({ name }) => [name, "ratio"])];
  return [head, table];
}
