import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { GenerationState } from "../datapath/generation/generation-state.ts";
import type { Step } from "../datapath/generation/step.ts";
import { version as kmesh } from "../runtime/version.ts";
import {
  BadManifest,
  Manifest,
  manifestFile,
  putRight,
  readManifest,
  refuseUnknown,
  removeManifest,
  UnknownManifest,
} from "./manifest.ts";

const MACHINE = "0123456789abcdef0123456789abcdef";
const OTHER_MACHINE = "f".repeat(32);
const A = { abi: "aaaaaaaaaaaaaaaa", code: "a1" };
const B = { abi: "bbbbbbbbbbbbbbbb", code: "b1" };
const C = { abi: "cccccccccccccccc", code: "c1" };
const NOTHING: GenerationState = { live: [], others: [] };
const THEN = "2026-01-02T03:04:05.000Z";
const NOW = new Date("2026-02-03T04:05:06.000Z");

let folder: string;
let file: string;
let warnings: string[];
let infos: string[];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kmesh-manifest-"));
  file = manifestFile(folder);
  warnings = [];
  infos = [];
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const log = {
  warn: (text: string) => void warnings.push(text),
  info: (text: string) => void infos.push(text),
  debug: () => {},
};

function open(standing: GenerationState, { machine = MACHINE, at = folder } = {}): Manifest {
  return Manifest.open(at, machine, standing, log);
}

function take(manifest: Manifest, ...steps: (Step | undefined)[]): void {
  for (const step of steps) manifest.announce(step);
}

const read = () => readManifest(folder, MACHINE);

/** A first start of A, whose tables govern then. */
function first(): void {
  const manifest = open(NOTHING);
  manifest.settle(A);
  take(manifest, { name: "fill", to: A }, { name: "flip", to: A }, undefined);
}

function upgraded(): void {
  const manifest = open({ live: [A], others: [] });
  manifest.settle(B);
  take(manifest, { name: "flip", from: A, to: B }, undefined);
}

