import { expect, test } from "bun:test";
import { LONGEST_UNIT, NoUnit, unitKey, unitName, unitOfKey } from "./unit.ts";

test("a name without a kind is a service's", () => {
  const names = ["nginx", "shop@blue", "org.example.shop", "a\\x2db.service", "web.slice", "x.scope"];
  expect(names.map(unitName)).toEqual([
    "nginx.service",
    "shop@blue.service",
    "org.example.shop.service",
    "a\\x2db.service",
    "web.slice",
    "x.scope",
  ]);
});

test("what can't be enrolled is told why", () => {
  const reason = (text: string) => {
    try {
      return unitName(text);
    } catch (error) {
      if (error instanceof NoUnit) return error.message;
      throw error;
    }
  };
  expect(reason("")).toBe('"" is not the name of a unit');
  expect(reason("a b.service")).toBe('"a b.service" is not the name of a unit');
  expect(reason("/system.slice/nginx.service")).toBe(
    '"/system.slice/nginx.service" is not the name of a unit',
  );
  expect(reason("shop.timer")).toContain("a timer only starts others");
  expect(reason("shop@.service")).toContain("name an instance");
  expect(reason("shop@")).toContain("name an instance");
  const longest = `${"x".repeat(LONGEST_UNIT - 8)}.service`;
  expect(reason(longest)).toBe(longest);
  expect(reason(`x${longest}`)).toContain(`${LONGEST_UNIT} at most`);
});

test("a key is the name and zeros", () => {
  const key = unitKey("nginx.service");
  expect(key.length).toBe(LONGEST_UNIT + 2);
  expect(unitOfKey(key)).toBe("nginx.service");
  expect(unitOfKey(unitKey("x".repeat(LONGEST_UNIT)))).toHaveLength(LONGEST_UNIT);
});
