/** Gives the hooks to a generation's programs: tests them, then attaches them or replaces others. Announces each step. */
import { cgroup2Root } from "../kernel/cgroup.ts";
import type { Hook } from "../kernel/link.ts";
import { type Generation, governedByOthers } from "./generation/generation.ts";
import { generationStateAt } from "./generation/generation-state.ts";
import { PreloadedPrograms } from "./generation/preload.ts";
import { type Code, ownCode } from "./generation/programs.ts";
import { SelfTestFailed, type SelfTestResult, selfTest } from "./generation/self-test.ts";
import type { Announce, Step } from "./generation/step.ts";

export interface TakeoverOptions {
  /** Folder on a bpffs for the pins. */
  bpffs: string;
  /** Called before each step between two generations. */
  announce?: Announce;
  /** The result of `selfTestAhead`. */
  tested?: SelfTestResult;
  log(line: string): void;
  /** Logs warnings; absent: `log` does. */
  warn?(line: string): void;
}

/** Pause before a failed self-test is repeated, milliseconds; it doubles each time. */
const RETRY = { first: 5_000, longest: 300_000 };

/**
 * Tests this build's programs if they would replace others; undefined if not. Needs no lock and changes nothing. Throws
 * SelfTestFailed.
 */
export function selfTestAhead(
  options: Pick<TakeoverOptions, "bpffs" | "log" | "warn"> & { netns: "own" | "all" },
): SelfTestResult | undefined {
  const { bpffs, netns } = options;
  const code = ownCode();
  if (!governedByOthers(bpffs, code)) return undefined;
  const tested = selfTest(bpffs, code, netns);
  logSelfTest(tested, options);
  return tested;
}

/**
 * Loads this build's programs if they would replace others; undefined if not. Needs no lock; closing the result leaves
 * nothing behind. Throws KernelError.
 */
export function preloadAhead(bpffs: string): PreloadedPrograms | undefined {
  const code = ownCode();
  return governedByOthers(bpffs, code) ? PreloadedPrograms.load(bpffs, code) : undefined;
}

export class Takeover {
  readonly #options: TakeoverOptions;
  readonly #generation: Generation;
  readonly #code: Code;
  /** The result of the self-test. */
  #tested: SelfTestResult | undefined;
  /** The failed self-test, and the time of the next one by performance.now(). */
  #failure: { error: SelfTestFailed; until: number; wait: number } | undefined;

  /** `code` are the generation's programs. */
  constructor(options: TakeoverOptions, generation: Generation, code: Code) {
    this.#options = options;
    this.#generation = generation;
    this.#code = code;
    this.#tested = options.tested;
  }

  /** Whether the last self-test failed. */
  get failed(): boolean {
    return this.#failure !== undefined;
  }

  /**
   * Tests the programs if they would replace others. Returns the error when they must not be attached, and the same error
   * until the next test is due. Throws KernelError.
   */
  test(netns: "own" | "all"): SelfTestFailed | undefined {
    if (!this.#generation.replaces) return undefined;
    const now = performance.now();
    if (this.#failure && now < this.#failure.until) return this.#failure.error;
    try {
      this.#requireTested(netns);
      this.#failure = undefined;
      return undefined;
    } catch (error) {
      if (!(error instanceof SelfTestFailed)) throw error;
      const { first, longest } = RETRY;
      const wait = this.#failure ? Math.min(this.#failure.wait * 2, longest) : first;
      error.retryAfter = wait;
      this.#failure = { error, until: now + wait, wait };
      return error;
    }
  }

  /**
   * Gives every hook the generation's program; the tables must be complete. Keeps the previously live generation of another
   * layout and removes the others. Returns the hooks that run another program than before.
   */
  attach(): Hook[] {
    const generation = this.#generation;
    const { announce, log } = this.#options;
    const replacesLayout = generation.others === "live";
    const [before, ...older] = generation.otherLayouts;
    this.announce("flip");
    const hooks = generation.attach(cgroup2Root());
    announce?.(undefined);
    if (hooks.length > 0) log(`attached: ${hooks.join(", ")}`);
    if (replacesLayout) {
      log(`replaced the tables of another version, layout ${before}, which are kept`);
      for (const layout of older) this.removeOther(layout);
    }
    return hooks;
  }

  removeOther(layout: string): void {
    this.#options.announce?.({ name: "remove", from: { abi: layout } });
    this.#generation.removeOther(layout);
    this.#options.announce?.(undefined);
  }

  /** Announces a step. */
  announce(name: Step["name"]): void {
    const { announce, bpffs } = this.#options;
    if (!announce) return;
    // When an interrupted flip is resumed: the generation that was live before it.
    const { abi, code } = this.#generation.name;
    const from = generationStateAt(bpffs).live.find((each) => each.abi !== abi || each.code !== code);
    announce({ name, ...(from ? { from } : {}), to: this.#generation.name });
  }

  #requireTested(netns: "own" | "all"): void {
    const { bpffs, announce } = this.#options;
    if (!this.#tested) {
      this.announce("probe");
      try {
        this.#tested = selfTest(bpffs, this.#code, netns);
      } finally {
        announce?.(undefined);
      }
      logSelfTest(this.#tested, this.#options);
    }
    const { tags } = this.#generation;
    const wrong = [...this.#tested.tags]
      .filter(([hook, tag]) => tags.get(hook) !== tag)
      .map(([hook]) => hook);
    if (wrong.length > 0)
      throw new SelfTestFailed(
        `the programs pinned for ${wrong.join(", ")} are not those of this executable, which were proved. ` +
          "They are not attached: what governed before governs on",
      );
  }
}

function logSelfTest(
  { milliseconds, untried }: SelfTestResult,
  to: Pick<TakeoverOptions, "log" | "warn">,
): void {
  if (untried === undefined)
    to.log(`the new programs led connections right on trial (${milliseconds.toFixed(0)} ms)`);
  else (to.warn ?? to.log)(`the new programs replace the old ones without a self-test: ${untried}`);
}
