import { expect, test } from "bun:test";
import { Random } from "../../../test/lab/random.ts";
import { names } from "../testdata/resources.ts";
import { istio } from "./envoy.gen.js";
import { flattenNames, hostsOf, type NamesRecord, NameTableReader } from "./names.ts";

test("addresses are canonical, sorted and each once; names without any are left out", () => {
  const record = flattenNames(
    "",
    names({ b: ["10.0.0.2", "10.0.0.1", "10.0.0.2"], a: ["FD00::1"], none: [] }),
  );
  expect(record.addresses).toEqual(
    new Map([
      ["a", ["fd00::1"]],
      ["b", ["10.0.0.1", "10.0.0.2"]],
    ]),
  );
});

test("the names of an address, sorted", () => {
  const record = flattenNames("", names({ z: ["10.0.0.1"], a: ["10.0.0.1"], m: ["10.0.0.1", "10.0.0.2"] }));
  expect(hostsOf(record, "10.0.0.1")).toEqual(["a", "m", "z"]);
  expect(hostsOf(record, "10.0.0.2")).toEqual(["m"]);
  expect(hostsOf(record, "10.0.0.3")).toEqual([]);
});

test("what is no address is left out and said", () => {
  const record = flattenNames("", names({ a: ["10.0.0.0/16", "10.0.0.1"], b: ["x"] }));
  expect([...record.addresses]).toEqual([["a", ["10.0.0.1"]]]);
  expect(record.notes.map(({ text }) => text)).toEqual([
    'the table of names gives a the address "10.0.0.0/16", which is none: left out',
    'the table of names gives b the address "x", which is none: left out',
  ]);
});

/** A table in the order of its names, as istiod sends it. */
type Table = Map<string, { ips: string[]; registry: string; shortname: string; namespace: string }>;

function encoded(table: Table): Uint8Array {
  const sorted = [...table].sort(([one], [other]) => (one < other ? -1 : 1));
  return istio.NameTable.encode({ table: Object.fromEntries(sorted) }).finish();
}

const service = (i: number, ...ips: string[]) => ({
  ips,
  registry: i % 3 === 0 ? "External" : "Kubernetes",
  shortname: `svc-${i}`,
  namespace: "shop",
});

function content({ addresses, hosts, kubernetes, notes }: NamesRecord) {
  const sorted = <T>(map: ReadonlyMap<string, T>) =>
    [...map].sort(([one], [other]) => (one < other ? -1 : 1));
  return { addresses: sorted(addresses), hosts: sorted(hosts), kubernetes: sorted(kubernetes), notes };
}

test("a large table is read where it differs from the one before, and is the same as one that is read whole", () => {
  const random = new Random(10);
  const table: Table = new Map();
  const host = (i: number) => `svc-${i}.shop.svc.cluster.local`;
  const address = () => `10.0.${random.below(2)}.${random.below(200)}`;
  for (let i = 0; i < 600; i++) table.set(host(i), service(i, address()));
  const reader = new NameTableReader();
  let before = reader.read("", encoded(table));
  expect(before.since).toBeUndefined();
  let parts = 0;
  for (let round = 0; round < 100; round++) {
    const old = new Map(table);
    for (let n = random.below(4); n > 0; n--) {
      const i = random.below(700);
      const kind = random.below(4);
      if (kind === 0) table.delete(host(i));
      else if (kind === 1) table.set(host(i), service(i));
      else if (kind === 2) table.set(host(i), service(i + 1, address()));
      else table.set(host(i), service(i, address(), address(), "fd00::1"));
    }
    const version = before.version;
    const bytes = encoded(table);
    const record = reader.read("", bytes);
    expect(content(record)).toEqual(content(flattenNames("", bytes)));
    expect(record.version).not.toBe(version);
    if (record.since) {
      parts++;
      expect(record.since.version).toBe(version);
      for (const name of new Set([...old.keys(), ...table.keys()]))
        if (!Bun.deepEquals(old.get(name), table.get(name))) expect(record.since.changed).toContain(name);
    }
    before = record;
  }
  expect(parts).toBeGreaterThan(30);
});

test("a large table that is not in order, has two names alike or an address that is none is read whole", () => {
  const table: Table = new Map();
  for (let i = 0; i < 400; i++) table.set(`svc-${1000 + i}.internal`, service(i, `10.0.1.${i % 250}`));
  const reader = new NameTableReader();
  reader.read("", encoded(table));
  const bad: [string, Uint8Array][] = [
    ["upper case", encoded(new Map([...table, ["Svc-1100.internal", service(0, "10.0.0.1")]]))],
    ["an address", encoded(new Map([...table, ["svc-1100.internal", service(0, "10.0.0.0/8")]]))],
    ["another order", new Uint8Array([...encoded(table), ...names({ "a.internal": ["10.0.0.1"] })])],
    [
      "the same name again",
      new Uint8Array([...encoded(table), ...names({ "svc-1399.internal": ["10.0.0.9"] })]),
    ],
  ];
  for (const [what, bytes] of bad) {
    const record = reader.read("", bytes);
    expect([what, record.since]).toEqual([what, undefined]);
    expect([what, content(record)]).toEqual([what, content(flattenNames("", bytes))]);
    reader.read("", encoded(table));
  }
  // Cut in an entry: it is refused, and the one before is gone on from.
  const whole = encoded(table);
  expect(() => reader.read("", whole.subarray(0, -3))).toThrow("not a valid message");
  table.set("svc-1200.internal", service(1, "10.0.9.9"));
  const record = reader.read("", encoded(table));
  expect([...(record.since?.changed ?? [])]).toEqual(["svc-1200.internal"]);
  expect(content(record)).toEqual(content(flattenNames("", encoded(table))));
});
