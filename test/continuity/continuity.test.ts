/** A short run of bench/continuity, and the proof that it sees what it looks for. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { EVENTS } from "../../bench/continuity/schedule.ts";
import { run } from "../lab/process.ts";

setDefaultTimeout(300_000);
const root = process.getuid?.() === 0;
if (!root) console.warn("the continuity bench is skipped: it needs root");

const BENCH = join(import.meta.dirname, "../../bench/continuity");

/** Not at the machine's rate: other tests may run beside it. */
async function bench(...flags: string[]) {
  const load = ["--rate=2000", "--hold=200", "--tunnel-rate=50", "--tunnel-hold=100"];
  const short = ["--quick", ...load, "--output=json"];
  const { code, stdout, stderr } = await run([process.execPath, BENCH, ...short, ...flags], {
    timeoutMs: 280_000,
  });
  if (stdout === "") throw new Error(stderr);
  return { code, report: JSON.parse(stdout), stderr };
}

describe.skipIf(!root)("continuity", () => {
  test("one event of each kind, in random order: nothing failed, nothing misrouted, counters exact", async () => {
    const events = Object.keys(EVENTS).length;
    const { code, report, stderr } = await bench(`--events=${events}`);
    // The seed stands in it.
    if (code !== 0) console.log(stderr);
    expect(report.complaints).toEqual([]);
    expect(report).toMatchObject({
      clean: true,
      events,
      open: 300,
      failed: 0,
      wrongIdentity: 0,
      misrouted: 0,
      counterErrors: 0,
      ledgerErrors: 0,
      stuck: 0,
      unneededWrites: 0,
      failedLookups: 0,
      admission: { wronglyAdmitted: 0, wronglyRefused: 0, failed: 0 },
      left: [],
    });
    expect(report.made).toBeGreaterThan(5_000);
    expect(report.refused).toBeGreaterThan(0);
    expect(report.lookups).toBeGreaterThan(1_000);
    expect(report.tunnelled).toBeGreaterThan(300);
    expect(report.impostors).toBeGreaterThan(0);
    // How many its crash cuts depends on whether another one drained them; the next test has a crash that cuts all.
    const { tunnel } = report.kinds["tunnel crash"];
    expect(tunnel).toMatchObject({ failed: 0, wrongIdentity: 0 });
    expect(tunnel.connections).toBeGreaterThan(0);
    expect(code).toBe(0);
  });

  test("what is wrong on purpose is seen, in dual-engine mode: routes, lookups, identities, admissions, a crash", async () => {
    const { code, report } = await bench("--events=0", "--misroute", "--mode=dual-engine");
    expect(report.misrouted).toBeGreaterThan(0);
    expect(report).toMatchObject({ clean: false, cut: 0 });
    expect(report.wrongIdentity).toBeGreaterThan(0);
    // The long connections of a tunnel that was killed without the judge's knowledge.
    expect(report.failed).toBeGreaterThanOrEqual(100);
    const cut = /^a long connection was cut: to (sidecar|hbone)/;
    expect(report.complaints.filter((text: string) => cut.test(text))).not.toEqual([]);
    expect(report.failedLookups).toBeGreaterThan(0);
    expect(report.admission.wronglyAdmitted).toBeGreaterThan(0);
    expect(report.admission.wronglyRefused).toBeGreaterThan(0);
    expect(report.complaints.filter((text: string) => /^lookup, /.test(text))).not.toEqual([]);
    expect(report.complaints.filter((text: string) => /another service$/.test(text))).not.toEqual([]);
    expect(code).toBe(1);
  });
});
