import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { chmodSync, chownSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { damageOf } from "./damage.ts";
import { unsafeMode, unsafeModeOf } from "./folder-permissions.ts";
import { requirePrivate } from "./machine.ts";
import { Unsupported } from "./unsupported.ts";

const root = process.getuid?.() === 0;

test("owner and mode, each with its command", () => {
  const own = process.geteuid?.() ?? 0;
  expect(unsafeMode("/f", { uid: own, mode: 0o40755 })).toBeUndefined();
  expect(unsafeMode("/f", { uid: 0, mode: 0o40700 })).toBeUndefined();
  expect(unsafeMode("/f", { uid: own, mode: 0o41777 })).toEqual({
    what: "/f may be written by others (mode 1777)",
    cure: "chmod go-w /f",
  });
  expect(unsafeMode("/f", { uid: own, mode: 0o40770 })?.cure).toBe("chmod go-w /f");
  expect(unsafeMode("/f", { uid: 65_534, mode: 0o40700 })).toEqual({
    what: "/f belongs to user 65534",
    cure: "chown root: /f",
  });
  expect(unsafeMode("/f", { uid: 65_534, mode: 0o40777 })).toEqual({
    what: "/f belongs to user 65534 and may be written by others (mode 777)",
    cure: "chown root: /f && chmod go-w /f",
  });
});

describe("folders that others may write to", () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "kmesh-exposed-"));
    for (const name of ["run", "state", "pins"]) mkdirSync(join(folder, name), { mode: 0o700 });
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  const folders = () => ({
    runDir: join(folder, "run"),
    stateDir: join(folder, "state"),
    bpffs: join(folder, "pins"),
  });

  test("are refused by name, and told as damage", () => {
    expect(() => requirePrivate(folders())).not.toThrow();
    for (const path of Object.values(folders())) {
      chmodSync(path, 0o777);
      expect(() => requirePrivate(folders())).toThrow(`${path} may be written by others (mode 777)`);
      expect(damageOf(folders(), undefined, () => []).map(({ what, cure }) => [what, cure])).toEqual([
        [`${path} may be written by others (mode 777)`, `chmod go-w ${path}`],
      ]);
      chmodSync(path, 0o700);
    }
    expect(damageOf(folders(), undefined, () => [])).toEqual([]);
  });

  test.skipIf(!root)("so are another user's; what to do is a command of its own", () => {
    chownSync(join(folder, "state"), 65_534, 65_534);
    try {
      requirePrivate(folders());
      expect.unreachable();
    } catch (error) {
      expect(error).toBeInstanceOf(Unsupported);
      expect((error as Unsupported).next).toContain(`chown root: ${join(folder, "state")}`);
    }
  });

  test("what is missing, or a file, is not judged here", () => {
    writeFileSync(join(folder, "file"), "", { mode: 0o666 });
    expect(unsafeModeOf(join(folder, "file"))).toBeUndefined();
    expect(unsafeModeOf(join(folder, "none"))).toBeUndefined();
  });
});
