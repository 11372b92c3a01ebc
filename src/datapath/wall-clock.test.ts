/** A wall clock may be set at any moment. Nothing that decides about a connection may go by one. */
import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

const ROOT = join(import.meta.dirname, "../..");

function linesOf(folder: string, suffix: string): { at: string; line: string }[] {
  return readdirSync(join(ROOT, folder), { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(suffix) && !name.endsWith(".test.ts"))
    .flatMap((name) => {
      const lines = readFileSync(join(ROOT, folder, name), "utf8").split("\n");
      return lines.map((line) => ({ at: `${folder}/${name}`, line }));
    });
}

test("programs know the time since the boot alone", () => {
  const lines = [...linesOf("bpf", ".c"), ...linesOf("bpf/include", ".h"), ...linesOf("bpf/maps", ".h")];
  const calls = lines.filter(({ line }) => /bpf_(ktime|jiffies)\w*\(/.test(line));
  expect(calls.length).toBeGreaterThan(0);
  expect(calls.filter(({ line }) => !line.includes("bpf_ktime_get_ns()"))).toEqual([]);
});

test("nor does the half that writes their tables ask for another", () => {
  const lines = linesOf("src/datapath", ".ts");
  expect(lines.length).toBeGreaterThan(1_000);
  expect(lines.filter(({ line }) => /Date\.now|new Date\b/.test(line))).toEqual([]);
});
