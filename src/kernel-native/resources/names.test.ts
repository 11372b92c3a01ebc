import { expect, test } from "bun:test";
import { names } from "../testdata/resources.ts";
import { flattenNames, hostsOf } from "./names.ts";

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