describe("what is written", () => {
  test("each step is in the file before it is taken, and what came of it afterwards", () => {
    const manifest = open(NOTHING);
    expect(readdirSync(folder)).toEqual([]);
    for (const name of ["build", "fill", "probe", "flip"] as const) {
      manifest.announce({ name, to: A });
      expect(read()).toEqual({ step: { name, to: { ...A, version: kmesh }, at: expect.any(String) } });
    }
    manifest.announce(undefined);
    expect(read()).toEqual({ live: { ...A, version: kmesh, since: expect.any(String) } });
    const { since } = read()?.live ?? {};
    expect(Math.abs(Date.parse(since ?? "") - Date.now())).toBeLessThan(5_000);
  });

  test("a flip to other tables keeps the ones before, since then; their removal ends that", () => {
    first();
    const manifest = open({ live: [A], others: [] });
    manifest.settle(B);
    manifest.announce({ name: "flip", from: A, to: B });
    expect(read()).toMatchObject({ live: A, step: { name: "flip", from: { ...A, version: kmesh }, to: B } });
    manifest.announce(undefined);
    const { live, kept, step } = read() ?? {};
    expect(step).toBeUndefined();
    expect(live).toMatchObject(B);
    expect(kept).toEqual({ ...A, version: kmesh, since: live?.since ?? "" });
    take(manifest, { name: "remove", from: { abi: C.abi } }, undefined);
    expect(read()?.kept).toMatchObject(A);
    manifest.announce({ name: "remove", from: { abi: A.abi } });
    expect(read()).toMatchObject({ kept: A, step: { name: "remove", from: { ...A, version: kmesh } } });
    manifest.announce(undefined);
    expect(read()).toEqual({ live: live ?? expect.anything() });
  });

  test("other programs over the same tables leave what is kept; a flip to what is kept changes both", () => {
    first();
    upgraded();
    const newer = { ...B, code: "b2" };
    take(open({ live: [B], others: [A] }), { name: "flip", from: B, to: newer }, undefined);
    expect(read()).toMatchObject({ live: newer, kept: A });
    take(open({ live: [newer], others: [A] }), { name: "flip", from: newer, to: A }, undefined);
    expect(read()).toMatchObject({ live: A, kept: newer });
  });

  test("a step that is tried once more is under way since its first try; nothing new is not written", async () => {
    const manifest = open(NOTHING);
    manifest.announce({ name: "fill", to: A });
    const { at } = read()?.step ?? {};
    const { ino } = statSync(file);
    await Bun.sleep(5);
    manifest.announce({ name: "fill", to: A });
    expect(read()?.step?.at).toBe(at ?? "");
    expect(statSync(file).ino).toBe(ino);
    manifest.announce({ name: "flip", to: A });
    expect(read()?.step?.at).not.toBe(at);
  });

  test("a start that finds all as it was writes nothing", () => {
    first();
    const { ino } = statSync(file);
    open({ live: [A], others: [] }).settle(A);
    expect(statSync(file).ino).toBe(ino);
    expect([...warnings, ...infos]).toEqual([]);
  });

  test("only root reads it, it does not tell the machine's id, and nothing lies beside it", () => {
    first();
    expect(statSync(file).mode & 0o777).toBe(0o600);
    expect(readFileSync(file, "utf8")).not.toContain(MACHINE);
    writeFileSync(`${file}.new`, "half of");
    open({ live: [A], others: [] });
    expect(readdirSync(folder)).toEqual(["manifest.json"]);
  });

  test("a folder that is gone is made anew; one that takes nothing is told of once, and nothing stops", () => {
    const manifest = open(NOTHING, { at: join(folder, "deep/er") });
    manifest.announce({ name: "build", to: A });
    expect(readManifest(join(folder, "deep/er"), MACHINE)?.step?.name).toBe("build");
    const nowhere = open(NOTHING, { at: "/proc/nowhere" });
    take(nowhere, { name: "build", to: A }, { name: "fill", to: A }, { name: "flip", to: A }, undefined);
    expect(warnings).toEqual([
      expect.stringMatching(
        /^\/proc\/nowhere\/manifest.json can't be written: .*Traffic does not need it; the next start reads the pins$/,
      ),
    ]);
    expect(nowhere.account.live).toMatchObject(A);
  });

  test("what somebody removed, or what could not be written, is written later", () => {
    const manifest = open(NOTHING);
    take(manifest, { name: "flip", to: A }, undefined);
    const text = readFileSync(file, "utf8");
    rmSync(file);
    manifest.keep();
    expect(readFileSync(file, "utf8")).toBe(text);
    const { ino } = statSync(file);
    manifest.keep();
    expect(statSync(file).ino).toBe(ino);
    const at = join(folder, "later");
    const late = open(NOTHING, { at });
    writeFileSync(at, "");
    late.announce({ name: "build", to: A });
    expect(warnings).toHaveLength(1);
    rmSync(at);
    late.keep();
    expect(readManifest(at, MACHINE)?.step?.name).toBe("build");
  });

  test("without a machine's id none is read or written", () => {
    const manifest = Manifest.open(folder, undefined, NOTHING, log);
    manifest.announce({ name: "build", to: A });
    expect(readdirSync(folder)).toEqual([]);
    first();
    const before = readFileSync(file, "utf8");
    const blind = Manifest.open(folder, undefined, { live: [A], others: [] }, log);
    blind.announce({ name: "flip", from: A, to: B });
    expect(readFileSync(file, "utf8")).toBe(before);
    expect(warnings).toEqual([]);
  });
});

