import { afterEach, beforeEach, expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { bootOrderOf, bootOrders, bootRemoval, bootStep, canWait, dropInOf } from "./boot-order.ts";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kmesh-boot-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

test("is written, changed and removed with its folder; again there is nothing to do", async () => {
  await bootStep(folder, "shop.service", "open").act?.();
  expect(bootOrderOf(folder, "shop.service")).toBe("open");
  expect(bootStep(folder, "shop.service", "open")).toMatchObject({ action: "keep" });
  const change = bootStep(folder, "shop.service", "closed");
  expect(change).toMatchObject({ action: "replace", note: "at boot: closed" });
  await change.act?.();
  expect(bootOrders(folder)).toEqual({ "shop.service": "closed" });
  for (const { act } of bootRemoval(folder, "shop.service")) await act?.();
  expect(existsSync(join(folder, "shop.service.d"))).toBe(false);
  expect(bootRemoval(folder, "shop.service")).toEqual([]);
});

test("nothing in it hands a stop of kmesh on to the unit", async () => {
  for (const atBoot of ["open", "closed"] as const) {
    await bootStep(folder, "shop.service", atBoot).act?.();
    const text = readFileSync(dropInOf(folder, "shop.service"), "utf8");
    expect(text).not.toMatch(/^(Requires|BindsTo|PartOf|Requisite)=.*kmesh\.service/m);
    expect(text).not.toContain("[Service]");
  }
});

test("what somebody else wrote there stays, and what lies beside ours", async () => {
  const path = dropInOf(folder, "shop.service");
  mkdirSync(dirname(path));
  writeFileSync(path, "[Unit]\nAfter=mine.service\n");
  expect(() => bootStep(folder, "shop.service", "open")).toThrow(`${path} is not as kmesh writes it`);
  expect(bootRemoval(folder, "shop.service")).toEqual([
    { action: "keep", target: path, note: "edited since kmesh wrote it" },
  ]);
  rmSync(path);
  await bootStep(folder, "shop.service", "open").act?.();
  writeFileSync(join(dirname(path), "mine.conf"), "");
  for (const { act } of bootRemoval(folder, "shop.service")) await act?.();
  expect(existsSync(join(dirname(path), "mine.conf"))).toBe(true);
  expect(existsSync(path)).toBe(false);
});

test("only services have a start that can wait", () => {
  expect(["a.service", "b@1.service", "c.slice", "d.scope", "e.socket"].filter(canWait)).toEqual([
    "a.service",
    "b@1.service",
  ]);
});
