/** What a run showed, as text. */
import { printTable } from "../lab/measure.ts";
import type { KindReport, Report } from "./run.ts";

/** Whether all is as it should be. */
export function isClean(report: Report): boolean {
  const { failed, misrouted, counterErrors, ledgerErrors, stuck, unneededWrites, left, made } = report;
  const { lookups, failedLookups, tunnelled, impostors, wrongIdentity, admission } = report;
  const wrong = failed + misrouted + wrongIdentity + counterErrors + ledgerErrors + stuck + unneededWrites;
  const { admitted, refused, wronglyAdmitted, wronglyRefused } = admission;
  const wrongPeers = wronglyAdmitted + wronglyRefused + admission.failed;
  const looked = [made, lookups, tunnelled, impostors, admitted, refused].every((count) => count > 0);
  return wrong + wrongPeers + failedLookups + left.length === 0 && looked;
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
      ["new and long ones through the tunnel", report.tunnelled],
      ["refused, as they should be", report.refused],
      ["to a peer that is somebody else, reset as they should be", report.impostors],
      ["lost with a tunnel that was killed", report.cut],
      ["to where nobody listens, as they should be", report.unanswered],
      ["failed", report.failed],
      ["misrouted", report.misrouted],
      ["answered by somebody else", report.wrongIdentity],
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
  printMemory(report.memory);
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
  console.log(
    "\nThrough the tunnel; failed: of all connections, cut ones too, but those lost with a tunnel that was killed:",
  );
  const tunnelRow = (name: string, { events: count, tunnel }: KindReport) => [
    name,
    count,
    tunnel.connections,
    tunnel.p50 / 1000,
    tunnel.p99 / 1000,
    tunnel.cut,
    tunnel.failed,
    tunnel.wrongIdentity,
  ];
  printTable(
    ["", "events", "connections", "answer p50, ms", "p99, ms", "lost with it", "failed", "wrong identity"],
    [
      tunnelRow("quiet", report.quiet),
      ...Object.entries(report.kinds).map(([kind, times]) => tunnelRow(kind, times)),
    ],
  );
}

function printMemory(memory: Report["memory"]): void {
  const rows = Object.entries(memory).map(([name, kilobytes]) => {
    const megabytes = kilobytes.map((each) => each / 1024);
    // The first minutes fill pools and compile what is hot.
    const warm = megabytes.slice(Math.min(5, megabytes.length - 1));
    return [name, megabytes[0] ?? 0, warm[0] ?? 0, megabytes.at(-1) ?? 0, Math.max(...megabytes)];
  });
  if (rows.length === 0) return;
  console.log("\nResident memory in the soak, MB:");
  printTable(["", "at first", "after 5 min", "at last", "most"], rows);
}
