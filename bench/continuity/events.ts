/** What each event does. Connections go on meanwhile. */

import { sleep } from "../../test/lab/process.ts";
import { Random } from "../../test/lab/random.ts";
import type { Build } from "./builds.ts";
import type { Crash } from "./ledger/book.ts";
import type { EventKind, ScheduledEvent } from "./schedule.ts";
import type { Stage } from "./stage.ts";
import { SIDES } from "./tunnels.ts";

export interface Outcome {
  /** How long no process could change the tables, apart from the pause that the event itself prescribes, ms. */
  gap: number;
  /** Of a start after which nothing had changed: map writes that it took all the same, and what they changed. */
  writes?: number;
  written?: readonly string[];
  /** A tunnel was killed: what it carried is lost. */
  crash?: Crash;
}

export interface Pace {
  /** How long the agent is stopped, ms. */
  stopped: number;
  /** How long other absences last at most, ms. */
  absence: number;
}

interface Scene {
  stage: Stage;
  random: Random;
  pace: Pace;
}

/**
 * Plays an event. Resolves when the agent is in sync again; rejects when it does not come to that, and when the manifest
 * does not tell what governs.
 */
export async function play(stage: Stage, event: ScheduledEvent, pace: Pace): Promise<Outcome> {
  const outcome = await PLAYS[event.kind]({ stage, random: new Random(event.seed), pace });
  await stage.checkManifest();
  return outcome;
}

const PLAYS: Record<EventKind, (scene: Scene) => Promise<Outcome>> = {
  async graceful({ stage }) {
    const { gap_ms, map_writes } = await stage.restartGracefully();
    await stage.inSync();
    return { gap: gap_ms, writes: map_writes };
  },

  async "other mode"({ stage, random }) {
    if (random.chance(0.5)) await change(stage, random);
    const { gap_ms } = await stage.changeMode(stage.mode === "dual-engine" ? "kernel-native" : "dual-engine");
    const { mode } = await stage.inSync();
    if (mode !== stage.mode) throw new Error(`the mode is ${mode}`);
    return { gap: gap_ms };
  },

  async upgrade({ stage }) {
    const { gap_ms } = await stage.upgrade(otherThan(stage.installed));
    await stage.inSync();
    return { gap: gap_ms };
  },

  async rollback({ stage, random, pace }) {
    const before = stage.installed;
    const up = await stage.upgrade(otherThan(before));
    // The tables that it goes back to are older than this.
    await change(stage, random);
    await stage.inSync();
    await sleep(random.below(pace.absence));
    const back = await stage.rollback(before);
    await stage.inSync();
    return { gap: Math.max(up.gap_ms, back.gap_ms) };
  },

  async "failed upgrade"({ stage, random }) {
    await stage.failUpgrade(random.pick(["ends", "hangs"]));
    const gap = stopwatch();
    await stage.inSync();
    return { gap: gap() };
  },

  async "failed probe"({ stage }) {
    await stage.failProbe();
    const gap = stopwatch();
    await stage.inSync();
    return { gap: gap() };
  },

  kill: ({ stage }) => killAndStart(stage),

  async "other version"({ stage }) {
    stage.install(otherThan(stage.installed));
    const gap = stopwatch();
    await stage.killAgent();
    await stage.startAgent();
    await stage.inSync();
    return { gap: gap() };
  },

  async "change while down"({ stage, random, pace }) {
    await stage.killAgent();
    await change(stage, random);
    await sleep(random.below(pace.absence));
    const gap = stopwatch();
    await stage.startAgent();
    await stage.inSync();
    return { gap: gap() };
  },

  async stop({ stage, random, pace }) {
    stage.signalAgent("SIGSTOP");
    await sleep(pace.stopped / 2);
    await change(stage, random);
    await sleep(pace.stopped / 2);
    const gap = stopwatch();
    stage.signalAgent("SIGCONT");
    await stage.inSync();
    return { gap: gap() };
  },

  async "istiod gone"({ stage, random, pace }) {
    await stage.stopIstiod();
    await sleep(random.below(pace.absence));
    if (random.chance(0.5)) {
      await stage.killAgent();
      await stage.startAgent();
    }
    if (random.chance(0.5)) stage.plan.change(random);
    await sleep(random.below(pace.absence));
    const gap = stopwatch();
    await stage.startIstiod();
    await stage.inSync();
    return { gap: gap() };
  },

  async "disk full"({ stage, random, pace }) {
    stage.fillDisk();
    try {
      await change(stage, random);
      await stage.inSync();
      await sleep(random.below(pace.absence));
      return await killAndStart(stage);
    } finally {
      stage.freeDisk();
    }
  },

  async "state lost"({ stage }) {
    stage.loseState();
    const outcome = await killAndStart(stage);
    stage.tunnels.renewCertificate("apps");
    return outcome;
  },

  async "state corrupt"({ stage }) {
    stage.corruptState();
    const outcome = await killAndStart(stage);
    stage.tunnels.renewCertificate("apps");
    return outcome;
  },

  async "tunnel restart"({ stage, random, pace }) {
    let gap = 0;
    for (const side of random.chance(0.3) ? SIDES : [random.pick(SIDES)]) {
      gap = Math.max(gap, await stage.tunnels.restart(side));
      // Another certificate while the one before drains; then the next one, while two drain.
      if (random.chance(0.5)) stage.tunnels.renewCertificate(side);
      if (random.chance(0.5)) {
        await sleep(random.below(pace.absence));
        gap = Math.max(gap, await stage.tunnels.restart(side));
      }
    }
    return { gap };
  },

  async "tunnel upgrade"({ stage, random }) {
    stage.tunnels.install(otherThan(stage.tunnels.installed));
    let gap = 0;
    for (const side of random.shuffled(SIDES)) gap = Math.max(gap, await stage.tunnels.restart(side));
    return { gap };
  },

  async "failed tunnel restart"({ stage, random }) {
    const gap = stopwatch();
    await stage.tunnels.failRestart(random.pick(SIDES));
    return { gap: gap() };
  },

  async "tunnel crash"({ stage, random }) {
    const side = random.pick(SIDES);
    if (random.chance(0.5)) {
      // What the one before still carries must not be cut.
      await stage.tunnels.restart(side);
      await stage.churn(CHURN_BEFORE_CRASH);
    }
    return stage.tunnels.crash(side);
  },
};

/** Long connections that a new tunnel gets before it is killed. */
const CHURN_BEFORE_CRASH = 20;

function otherThan(build: Build): Build {
  return build === "own" ? "wide" : "own";
}

async function killAndStart(stage: Stage): Promise<Outcome> {
  const before = await stage.contents();
  const gap = stopwatch();
  await stage.killAgent();
  await stage.startAgent();
  const { tables } = await stage.inSync();
  const took = gap();
  const now = await stage.contents();
  const written = [
    ...[...before.difference(now)].map((line) => `- ${line}`),
    ...[...now.difference(before)].map((line) => `+ ${line}`),
  ];
  return { gap: took, writes: tables.writes, written };
}

async function change(stage: Stage, random: Random): Promise<void> {
  stage.plan.change(random);
  await stage.push();
}

function stopwatch(): () => number {
  const began = performance.now();
  return () => performance.now() - began;
}
