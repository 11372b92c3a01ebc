/** What a run showed, as text. */
import { printTable } from "../measure.ts";
import type { KindReport, Report } from "./run.ts";

/** Whether all is as it should be. */
export function isClean(report: Report): boolean {
  const { failed, misrouted, counterErrors, ledgerErrors, stuck, unneededWrites, left, made } = report;
  const { lookups, failedLookups, admission } = report;
  const wrong = failed + misrouted + counterErrors + ledgerErrors + stuck + unneededWrites + failedLookups;
  const { admitted, refused, wronglyAdmitted, wronglyRefused } = admission;
  const wrongPeers = wronglyAdmitted + wronglyRefused + admission.failed;
  return wrong + wrongPeers + left.length === 0 && made > 0 && lookups > 0 && admitted > 0 && refused > 0;
}

export function printReport(report: Report): void {
  for (const text of report.complaints) console.log(`! ${text}`);
  for (const path of report.left) console.log(`! left behind: ${path}`);
  const { seed, events, milliseconds } = report;
  console.log(`seed ${seed}: ${events} events in ${Math.round(milliseconds / 1000)} s`);
  printTable(
    ["", ""],
    [
      ["new connections", report.made],
      ["a second", report.made / (milliseconds / 1000)],
      ["long connections, opened", report.opened],
      ["long connections, open to the end", report.open],
      ["refused, as they should be", report.refused],
      ["to where nobody listens, as they should be", report.unanswered],
      ["failed", report.failed],
      ["misrouted", report.misrouted],
      ["counter errors", report.counterErrors],
      ["ledger errors", report.ledgerErrors],
      ["agent not in sync again", report.stuck],
      ["writes though nothing had changed", report.unneededWrites],
      ["lookups of mesh names", report.lookups],
      ["lookups without the right answer", report.failedLookups],
      ["to the machine, admitted", report.admission.admitted],
      ["to the machine, refused", report.admission.refused],
      ["wrongly admitted", report.admission.wronglyAdmitted],
      ["wrongly refused", report.admission.wronglyRefused],
      ["to the machine, failed", report.admission.failed],
    ],
  );
  console.log(
    "\nconnect() to a service, and in the same time to an address that is none; slow: over 3 times the quiet p99:",
  );
  const row = (name: string, { events: count, worstGap, service, direct }: KindReport) => [
    name,
    count,
    worstGap,
    service.connections,
    service.p50,
    service.p99,
    (service.slow / service.connections) * 1000,
    direct.connections,
    direct.p99,
    (direct.slow / direct.connections) * 1000,
  ];
  printTable(
    [
      "",
      "events",
      "worst gap, ms",
      "connects",
      "p50, us",
      "p99, us",
      "slow, 0/00",
      "direct",
      "p99, us",
      "slow, 0/00",
    ],
    [row("quiet", report.quiet), ...Object.entries(report.kinds).map(([kind, times]) => row(kind, times))],
  );
}
