/** What each event does. Connections go on meanwhile. */

import { sleep } from "../../test/lab/process.ts";
import { Random } from "../../test/lab/random.ts";
import type { EventKind, ScheduledEvent } from "./schedule.ts";
import type { Stage } from "./stage.ts";

export interface Outcome {
  /** How long nobody could have changed what the kernel does, without what the event itself prescribes, ms. */
  gap: number;
  /** Of a start after which nothing had changed: map writes that it took all the same. */
  writes?: number;
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

/** Plays an event. Resolves when the agent is in sync again; rejects when it does not come to that. */
export function play(stage: Stage, event: ScheduledEvent, pace: Pace): Promise<Outcome> {
  return PLAYS[event.kind]({ stage, random: new Random(event.seed), pace });
}

const PLAYS: Record<EventKind, (scene: Scene) => Promise<Outcome>> = {
  async kill({ stage }) {
    const gap = stopwatch();
    await stage.killAgent();
    await stage.startAgent();
    const { tables } = await stage.inSync();
    return { gap: gap(), writes: tables.writes };
  },

  async "other version"({ stage }) {
    stage.install(stage.installed === "own" ? "wide" : "own");
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
      const gap = stopwatch();
      await stage.killAgent();
      await stage.startAgent();
      const { tables } = await stage.inSync();
      return { gap: gap(), writes: tables.writes };
    } finally {
      stage.freeDisk();
    }
  },

  async "state lost"({ stage }) {
    stage.loseState();
    const gap = stopwatch();
    await stage.killAgent();
    await stage.startAgent();
    const { tables } = await stage.inSync();
    return { gap: gap(), writes: tables.writes };
  },
};

async function change(stage: Stage, random: Random): Promise<void> {
  stage.plan.change(random);
  await stage.push();
}

function stopwatch(): () => number {
  const began = performance.now();
  return () => performance.now() - began;
}
