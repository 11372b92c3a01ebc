import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { GenerationState } from "../datapath/generation/generation-state.ts";
import type { Announce, Step } from "../datapath/generation/step.ts";
import { ABI_ID } from "../datapath/tables/layout.gen.ts";
import { Manifest, readManifest } from "./manifest.ts";
import { type Recovered, recover } from "./recovery.ts";

const MACHINE = "0123456789abcdef0123456789abcdef";
const OWN = { abi: ABI_ID, code: "c" };
const A = { abi: "aaaaaaaaaaaaaaaa", code: "a" };
const B = { abi: "bbbbbbbbbbbbbbbb", code: "b" };
const C = { abi: "cccccccccccccccc", code: "c" };

let folder: string;
let lines: string[];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kmesh-recovery-"));
  lines = [];
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const say = (text: string) => void lines.push(text.replace(/\d{4}-\d\d-\d\dT[\d:.]+Z/, "THEN"));
const log = { warn: say, info: say, debug: say };

/** A data path with what is pinned, by name. */
class Pinned implements Recovered {
  readonly name = OWN;
  readonly adopted: boolean;
  readonly attached: boolean;
  readonly takesOver: boolean;
  kept: string[];
  finished = 0;
  readonly #announce: Announce;

  constructor({ live, others }: GenerationState, announce: Announce) {
    this.#announce = announce;
    this.adopted = [...live, ...others].some(({ abi }) => abi === ABI_ID);
    this.attached = live.length === 1 && live[0]?.abi === ABI_ID;
    this.takesOver = live.some(({ abi }) => abi !== ABI_ID);
    this.kept = others.map(({ abi }) => abi).filter((abi) => abi !== ABI_ID);
  }

  removeKept(layout: string): void {
    if (layout.startsWith("f")) throw new Error("not this one");
    this.#announce({ name: "remove", from: { abi: layout } });
    this.kept = this.kept.filter((each) => each !== layout);
    this.#announce(undefined);
  }

  finishFlip(): void {
    this.finished++;
  }
}

/** An agent announces `steps` while `before` is pinned and dies; the next finds `after`. */
function died(steps: readonly (Step | undefined)[], before: GenerationState, after: GenerationState) {
  const dead = Manifest.open(folder, MACHINE, before, log);
  dead.settle(OWN);
  for (const step of steps) dead.announce(step);
  lines = [];
  const manifest = Manifest.open(folder, MACHINE, after, log);
  const pinned = new Pinned(after, (step) => manifest.announce(step));
  const unfinished = recover(manifest, pinned, log);
  expect(manifest.account.step).toBeUndefined();
  expect(readManifest(folder, MACHINE)).toEqual(manifest.account);
  return { manifest, pinned, unfinished };
}

const BEGUN = "An agent ended in the middle of a step, begun THEN: ";
const own = (what: string) =>
  new RegExp(`^${what} the tables of layout ${ABI_ID} \\(kmesh [^)]+\\)\\. (.*)$`);

test("a start that finds nothing left over says nothing and removes nothing", () => {
  const { pinned } = died([], { live: [OWN], others: [A] }, { live: [OWN], others: [A] });
  expect(pinned.kept).toEqual([A.abi]);
  expect(pinned.finished).toBe(0);
  expect(lines).toEqual([]);
});

test("what a dead attempt of this version left is taken up again", () => {
  const outcome = (name: "build" | "fill" | "probe" | "flip", after: GenerationState) => {
    died([{ name, from: A, to: OWN }], { live: [A], others: [] }, after);
    expect(lines.length).toBe(1);
    return lines[0]?.slice(BEGUN.length);
  };
  expect(outcome("build", { live: [A], others: [] })).toMatch(own("building"));
  expect(lines[0]).toEndWith("The ones before govern; begun again with the first push");
  expect(outcome("fill", { live: [A], others: [OWN] })).toMatch(own("filling"));
  expect(outcome("probe", { live: [A], others: [OWN] })).toMatch(own("trying out"));
  expect(outcome("flip", { live: [OWN, A], others: [] })).toMatch(
    own(`giving the hooks from the tables of layout ${A.abi} to`),
  );
  expect(lines[0]).toEndWith("The ones before govern; begun again with the first push");
  expect(outcome("flip", { live: [], others: [] })).toEndWith("Nothing of it is left; begun again");
  expect(outcome("fill", { live: [], others: [OWN] })).toEndWith("Taken up again with the first push");
});

