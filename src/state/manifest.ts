/**
 * The manifest: the live generation and since when, the generation kept for a rollback, and the step between two
 * generations that is in progress. It is a file in the state folder, written before each step, so that the start
 * after a crash knows what was intended. The pins are the truth: where they differ from the manifest, the manifest is
 * wrong.
 */

import { existsSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { GenerationState } from "../datapath/generation/generation-state.ts";
import type { LinkIds } from "../datapath/generation/hidden-links.ts";
import type { GenerationName, Step } from "../datapath/generation/step.ts";
import { ActionableError } from "../errors/actionable-error.ts";
import { reasonOf } from "../errors/reason.ts";
import { readWhole } from "../files/read-whole.ts";
import { replaceFile } from "../files/replace-file.ts";
import { machineFingerprint } from "../machine/machine-id.ts";
import { faultPoint } from "../runtime/fault.ts";
import { version as kmesh } from "../runtime/version.ts";

/**
 * Raise it only when earlier versions must not touch the state: they refuse a higher number. New members need no new
 * number. A version that raises it must write the earlier format until its predecessor has ended; otherwise the
 * predecessor could not take its tables back.
 */
const VERSION = 1;
const LARGEST = 64 << 10;
const STEPS = ["build", "fill", "probe", "flip", "remove"] as const satisfies readonly Step["name"][];

/** A generation, and the version of kmesh that made it, if known. */
export interface Named extends GenerationName {
  version?: string;
}

export interface ManifestEntry extends Named {
  /** Since when it is live or kept; ISO 8601. */
  since: string;
}

export interface UnderWay extends Step {
  from?: Named;
  to?: Named;
  /** When it began; ISO 8601. */
  at: string;
}

/** The content of the manifest. */
export interface ManifestContent {
  live?: ManifestEntry;
  /** The generation that was live before, kept for a rollback. */
  kept?: ManifestEntry;
  step?: UnderWay;
  links?: AttachedLinks;
}

/** The links that were attached last. A start finds them by id even when their pins are hidden. */
export interface AttachedLinks {
  /** The kernel's boot id: link ids are valid in one boot only. */
  boot: string;
  ids: LinkIds;
}

/** The log for problems of the manifest. */
export interface Remarks {
  info(text: string): void;
  warn(text: string): void;
  debug(text: string): void;
}

/** The file exists and can't be used. */
export class BadManifest extends Error {
  override readonly name = "BadManifest";
}

/** Another version of kmesh wrote the file in an unknown format. This version must not change the state. */
export class UnknownManifest extends ActionableError {
  constructor(path: string, version: unknown, writer: string | undefined) {
    const who = writer === undefined ? "another kmesh" : `kmesh ${writer}`;
    super(
      `${path} was written by ${who} in format ${version}; this one (${kmesh}) knows format ${VERSION}. ` +
        "Nothing was changed: the pinned tables stay in use",
      `Start ${writer === undefined ? "the version that wrote it" : `kmesh ${writer} or a later one`}; or have \`kmesh down\` remove tables and manifest, and start again.`,
    );
  }
}

/** Path of the manifest in the state folder. */
export function manifestFile(stateDir: string): string {
  return join(stateDir, "manifest.json");
}

function unfinishedFile(stateDir: string): string {
  return `${manifestFile(stateDir)}.new`;
}

function badFile(stateDir: string): string {
  return `${manifestFile(stateDir)}.bad`;
}

/**
 * Reads the manifest in `stateDir`; undefined when there is none. `machine` is the text of /etc/machine-id. Changes
 * nothing. Throws UnknownManifest, BadManifest (damaged, or another machine's), and the file system's Error.
 */
export function readManifest(stateDir: string, machine: string | undefined): ManifestContent | undefined {
  const path = manifestFile(stateDir);
  const file = readWhole(path, LARGEST, BadManifest);
  if (file === undefined) return undefined;
  const value = parse(file.toString());
  if (!Number.isInteger(value.version) || Number(value.version) < 1)
    throw new BadManifest("it has no format's number");
  if (value.version !== VERSION) {
    const writer = isObject(value.live) ? value.live.version : undefined;
    throw new UnknownManifest(path, value.version, typeof writer === "string" ? writer : undefined);
  }
  if (typeof value.machine !== "string") throw new BadManifest("it names no machine");
  if (machine === undefined || value.machine !== machineFingerprint("manifest", machine).toString("hex"))
    throw new BadManifest("it was written on another machine (/etc/machine-id differs)");
  return accountOf(value);
}

/**
 * Throws UnknownManifest when the manifest is in an unknown format; ignores every other fault. Call it before
 * anything is changed.
 */
export function refuseUnknown(stateDir: string): void {
  try {
    readManifest(stateDir, undefined);
  } catch (error) {
    if (error instanceof UnknownManifest) throw error;
  }
}

/** The link ids in the manifest; {} when it can't be read or is of another boot. */
export function linksInManifest(stateDir: string, machine: string | undefined, boot: string): LinkIds {
  try {
    const links = readManifest(stateDir, machine)?.links;
    return links && boot !== "" && links.boot === boot ? links.ids : {};
  } catch {
    // The start reads the manifest again and logs the fault.
    return {};
  }
}

/** Whether there is a manifest, of any format. */
export function hasManifest(stateDir: string): boolean {
  return existsSync(manifestFile(stateDir));
}

/** Removes the manifest, of any format, with its unfinished and rejected copies. Call it when the tables are gone. */
export function removeManifest(stateDir: string): void {
  for (const path of [manifestFile(stateDir), unfinishedFile(stateDir), badFile(stateDir)])
    rmSync(path, { recursive: true, force: true });
}

/**
 * Corrects `account` by the pinned generations. Without a manifest the first of the other generations counts as the
 * previous one: which one it was is unknown, and a wrong choice only makes the rollback slower.
 */
export function putRight(
  account: ManifestContent | undefined,
  { live, others }: GenerationState,
  now = new Date(),
): ManifestContent {
  const since = now.toISOString();
  const there = (each: ManifestEntry | undefined) =>
    each && others.some(({ abi }) => abi === each.abi) ? each : undefined;
  const governs = live.find((each) => isSame(each, account?.live)) ?? live[0];
  if (!governs) {
    const kept = there(account?.kept);
    return kept ? { kept } : {};
  }
  const { step } = account ?? {};
  // The flip is complete; the agent ended before it recorded that.
  const flipped = step?.name === "flip" && live.length === 1 && isSame(governs, step.to);
  const found = flipped ? afterFlip(account ?? {}, step, step.at) : { ...account };
  // A version without a manifest replaced the live generation.
  const replaced = flipped ? undefined : there(found.live);
  const [other] = account ? [] : others;
  const before = replaced ?? other;
  const kept = before ? { ...before, since } : there(found.kept);
  return {
    live: found.live && isSame(governs, found.live) ? { ...found.live, ...governs } : { ...governs, since },
    ...(kept ? { kept } : {}),
  };
}

export class Manifest {
  readonly #stateDir: string;
  readonly #machine: string | undefined;
  readonly #log: Remarks;
  #account: ManifestContent = {};
  /** The step that the previous agent did not finish. */
  readonly unfinished: UnderWay | undefined;
  /** The text of the file, as far as this process knows. */
  #written: string | undefined;
  #warned = false;
  /** The file could not be read. It may be intact or of a newer version, so it is not overwritten. */
  #unread = false;

  private constructor(stateDir: string, machine: string | undefined, state: GenerationState, log: Remarks) {
    this.#stateDir = stateDir;
    this.#machine = machine;
    this.#log = log;
    const account = this.#read(state);
    this.#written = account && machine !== undefined ? textOf(account, machine) : undefined;
    this.unfinished = account?.step;
    const { links } = account ?? {};
    this.#account = { ...putRight(account, state), ...(links ? { links } : {}) };
  }

  /**
   * Reads the manifest in `stateDir`. A damaged manifest, or another machine's, is set aside. A missing one is
   * rebuilt from the pins, with a line in the log. One that can't be read stays as it is, and none is written until
   * the next start; the pins are used. Without a machine id (undefined) none is read or written. Writes nothing yet.
   * The caller must hold the locks. Throws UnknownManifest.
   */
  static open(stateDir: string, machine: string | undefined, state: GenerationState, log: Remarks): Manifest {
    return new Manifest(stateDir, machine, state, log);
  }

  get account(): ManifestContent {
    return this.#account;
  }

  /**
   * Records the begin of `step`, or with undefined the end of the present one. The file is written when it returns;
   * if that fails, a line is logged and the agent continues.
   */
  announce(step: Step | undefined): void {
    const now = new Date().toISOString();
    const { links } = this.#account;
    const next = step ? begun(this.#account, step, now) : ended(this.#account, now);
    this.#account = { ...next, ...(links ? { links } : {}) };
    this.#write();
  }

  /** Records the attached links; `boot` is the kernel's boot id. Writes when they changed. */
  recordLinks(ids: LinkIds, boot: string): void {
    this.#account = { ...this.#account, links: { boot, ids } };
    this.#write();
  }

  /**
   * Call it when a start has finished or undone the unfinished step. `own` is this version's generation. Writes the
   * manifest if it differs from the file.
   */
  settle(own: GenerationName): void {
    const { step: _, live, ...rest } = this.#account;
    const mine = live && isSame(live, own) ? { ...live, version: kmesh } : live;
    this.#account = { ...(mine ? { live: mine } : {}), ...rest };
    this.#write();
  }

  /** Call it periodically: writes the manifest again when a write failed or the file was removed. */
  keep(): void {
    if (this.#written !== undefined && existsSync(manifestFile(this.#stateDir))) return;
    this.#written = undefined;
    this.#write();
  }

  #read(state: GenerationState): ManifestContent | undefined {
    const path = manifestFile(this.#stateDir);
    const outcome =
      state.live.length > 0
        ? "rebuilt from the pinned tables, which stay in use"
        : "nothing is pinned: a new one is begun";
    try {
      const account = readManifest(this.#stateDir, this.#machine);
      dropUnfinished(this.#stateDir);
      if (!account && state.live.length > 0 && existsSync(this.#stateDir))
        this.#log.info(`There is no ${path}: ${outcome}`);
      return account;
    } catch (error) {
      if (error instanceof UnknownManifest) throw error;
      // Without an id the file may still be this machine's.
      if (this.#machine === undefined) return undefined;
      const why = reasonOf(error);
      this.#unread = !(error instanceof BadManifest);
      this.#log.warn(
        this.#unread
          ? `The manifest ${path} can't be read: ${why}. It stays as it is, and none is written until the next start; the pinned tables are used`
          : `The manifest ${path} is not used: ${why}. ${this.#setAside()}; ${outcome}`,
      );
      return undefined;
    }
  }

  #setAside(): string {
    try {
      rmSync(badFile(this.#stateDir), { recursive: true, force: true });
      renameSync(manifestFile(this.#stateDir), badFile(this.#stateDir));
      return `It lies in ${badFile(this.#stateDir)} now`;
    } catch (error) {
      return `It can't be set aside (${reasonOf(error)})`;
    }
  }

  #write(): void {
    if (this.#machine === undefined || this.#unread) return;
    const text = textOf(this.#account, this.#machine);
    if (text === this.#written) return;
    try {
      writeWhole(this.#stateDir, text);
      this.#written = text;
      this.#warned = false;
    } catch (error) {
      this.#written = undefined;
      this.#log[this.#warned ? "debug" : "warn"](
        `${manifestFile(this.#stateDir)} can't be written: ${reasonOf(error)}. ` +
          "Traffic does not need it; the next start reads the pins",
      );
      this.#warned = true;
    }
  }
}

/** Removes the file of an interrupted write. On a read-only folder it stays. */
function dropUnfinished(stateDir: string): void {
  try {
    rmSync(unfinishedFile(stateDir), { recursive: true, force: true });
  } catch {
    // The next write logs the reason.
  }
}

function begun(account: ManifestContent, { name, from, to }: Step, now: string): ManifestContent {
  const { step } = account;
  // A repeated step keeps the time of its first attempt.
  const again = step?.name === name && isSame(step.from, from) && isSame(step.to, to);
  return {
    ...account,
    step: {
      name,
      ...(from ? { from: named(from, account) } : {}),
      ...(to ? { to: { ...to, version: kmesh } } : {}),
      at: again ? step.at : now,
    },
  };
}

function ended({ step, ...account }: ManifestContent, now: string): ManifestContent {
  if (step?.name === "flip") return afterFlip(account, step, now);
  if (step?.name !== "remove" || step.from?.abi !== account.kept?.abi) return account;
  const { kept: _, ...rest } = account;
  return rest;
}

function afterFlip({ live, kept }: ManifestContent, { from, to }: UnderWay, since: string): ManifestContent {
  const next = from && from.abi !== to?.abi ? { ...from, since } : kept;
  return {
    ...(to ? { live: { ...to, since } } : live ? { live } : {}),
    // A flip within the same tables leaves no other generation to keep.
    ...(next && next.abi !== to?.abi ? { kept: next } : {}),
  };
}

/** Adds the version that the manifest knows for a generation. */
function named(generation: GenerationName, { live, kept }: ManifestContent): Named {
  const known = [live, kept].find((each) => isSame(each, generation));
  if (!known) return generation;
  const { since: _, ...name } = known;
  return { ...name, ...generation };
}

/** Whether two names mean the same generation. An unknown code matches any code; undefined matches undefined. */
function isSame(one: GenerationName | undefined, other: GenerationName | undefined): boolean {
  if (!one || !other) return one === other;
  return one.abi === other.abi && (one.code ?? other.code) === (other.code ?? one.code);
}

function textOf({ live, kept, step, links }: ManifestContent, machine: string): string {
  const content = {
    version: VERSION,
    machine: machineFingerprint("manifest", machine).toString("hex"),
    live,
    kept,
    step,
    links,
  };
  return `${JSON.stringify(content, undefined, 2)}\n`;
}

/**
 * Written without fsync: waiting for the disk would delay the agent. The manifest describes a bpffs, which does not
 * survive a power loss. A file that a power loss damages is set aside.
 */
function writeWhole(stateDir: string, text: string): void {
  replaceFile(manifestFile(stateDir), text, {
    mode: 0o600,
    folderMode: 0o700,
    onHalf: () => faultPoint("manifest.part"),
    onWritten: () => faultPoint("manifest.rename"),
    onRenamed: () => faultPoint("manifest.renamed"),
  });
}

function parse(text: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    // The check below throws.
  }
  if (!isObject(value)) throw new BadManifest("it is damaged: no JSON object");
  return value;
}

function accountOf({ live, kept, step, links }: Record<string, unknown>): ManifestContent {
  const broken = Object.entries({
    live: live === undefined || isStandpoint(live),
    kept: kept === undefined || isStandpoint(kept),
    step: step === undefined || isUnderWay(step),
  }).find(([, whole]) => !whole);
  if (broken) throw new BadManifest(`it is damaged: "${broken[0]}" is not what it has to be`);
  return {
    ...(isStandpoint(live) ? { live } : {}),
    ...(isStandpoint(kept) ? { kept } : {}),
    ...(isUnderWay(step) ? { step } : {}),
    // Link ids are verified before use, so damaged ones are only omitted.
    ...(isLinks(links) ? { links } : {}),
  };
}

function isLinks(value: unknown): value is AttachedLinks {
  if (!isObject(value) || typeof value.boot !== "string" || !isObject(value.ids)) return false;
  return Object.values(value.ids).every((id) => Number.isInteger(id) && Number(id) > 0);
}

function isStandpoint(value: unknown): value is ManifestEntry {
  return isNamed(value) && "since" in value && isTime(value.since);
}

function isUnderWay(value: unknown): value is UnderWay {
  if (!isObject(value) || !isTime(value.at)) return false;
  const { name, from, to } = value;
  const known = STEPS.some((each) => each === name);
  return known && [from, to].every((each) => each === undefined || isNamed(each));
}

/** The layout becomes part of a path, so its characters are checked. */
function isNamed(value: unknown): value is Named {
  if (!isObject(value) || typeof value.abi !== "string" || !/^[\w-]+$/.test(value.abi)) return false;
  return [value.code, value.version].every((each) => each === undefined || typeof each === "string");
}

function isTime(value: unknown): boolean {
  return typeof value === "string" && !Number.isNaN(Date.parse(value));
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
