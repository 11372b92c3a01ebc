/**
 * The manifest: which generation governs and since when, which one is kept for the way back, and the step between two
 * that is being taken. A file in the state folder, written before each step, so that the start after one that died
 * knows what was meant. What is pinned is the truth: where both differ, the manifest is wrong.
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
 * Raised only when versions before must keep their hands off: they refuse it. New members need no new number. A version
 * that raises it has to write the one before until its predecessor has ended, or that one could not take its tables back.
 */
const VERSION = 1;
const LARGEST = 64 << 10;
const STEPS = ["build", "fill", "probe", "flip", "remove"] as const satisfies readonly Step["name"][];

/** A generation, and which kmesh made it, as far as that is known. */
export interface Named extends GenerationName {
  version?: string;
}

export interface ManifestEntry extends Named {
  /** Since when it governs or is kept; ISO 8601. */
  since: string;
}

export interface UnderWay extends Step {
  from?: Named;
  to?: Named;
  /** When it began; ISO 8601. */
  at: string;
}

/** What the manifest says. */
export interface ManifestContent {
  live?: ManifestEntry;
  /** The one that governed before, kept for the way back. */
  kept?: ManifestEntry;
  step?: UnderWay;
  links?: AttachedLinks;
}

/** The links that were attached last, so that a start finds them also where their pins are hidden. */
export interface AttachedLinks {
  /** The kernel's boot id: the numbers mean nothing in another boot. */
  boot: string;
  ids: LinkIds;
}

/** Where it says what is wrong. */
export interface Remarks {
  info(text: string): void;
  warn(text: string): void;
  debug(text: string): void;
}

/** The file is there and can't be used. */
export class BadManifest extends Error {
  override readonly name = "BadManifest";
}