test("a flip that broke off behind its last hook is finished, and a third generation goes at once", () => {
  const { manifest, pinned, unfinished } = died(
    [{ name: "flip", from: A, to: OWN }],
    { live: [A], others: [B] },
    { live: [OWN], others: [B, A] },
  );
  expect(unfinished).toBe("flip");
  expect(pinned).toMatchObject({ finished: 1, kept: [A.abi] });
  expect(manifest.account).toMatchObject({ live: OWN, kept: A });
  expect(lines).toEqual([
    expect.stringMatching(/It is complete$/),
    `removed the tables that failed attempts left: layout ${B.abi}`,
  ]);
});

test("a third generation goes also while another version's tables govern", () => {
  const { manifest, pinned } = died([], { live: [A], others: [B] }, { live: [A], others: [B, C, OWN] });
  expect(pinned.kept).toEqual([B.abi]);
  expect(manifest.account).toMatchObject({ live: A, kept: B });
  expect(lines).toEqual([`removed the tables that failed attempts left: layout ${C.abi}`]);
});

test("the same when it was killed between two steps", () => {
  const steps = [{ name: "flip", from: A, to: OWN } as const, undefined];
  const { pinned, unfinished } = died(steps, { live: [A], others: [B] }, { live: [OWN], others: [A, B] });
  expect(unfinished).toBeUndefined();
  expect(pinned.kept).toEqual([A.abi]);
  expect(lines).toEqual([`removed the tables that failed attempts left: layout ${B.abi}`]);
});

test("what a dead attempt of another version left is undone", () => {
  const step = { name: "fill", from: OWN, to: B } as const;
  const { pinned } = died([step], { live: [OWN], others: [A] }, { live: [OWN], others: [A, B] });
  // Which of two is the way back only a manifest knows.
  expect(pinned.kept).toEqual([A.abi]);
  expect(lines).toEqual([expect.stringMatching(/: filling .*\. Undone: they are removed$/)]);
  died([step], { live: [OWN], others: [A] }, { live: [OWN], others: [A] });
  expect(lines).toEqual([expect.stringMatching(/Nothing of it is left$/)]);
  died([{ ...step, from: A }], { live: [A], others: [] }, { live: [A], others: [B] });
  expect(lines).toEqual([expect.stringMatching(/Undone: they are removed$/)]);
  died([{ ...step, from: A }], { live: [A], others: [] }, { live: [A], others: [] });
  expect(lines).toEqual([expect.stringMatching(/These become live with the first push$/)]);
});

test("a removal is ended", () => {
  const step = { name: "remove", from: { abi: A.abi } } as const;
  for (const others of [[A], []]) {
    rmSync(join(folder, "manifest.json"), { force: true });
    const { manifest, pinned } = died([step], { live: [OWN], others: [A] }, { live: [OWN], others });
    expect(pinned.kept).toEqual([]);
    expect(manifest.account.kept).toBeUndefined();
    expect(lines).toEqual([
      `${BEGUN}removing the tables of layout ${A.abi}. ${others.length > 0 ? "Removed now" : "Nothing of them is left"}`,
    ]);
  }
});

test("what can't be removed is told, and the rest goes on", () => {
  const stuck = { abi: "ffffffffffffffff", code: "f" };
  const { pinned } = died([], { live: [OWN], others: [A] }, { live: [OWN], others: [A, stuck, B] });
  expect(pinned.kept).toEqual([A.abi, stuck.abi]);
  expect(lines).toEqual([
    `the tables of layout ${stuck.abi} stay: not this one`,
    `removed the tables that failed attempts left: layout ${B.abi}`,
  ]);
});