describe("what is read", () => {
  function expectSetAside(why: string): void {
    const before = existsSync(file) && statSync(file).isFile() ? readFileSync(file) : undefined;
    expect(() => readManifest(folder, MACHINE)).toThrow(BadManifest);
    const manifest = open({ live: [A], others: [B] });
    expect(manifest.account).toMatchObject({ live: A, kept: B });
    expect(manifest.unfinished).toBeUndefined();
    expect(warnings.splice(0)).toEqual([
      `The manifest ${file} is not used: ${why}. It lies in ${file}.bad now; rebuilt from the pinned tables, which stay in use`,
    ]);
    expect(existsSync(file)).toBe(false);
    if (before) expect(readFileSync(`${file}.bad`)).toEqual(before);
    manifest.settle(A);
    expect(read()).toMatchObject({ live: { ...A, version: kmesh }, kept: B });
  }

  test("one that is cut off anywhere, or holds something else, is set aside and made anew by the pins", () => {
    first();
    const whole = readFileSync(file);
    for (const length of [0, 1, whole.length >> 1, whole.length - 3]) {
      writeFileSync(file, whole.subarray(0, length));
      expectSetAside("it is damaged: no JSON object");
    }
    for (const text of ["\0 not what was here", "[]", "null", '"x"', "7"]) {
      writeFileSync(file, text);
      expectSetAside("it is damaged: no JSON object");
    }
    for (const version of ["1.5", "0", "-1", '"1"', "null", "{}"]) {
      writeFileSync(file, `{"version":${version}}`);
      expectSetAside("it has no format's number");
    }
    writeFileSync(file, "{}");
    expectSetAside("it has no format's number");
    writeFileSync(file, '{"version":1}');
    expectSetAside("it names no machine");
  });

  test("each member that is not what it has to be", () => {
    first();
    const whole = JSON.parse(readFileSync(file, "utf8"));
    const wrong: [member: string, value: unknown][] = [
      ["live", 7],
      ["live", { ...A }],
      ["live", { ...A, since: "yesterday" }],
      ["live", { ...A, abi: "../../etc", since: THEN }],
      ["live", { ...A, code: 7, since: THEN }],
      ["kept", [{ ...A, since: THEN }]],
      ["kept", { since: THEN }],
      ["kept", { ...B, version: 2, since: THEN }],
      ["step", "flip"],
      ["step", { name: "dance", at: THEN }],
      ["step", { name: "flip", at: 12 }],
      ["step", { name: "flip", at: THEN, to: 1 }],
    ];
    for (const [member, value] of wrong) {
      writeFileSync(file, JSON.stringify({ ...whole, [member]: value }));
      expectSetAside(`it is damaged: "${member}" is not what it has to be`);
    }
  });

  test("what is no file, or far too large", () => {
    mkdirSync(file);
    writeFileSync(join(file, "x"), "");
    expectSetAside("it is a folder, not a regular file");
    writeFileSync(file, Buffer.alloc(70_000, " "));
    expectSetAside("it is larger than 64 KiB");
    rmSync(file);
    symlinkSync("/dev/zero", file);
    expectSetAside("it is a device, not a regular file");
  });

  test("what can't be read stays as it is, with one line, and nothing is written over it", () => {
    // A file that opens and gives EIO, and one that can't be opened.
    for (const [target, code] of [
      ["/proc/self/mem", "EIO"],
      [file, "ELOOP"],
    ] as const) {
      rmSync(file, { force: true });
      symlinkSync(target, file);
      refuseUnknown(folder);
      const manifest = open({ live: [A], others: [B] });
      expect(manifest.account).toMatchObject({ live: A, kept: B });
      manifest.settle(A);
      take(manifest, { name: "remove", from: B }, undefined);
      manifest.keep();
      expect(warnings.splice(0)).toEqual([
        expect.stringMatching(
          new RegExp(`^The manifest ${file} can't be read: ${code}.*none is written until the next start`),
        ),
      ]);
      expect(readlinkSync(file)).toBe(target);
      expect(readdirSync(folder)).toEqual(["manifest.json"]);
    }
  });

  test("another machine's", () => {
    take(open(NOTHING, { machine: OTHER_MACHINE }), { name: "flip", to: C }, undefined);
    expectSetAside("it was written on another machine (/etc/machine-id differs)");
    take(open(NOTHING, { machine: OTHER_MACHINE }), { name: "flip", to: C }, undefined);
    warnings.length = 0;
    const clone = open(NOTHING);
    expect(clone.account).toEqual({});
    expect(warnings[0]).toEndWith(`It lies in ${file}.bad now; nothing is pinned: a new one is begun`);
  });

  test("a newer or unknown format is refused and left as it is, also without a machine's id", () => {
    first();
    for (const live of [{ ...A, version: "9.1.0" }, undefined]) {
      const text = JSON.stringify({ version: 2, machine: "x", live, more: [] });
      writeFileSync(file, text);
      let thrown: unknown;
      for (const machine of [MACHINE, undefined]) {
        try {
          Manifest.open(folder, machine, { live: [A], others: [] }, log);
        } catch (error) {
          thrown = error;
        }
        expect(thrown).toBeInstanceOf(UnknownManifest);
      }
      expect(thrown).toMatchObject({
        message:
          `${file} was written by ${live ? "kmesh 9.1.0" : "another kmesh"} in format 2; this one (${kmesh}) knows format 1. ` +
          "Nothing was changed: the pinned tables stay in use",
        next: expect.stringContaining(
          live ? "Start kmesh 9.1.0 or a later one" : "Start the version that wrote it",
        ),
      });
      expect(readFileSync(file, "utf8")).toBe(text);
      expect(readdirSync(folder)).toEqual(["manifest.json"]);
    }
    expect(warnings).toEqual([]);
  });

  test("members that it does not know are no reason to refuse it", () => {
    first();
    const whole = JSON.parse(readFileSync(file, "utf8"));
    writeFileSync(file, JSON.stringify({ ...whole, later: true, live: { ...whole.live, more: 1 } }));
    expect(open({ live: [A], others: [] }).account.live).toMatchObject(A);
  });

  test("one that is lost is made anew, with a line", () => {
    const manifest = open({ live: [B], others: [A, C] });
    expect(infos).toEqual([`There is no ${file}: rebuilt from the pinned tables, which stay in use`]);
    manifest.settle(B);
    expect(read()).toMatchObject({ live: { ...B, version: kmesh }, kept: A });
  });

  test("removed, it is gone with what lies beside it, whichever version wrote it", () => {
    for (const name of ["", ".new", ".bad"]) writeFileSync(`${file}${name}`, '{"version":9}');
    removeManifest(folder);
    expect(readdirSync(folder)).toEqual([]);
    removeManifest(folder);
  });
});

