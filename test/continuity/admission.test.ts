/** The judge of connections to the machine: what it must say of each outcome, before and after a change. */

import { expect, test } from "bun:test";
import { constants } from "node:os";
import { AdmissionBook } from "../../bench/continuity/admission.ts";
import { AdmissionPlan, PORTS, SOURCES } from "../../bench/continuity/admission-plan.ts";
import { Random } from "../../test/lab/random.ts";

const FREE = PORTS.length - 1;

function entry(source: number, port: number, error: number, began: number, ended: number): Uint8Array {
  const view = new DataView(new ArrayBuffer(24));
  view.setBigUint64(0, BigInt(began), true);
  view.setBigUint64(8, BigInt(ended), true);
  for (const [i, value] of [source, port, error].entries()) view.setUint16(16 + 2 * i, value, true);
  return new Uint8Array(view.buffer);
}

test("what goes against every set that may have governed is a fault; a change lets both outcomes pass until it is applied", () => {
  const plan = new AdmissionPlan();
  const complaints: string[] = [];
  const book = new AdmissionBook(plan, (text) => complaints.push(text));
  plan.pushed(100);
  plan.applied(110);
  const before = (source: number, port: number) => plan.admits(source, port);
  const was = SOURCES.map((_, source) => PORTS.map((_, port) => before(source, port)));
  const random = new Random(4);
  while (SOURCES.every((_, source) => plan.admits(source, 0) === was[source]?.[0])) plan.change(random);
  const source = SOURCES.findIndex((_, each) => plan.admits(each, 0) !== was[each]?.[0]);
  plan.pushed(200);
  plan.applied(300);
  const outcome = (admitted: boolean) => (admitted ? 0 : constants.errno.ECONNREFUSED);
  const old = was[source]?.[0] ?? false;
  const sums = () => ({ ...book.sums });

  book.take(entry(source, 0, outcome(old), 150, 160));
  book.take(entry(source, 0, outcome(old), 250, 260));
  book.take(entry(source, 0, outcome(!old), 250, 260));
  book.take(entry(source, 0, outcome(!old), 290, 310));
  book.take(entry(source, 0, outcome(!old), 310, 320));
  book.take(entry(0, FREE, 0, 310, 320));
  expect(sums()).toMatchObject({ wronglyAdmitted: 0, wronglyRefused: 0, failed: 0 });
  expect(sums().admitted + sums().refused).toBe(6);

  book.take(entry(source, 0, outcome(old), 310, 320));
  book.take(entry(source, 0, outcome(!old), 150, 160));
  book.take(entry(0, FREE, constants.errno.ECONNREFUSED, 310, 320));
  book.take(entry(0, FREE, constants.errno.ETIMEDOUT, 310, 320));
  expect(sums()).toMatchObject({ wronglyAdmitted: 1, wronglyRefused: 2, failed: 1 });
  expect(complaints).toHaveLength(4);
});
