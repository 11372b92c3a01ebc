import { expect, test } from "bun:test";
import { Entries, reverseName } from "./entries.ts";

const name = (host: string, addresses: string[], aliases: string[] = []) => ({ host, addresses, aliases });

test("a host's own name wins over another's short form, then the first host; the rest take over when it goes", () => {
  const entries = new Entries();
  const touched = new Set<string>();
  entries.set("b.x", name("b.x", ["10.0.0.2"], ["shop"]), touched);
  entries.set("a.x", name("a.x", ["10.0.0.1"], ["shop"]), touched);
  expect(entries.get("shop")).toMatchObject({ addresses: ["10.0.0.1"] });
  entries.set("shop", name("shop", ["10.0.0.3"]), touched);
  expect(entries.get("shop")).toMatchObject({ addresses: ["10.0.0.3"] });
  touched.clear();
  entries.set("shop", undefined, touched);
  entries.set("a.x", undefined, touched);
  expect(entries.get("shop")).toMatchObject({ addresses: ["10.0.0.2"] });
  expect([...touched].sort()).toEqual(["1.0.0.10.in-addr.arpa", "3.0.0.10.in-addr.arpa", "a.x", "shop"]);
});

test("reverse names point at the first host that has the address; wildcards have none", () => {
  const entries = new Entries();
  const touched = new Set<string>();
  entries.set("b", name("b", ["fd00::1"]), touched);
  entries.set("a", name("a", ["fd00::1"]), touched);
  entries.set("*.w", name("*.w", ["10.0.0.9"]), touched);
  expect(entries.get(reverseName("fd00::1"))).toMatchObject({ kind: "pointer", target: "a" });
  expect(entries.get(reverseName("10.0.0.9"))).toBeUndefined();
  expect(reverseName("fd00::1")).toBe(`1.${"0.".repeat(27)}0.0.d.f.ip6.arpa`);
});

test("exclusions and names that are none have no entry", () => {
  const entries = new Entries();
  entries.exclude(["corp.x"]);
  for (const host of ["corp.x", "a.corp.x", "acorp.x", "bad host"])
    entries.set(host, name(host, ["10.0.0.1"]), new Set());
  expect(["corp.x", "a.corp.x", "acorp.x"].map((host) => entries.get(host)?.kind)).toEqual([
    undefined,
    undefined,
    "addresses",
  ]);
  expect(entries.skipped).toEqual([{ name: "bad host", reason: "it is not a valid DNS name" }]);
});