/** Another kmesh wrote it in a way that this one does not know: who does not understand the state must not change it. */
export class UnknownManifest extends ActionableError {
  constructor(path: string, version: unknown, writer: string | undefined) {
    const who = writer === undefined ? "another kmesh" : `kmesh ${writer}`;
    super(
      `${path} was written by ${who} in format ${version}; this one (${kmesh}) knows format ${VERSION}. ` +
        "Nothing was touched: what is pinned governs on",
      `Start ${writer === undefined ? "the version that wrote it" : `kmesh ${writer} or a later one`}; or have \`kmesh down\` remove tables and manifest, and start anew.`,
    );
  }
}

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
 * What the manifest in `stateDir` says; undefined when there is none. Changes nothing.
 * Throws UnknownManifest, BadManifest (damaged, another machine's), and what the file system says.
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

/** Throws UnknownManifest when that is what lies there, as far as it can be read: before anything is touched. */
export function refuseUnknown(stateDir: string): void {
  try {
    readManifest(stateDir, undefined);
  } catch (error) {
    if (error instanceof UnknownManifest) throw error;
  }
}

/** The links that the manifest names, as far as it can be read and is of this boot; {} otherwise. */
export function linksInManifest(stateDir: string, machine: string | undefined, boot: string): LinkIds {
  try {
    const links = readManifest(stateDir, machine)?.links;
    return links && boot !== "" && links.boot === boot ? links.ids : {};
  } catch {
    // The start that follows reads it too, and says what is wrong with it.
    return {};
  }
}

/** Whether there is one, of whichever version. */
export function hasManifest(stateDir: string): boolean {
  return existsSync(manifestFile(stateDir));
}

/** Removes the manifest, of whichever version, and what lies beside it: nothing that it tells of is there any more. */
export function removeManifest(stateDir: string): void {
  for (const path of [manifestFile(stateDir), unfinishedFile(stateDir), badFile(stateDir)])
    rmSync(path, { recursive: true, force: true });
}

/**
 * What `account` says, put right by what is pinned. Without an account one of the others is taken for the one before:
 * which it was nobody knows, and the way back to any of them is but longer.
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
  // Only that it is done was not written any more.
  const flipped = step?.name === "flip" && live.length === 1 && isSame(governs, step.to);
  const found = flipped ? afterFlip(account ?? {}, step, step.at) : { ...account };
  // A version without a manifest put another in the place of what governed.
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
  /** The step in whose middle the agent before ended. */
  readonly unfinished: UnderWay | undefined;
  /** What the file holds, as far as this one knows. */
  #written: string | undefined;
  #warned = false;
  /** What lies there could not be read, and may well be whole, or a newer version's: nothing takes its place. */
  #unread = false;

  private constructor(
    stateDir: string,
    machine: string | undefined,
    standing: GenerationState,
    log: Remarks,
  ) {
    this.#stateDir = stateDir;
    this.#machine = machine;
    this.#log = log;
    const account = this.#read(standing);
    this.#written = account && machine !== undefined ? textOf(account, machine) : undefined;
    this.unfinished = account?.step;
    const { links } = account ?? {};
    this.#account = { ...putRight(account, standing), ...(links ? { links } : {}) };
  }

  /**
   * Reads the manifest in `stateDir`; one that is damaged or another machine's is set aside, one that is lost is made anew
   * by what is pinned, with a line in the log. Writes nothing yet. Only for who holds the locks. Throws UnknownManifest.
   * One that can't be read stays as it is until the next start: what is pinned is gone by, and none is written.
   * Without a machine's id (undefined) there is nothing to bind it to: none is read or written then.
   */
  static open(
    stateDir: string,
    machine: string | undefined,
    standing: GenerationState,
    log: Remarks,
  ): Manifest {
    return new Manifest(stateDir, machine, standing, log);
  }

  get account(): ManifestContent {
    return this.#account;
  }

  /** In the file when it returns, or a line says why it isn't: a disk that takes nothing is no reason not to go on. */
  announce(step: Step | undefined): void {
    const now = new Date().toISOString();
    const { links } = this.#account;
    const next = step ? begun(this.#account, step, now) : ended(this.#account, now);
    this.#account = { ...next, ...(links ? { links } : {}) };
    this.#write();
  }

  /** Names the links that are attached now; `boot` is the kernel's boot id. Writes when they are other ones. */
  recordLinks(ids: LinkIds, boot: string): void {
    this.#account = { ...this.#account, links: { boot, ids } };
    this.#write();
  }

  /** After a start has put right what was left, `own` being this version's: writes what is not written yet. */
  settle(own: GenerationName): void {
    const { step: _, live, ...rest } = this.#account;
    const mine = live && isSame(live, own) ? { ...live, version: kmesh } : live;
    this.#account = { ...(mine ? { live: mine } : {}), ...rest };
    this.#write();
  }

  /** Call it now and then: writes what could not be written, or what somebody removed. */
  keep(): void {
    if (this.#written !== undefined && existsSync(manifestFile(this.#stateDir))) return;
    this.#written = undefined;
    this.#write();
  }

  #read(standing: GenerationState): ManifestContent | undefined {
    const path = manifestFile(this.#stateDir);
    const anew =
      standing.live.length > 0
        ? "made anew by what is pinned, which governs on"
        : "nothing is pinned: begun anew";
    try {
      const account = readManifest(this.#stateDir, this.#machine);
      dropUnfinished(this.#stateDir);
      if (!account && standing.live.length > 0 && existsSync(this.#stateDir))
        this.#log.info(`There is no ${path}: ${anew}`);
      return account;
    } catch (error) {
      if (error instanceof UnknownManifest) throw error;
      // Without an id, what lies there may well be this machine's.
      if (this.#machine === undefined) return undefined;
      const why = reasonOf(error);
      this.#unread = !(error instanceof BadManifest);
      this.#log.warn(
        this.#unread
          ? `The manifest ${path} can't be read: ${why}. It stays as it is, and none is written until the next start; what is pinned is gone by`
          : `The manifest ${path} is not used: ${why}. ${this.#setAside()}; ${anew}`,
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
          "Traffic does not need it; the next start goes by what is pinned",
      );
      this.#warned = true;
    }
  }
}

/** What one that was killed while it wrote left; on a folder that takes nothing it stays. */
function dropUnfinished(stateDir: string): void {
  try {
    rmSync(unfinishedFile(stateDir), { recursive: true, force: true });
  } catch {
    // The next write says why.
  }
}

function begun(account: ManifestContent, { name, from, to }: Step, now: string): ManifestContent {
  const { step } = account;
  // Tried once more, it is under way since its first try.
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
    // Over the same tables there is no way back but to flip again.
    ...(next && next.abi !== to?.abi ? { kept: next } : {}),
  };
}

/** With what is known of it. */
function named(generation: GenerationName, { live, kept }: ManifestContent): Named {
  const known = [live, kept].find((each) => isSame(each, generation));
  if (!known) return generation;
  const { since: _, ...name } = known;
  return { ...name, ...generation };
}

/** A code that is not known may be any; nothing is the same as nothing. */
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
 * Not durable: a wait for the disk would hold up the agent. The manifest describes a bpffs, which no power loss survives, and
 * a file that one tears is set aside.
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
    // Told below.
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
    // What they name is looked at before it is believed: damaged, they are but left out.
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

/** The layout becomes part of a path. */
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
