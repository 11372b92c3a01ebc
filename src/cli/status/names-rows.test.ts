import { expect, test } from "bun:test";
import type { LocalResolver, NamesStatus } from "../../names/status.ts";
import { namesFacts, namesWarnings } from "./names-rows.ts";

const names = (more: Partial<NamesStatus>): NamesStatus => ({
  dns: "auto",
  askers: "enrolled",
  entries: 9,
  hosts: 3,
  writes: 0,
  interfaces: [
    { name: "lo", index: 1, way: "tcx" },
    { name: "ib0", index: 2, way: "none" },
  ],
  counts: {},
  skipped: [],
  ...more,
});
const text = (more: Partial<NamesStatus>) => namesFacts(names(more)).map(([, row]) => row);
const resolver = (more: Partial<LocalResolver>): LocalResolver => ({
  via: "127.0.0.1",
  program: "dnsmasq",
  unit: "dnsmasq.service",
  governed: true,
  ...more,
});

test("who is answered, where, and how often", () => {
  expect(text({})).toEqual([
    "3 hosts, answered in the kernel for those who are governed",
    "at lo; not at ib0",
    "0 queries answered",
  ]);
  expect(
    text({ counts: { "answered-a": 7, "answered-aaaa": 2, "answered-ptr": 1, "answered-empty": 3 } })[2],
  ).toBe("13 queries answered (7 A, 2 AAAA, 1 PTR, 3 empty)");
  expect(
    text({
      counts: { "answered-a": 1, "passed-unknown": 5, "passed-malformed": 2, "would-answer": 1, failed: 1 },
    }).slice(2),
  ).toEqual([
    "1 query answered (1 A); passed: 5 unknown, 2 malformed",
    "1 query would have been answered without shadow mode",
    "1 query dropped, since the packet could not be rewritten",
  ]);
  expect(text({ askers: "nobody" })).toEqual(["answered for nobody (dns: off)"]);
});

test("resolvers of this machine: who asks in the name of all", () => {
  expect(text({ askers: "machine", resolvers: [resolver({})] }).slice(0, 2)).toEqual([
    "3 hosts, answered in the kernel for whoever asks on this machine, since dnsmasq asks in the name of all",
    "apps ask dnsmasq at 127.0.0.1: it is governed, so whoever asks it gets mesh names",
  ]);
  expect(text({ resolvers: [resolver({ governed: false, unit: "lxc-net.service" })] })[1]).toBe(
    "apps ask dnsmasq (lxc-net.service) at 127.0.0.1: it is not governed, so it has no mesh names for apps that are not governed either",
  );
  expect(text({ resolversUnknown: "sock_diag(UDP sockets): ENOENT" })[1]).toBe(
    "which resolver of this machine apps ask is not known: sock_diag(UDP sockets): ENOENT",
  );
  const resolved = resolver({
    via: "nss-resolve",
    program: "systemd-resolved",
    unit: "systemd-resolved.service",
  });
  expect(text({ askers: "everybody", resolvers: [resolved] })[1]).toBe(
    "apps ask systemd-resolved by nss-resolve",
  );
});

test("names that can't be answered are listed, not all of them", () => {
  const skipped = Array.from({ length: 12 }, (_, i) => ({
    name: `bad ${i}`,
    reason: "it is not a valid DNS name",
  }));
  expect(namesWarnings(names({ skipped: skipped.slice(0, 1) }))).toEqual([
    "The name bad 0 is not answered: it is not a valid DNS name.",
  ]);
  const all = namesWarnings(names({ skipped, trouble: "no memory" }));
  expect(all[0]).toBe("Names are not up to date: no memory");
  expect(all).toHaveLength(12);
  expect(all.at(-1)).toBe("2 more names are not answered: see --output json.");
});
