import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { checksum, examine } from "./executable.ts";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kmesh-examine-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

/** A file that is not ELF. Its checksum is compared first. */
function download(name = "kmesh-1.0-linux-x64"): string {
  const path = join(folder, name);
  writeFileSync(path, "no ELF");
  return path;
}

const OTHER = "0".repeat(64);

describe("the checksum of a download", () => {
  const damaged = /is damaged or another one: its SHA-256 is [0-9a-f]{64}, not 0{64}$/;
  const right = /is not an executable \(not an ELF file\)$/;

  test.each([
    ["the file beside it", ".sha256", (sum: string) => `${sum}\n`],
    ["the list beside it", "SHA256SUMS", (sum: string) => `${OTHER}  kmesh-1.0-linux-arm64\n${sum}  NAME\n`],
    ["the list, of binary files", "SHA256SUMS", (sum: string) => `${sum} *NAME\n`],
  ])("is that of %s", (_, name, textOf) => {
    const path = download();
    const list = name.startsWith(".") ? `${path}${name}` : join(folder, name);
    const write = (sum: string) => writeFileSync(list, textOf(sum).replace("NAME", "kmesh-1.0-linux-x64"));
    write(checksum(path));
    expect(() => examine(path)).toThrow(right);
    write(OTHER);
    expect(() => examine(path)).toThrow(damaged);
    write("abc");
    expect(() => examine(path)).toThrow('"abc" is no SHA-256');
  });

  test("is the flag's, whatever lies beside it", () => {
    const path = download();
    writeFileSync(`${path}.sha256`, OTHER);
    expect(() => examine(path, checksum(path).toUpperCase())).toThrow(right);
    expect(() => examine(path, OTHER)).toThrow(damaged);
  });

  test("is not asked for where the list has other files only", () => {
    writeFileSync(join(folder, "SHA256SUMS"), `${OTHER}  kmesh-1.0-linux-x64.deb\n`);
    expect(() => examine(download())).toThrow(right);
  });
});
