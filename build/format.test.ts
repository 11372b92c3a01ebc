import { expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";
import { join } from "node:path";

const ROOT = join(import.meta.dirname, "..");
const missing = spawnSync("clang-format", ["--version"]).error !== undefined;
if (missing) console.warn("skipped: C's format: clang-format is missing: run build/setup --test");

test.skipIf(missing)("C is formatted as .clang-format says", () => {
  const files = ["bpf", "src/kernel/native", "test/bpf"].flatMap((folder) =>
    readdirSync(join(ROOT, folder), { recursive: true, encoding: "utf8" })
      .filter((name) => /\.[ch]$/.test(name))
      .map((name) => join(folder, name)),
  );
  expect(files.length).toBeGreaterThan(10);
  const { stderr } = spawnSync("clang-format", ["--dry-run", "-Werror", ...files], {
    cwd: ROOT,
    encoding: "utf8",
  });
  const wrong = [...new Set([...stderr.matchAll(/^([^\s:]+\.[ch]):\d+/gm)].map(([, file]) => file))];
  // The fix.
  expect(wrong.length === 0 ? "" : `clang-format -i ${wrong.join(" ")}`).toBe("");
});