describe("put right by what is pinned", () => {
  const live = { ...A, version: "1", since: THEN };
  const kept = { ...B, version: "2", since: THEN };
  const since = NOW.toISOString();
  const put = (
    account: Parameters<typeof putRight>[0],
    live: GenerationState["live"],
    others: GenerationState["others"],
  ) => putRight(account, { live, others }, NOW);

  test("what agrees stays", () => {
    expect(put({ live, kept }, [A], [B])).toEqual({ live, kept });
    expect(put({ live, kept }, [{ abi: A.abi }], [{ abi: B.abi }])).toEqual({ live, kept });
  });

  test("after a reboot nothing is pinned: nothing is live or kept", () => {
    expect(put({ live, kept, step: { name: "flip", from: A, to: B, at: THEN } }, [], [])).toEqual({});
  });

  test("what is not there is not kept; what is not attached is not live", () => {
    expect(put({ live, kept }, [A], [C])).toEqual({ live });
    expect(put({ live, kept }, [], [A, B])).toEqual({ kept });
  });

  test("a flip of which only the end was not written any more is done, since it began", () => {
    const step = {
      name: "flip",
      from: { ...A, version: "1" },
      to: { ...C, version: "3" },
      at: since,
    } as const;
    expect(putRight({ live, kept, step }, { live: [C], others: [A, B] }, new Date(0))).toEqual({
      live: { ...C, version: "3", since },
      kept: { ...A, version: "1", since },
    });
  });

  test("in the middle of a flip the one before is live still", () => {
    const step = { name: "flip", from: A, to: C, at: THEN } as const;
    expect(put({ live, kept, step }, [C, A], [B])).toEqual({ live, kept });
  });

  test("what a version without a manifest put in the place of ours leaves ours as the way back, from now", () => {
    expect(put({ live, kept }, [C], [A, B])).toEqual({ live: { ...C, since }, kept: { ...live, since } });
    const other = { ...A, code: "a2" };
    expect(put({ live, kept }, [other], [B])).toEqual({ live: { ...other, since }, kept });
  });

  test("without an account all begins now", () => {
    expect(put(undefined, [A], [B, C])).toEqual({ live: { ...A, since }, kept: { ...B, since } });
    expect(put(undefined, [A], [])).toEqual({ live: { ...A, since } });
    expect(put(undefined, [], [B])).toEqual({});
  });
});
