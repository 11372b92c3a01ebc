import { describe, expect, test } from "bun:test";
import { parse } from "yaml";
import { editUnits } from "./unit-setting.ts";

const add = (text: string, names: string[], only = false) => editUnits("c.yaml", text, "add", names, only);
const remove = (text: string, names: string[]) => editUnits("c.yaml", text, "remove", names);

describe("enrolling", () => {
  test("a unit joins the list, and comments stay", () => {
    const text = "# mine\nistiod: a:1 # there\nunit:\n  # the shop\n  - shop.service\nshadow: true\n";
    const { text: after, changed, already } = add(text, ["nginx.service", "shop.service"]);
    expect(after).toBe(
      "# mine\nistiod: a:1 # there\nunit:\n  # the shop\n  - shop.service\n  - nginx.service\nshadow: true\n",
    );
    expect({ changed, already }).toEqual({ changed: ["nginx.service"], already: ["shop.service"] });
  });

  test("what is there already, however it is written, changes nothing", () => {
    for (const text of ["unit: [nginx]\n", "unit: nginx.service\n", "unit: 'a, nginx'\n"])
      expect(add(text, ["nginx.service"])).toMatchObject({ text, changed: [], everything: false });
  });

  test("a lone text becomes a list", () => {
    expect(parse(add("unit: a, b.service\n", ["c.service"]).text)).toEqual({
      unit: ["a.service", "b.service", "c.service"],
    });
  });

  test("beside cgroups a list begins, and they stay", () => {
    const { text } = add("# mine\ncgroup: [/x.slice]\n", ["a.service"]);
    expect(text).toStartWith("# mine\n");
    expect(parse(text)).toEqual({ cgroup: ["/x.slice"], unit: ["a.service"] });
  });

  test("the whole machine stays enrolled, unless only these are meant", () => {
    for (const text of [
      "",
      "istiod: a:1\n",
      "unit:\ncgroup:\n",
      "cgroup: /\n",
      "cgroup: [/]\nunit: [b.service]\n",
    ]) {
      expect(add(text, ["a.service"])).toMatchObject({ text, changed: [], everything: true });
      const begun = add(text, ["a.service"], true);
      expect(begun).toMatchObject({ changed: ["a.service"], units: ["a.service"], everything: false });
      const after = parse(begun.text);
      expect(after.unit).toEqual(["a.service"]);
      expect(after.cgroup ?? null).toBeNull();
    }
  });

  test("an empty list is no whole machine", () => {
    expect(parse(add("unit: []\n", ["a.service"]).text)).toEqual({ unit: ["a.service"] });
  });
});

describe("no longer enrolling", () => {
  test("the last unit leaves an empty list", () => {
    for (const text of ["unit: [nginx]\n", "unit:\n  - nginx.service\n", "unit: nginx\n"])
      expect(parse(remove(text, ["nginx.service"]).text)).toEqual({ unit: [] });
  });

  test("others stay, with their comments", () => {
    expect(remove("unit:\n  - a.service # one\n  - b.service\n", ["b.service", "x.service"])).toMatchObject({
      text: "unit:\n  - a.service # one\n",
      changed: ["b.service"],
      already: ["x.service"],
    });
  });

  test("where the whole machine is enrolled there is nothing to take out", () => {
    expect(remove("istiod: a:1\n", ["a.service"])).toMatchObject({ changed: [], everything: true });
  });
});

test("what is no configuration is not touched", () => {
  for (const text of ["- a\n", "text"]) expect(() => add(text, ["a.service"])).toThrow("holds no settings");
  expect(() => add("unit: [\n", ["a.service"])).toThrow("c.yaml is not valid YAML");
});
