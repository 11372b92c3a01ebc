/**
 * The last hour of each edge, in steps of ten seconds. Six minutes without traffic take no memory. At most 500 edges have a
 * history; if all are busy and healthy, their values take about 7 MB. Beyond them, an edge that is used gets the place of one
 * that was not used for an hour.
 */
import { addCounters, type Counters, ENDS, liveOf, noCounters, subtractCounters } from "./counters/rows.ts";
import { CHUNK_STEPS, Chunk } from "./history-chunk.ts";

/** Seconds. */
export const STEP = 10;
const CHUNKS = 10;
export const HISTORY_SECONDS = STEP * CHUNK_STEPS * CHUNKS;
export const MOST_EDGES = 500;

/** The values of a step, in this order. */
export const FIELDS = 7 + ENDS.length + 2;
const AT = { opened: 0, sent: 1, received: 2, retransmits: 3, rttUs: 4, rtts: 5, live: 6, ends: 7 } as const;
const FAILED_MS = AT.ends + ENDS.length;
const DURATION_S = FAILED_MS + 1;

export interface Track {
  /** The totals of the last step. */
  before: Counters;
  /** Chunks by their number since the epoch, at most CHUNKS + 1. */
  chunks: Map<number, Chunk>;
}

export interface Series {
  /** Date.now() at the end of the last step. */
  at: number;
  opened: number[];
  failed: number[];
  sent: number[];
  received: number[];
  retransmits: number[];
  live: number[];
  rtt: number[];
}

export class History {
  readonly #tracks = new Map<string, Track>();
  /** Edges of the last sample that have no track, with the sum of their counters. */
  #untracked = new Map<string, number>();
  /** False after a restart, until the next sample, if edges without a track are not in the file. */
  #knowsAll = true;
  /** Steps since the epoch of the last sample. */
  #last = 0;
  /** The time of the first sample. */
  #first = 0;

  /** Adds the present totals, each under its edge's id. Asks only for those that have a history. `now` as Date.now(). */
  record(totals: Pick<ReadonlyMap<string, Counters>, "keys" | "get">, now: number): void {
    const step = Math.floor(now / 1000 / STEP);
    // The clock was set back: discard samples from the future.
    if (step < this.#last) this.#restart(step);
    const isFirst = this.#first === 0;
    if (isFirst) this.#first = step;
    this.#last = step;
    // Whether all tracks are known to be in use: thousands of edges beyond the room must not look again, each.
    let isFull = false;
    const untracked = new Map<string, number>();
    for (const id of totals.keys()) {
      let track = this.#tracks.get(id);
      const counters = totals.get(id);
      if (!counters) continue;
      if (!track) {
        const sum = sumOf(counters);
        const earlier = untracked.get(id) ?? this.#untracked.get(id);
        if (!isFull && earlier !== sum)
          isFull = this.#tracks.size >= MOST_EDGES && !this.#forgetIdle(step, untracked);
        if (isFull || earlier === sum) {
          untracked.set(id, sum);
          continue;
        }
        // Counts from before the first sample did not happen now, nor did those of an edge that had no track.
        const isOld = isFirst || earlier !== undefined || !this.#knowsAll;
        untracked.delete(id);
        track = { before: isOld ? copyOf(counters) : noCounters(), chunks: new Map() };
        this.#tracks.set(id, track);
      }
      const change = subtractCounters(counters, track.before);
      track.before = copyOf(counters);
      if (isNothing(change) && liveOf(counters) === 0) continue;
      addTo(track, step, change, liveOf(counters));
    }
    this.#untracked = untracked;
    this.#knowsAll = true;
    const oldest = Math.floor(step / CHUNK_STEPS) - CHUNKS;
    for (const { chunks } of this.#tracks.values())
      for (const chunk of chunks.keys()) if (chunk < oldest) chunks.delete(chunk);
  }

  /** The covered time, seconds. */
  covered(now: number): number {
    if (this.#first === 0) return 0;
    return Math.min(HISTORY_SECONDS, Math.max(0, now / 1000 - this.#first * STEP));
  }

  /** The counts of the last `seconds` (to the nearest step) until the totals `now`. */
  recent(id: string, totals: Counters, seconds: number, now: number): Counters {
    const track = this.#tracks.get(id);
    if (!track) return this.#isNew(id) ? copyOf(totals) : noCounters();
    const sum = noCounters();
    this.#sum(track, now / 1000 / STEP - seconds / STEP, now / 1000 / STEP, sum);
    const open = subtractCounters(totals, track.before);
    addCounters(sum, open);
    return sum;
  }

  /** The counts before the last `seconds`, for comparison. */
  earlier(id: string, seconds: number, now: number): Counters {
    const sum = noCounters();
    const track = this.#tracks.get(id);
    if (track) this.#sum(track, 0, now / 1000 / STEP - seconds / STEP, sum);
    return sum;
  }

  /** How many edges, of those with these ids, have no history since others take the room. */
  withoutRoom(ids: Iterable<string>): number {
    let count = 0;
    for (const id of ids) if (this.#untracked.has(id)) count++;
    return count;
  }

  /** Until the last sample. `totals` of an edge that is new since then count to the last step; undefined for one without history. */
  series(id: string, now: number, totals?: Counters): Series | undefined {
    let track = this.#tracks.get(id);
    if (!track && totals && this.#isNew(id)) {
      track = { before: noCounters(), chunks: new Map() };
      addTo(track, this.#last, totals, liveOf(totals));
    }
    if (!track) return undefined;
    const steps = Math.ceil(this.covered(now) / STEP);
    const end = this.#last + 1;
    const series: Series = {
      at: end * STEP * 1000,
      opened: [],
      failed: [],
      sent: [],
      received: [],
      retransmits: [],
      live: [],
      rtt: [],
    };
    for (let step = end - Math.max(1, steps); step < end; step++) {
      const chunk = track.chunks.get(Math.floor(step / CHUNK_STEPS));
      const value = (field: number) => chunk?.get(step % CHUNK_STEPS, field) ?? 0;
      const ends = ENDS.map((_, i) => value(AT.ends + i));
      series.opened.push(value(AT.opened));
      series.failed.push((ends[1] ?? 0) + (ends[2] ?? 0) + (ends[3] ?? 0) + (ends[4] ?? 0));
      series.sent.push(value(AT.sent));
      series.received.push(value(AT.received));
      series.retransmits.push(value(AT.retransmits));
      series.live.push(value(AT.live));
      series.rtt.push(value(AT.rtts) > 0 ? value(AT.rttUs) / value(AT.rtts) : 0);
    }
    return series;
  }

  /** For a file: numbers of the first and the last step, and what is known of each edge, which stays the history's. */
  get first(): number {
    return this.#first;
  }

  get last(): number {
    return this.#last;
  }

  get tracks(): ReadonlyMap<string, Track> {
    return this.#tracks;
  }

  /** From a file; takes over the tracks, MOST_EDGES at most. What is no number of a step is 0. */
  static of(
    { first, last }: { first?: unknown; last?: unknown },
    tracks: ReadonlyMap<string, Track>,
  ): History {
    const history = new History();
    for (const [id, track] of tracks) {
      if (history.#tracks.size >= MOST_EDGES) break;
      history.#tracks.set(id, track);
    }
    history.#knowsAll = history.#tracks.size < MOST_EDGES;
    history.#first = Number(first) || 0;
    history.#last = Number(last) || 0;
    return history;
  }

  /** Whether the edge came since the last sample. Before the first one this is unknown. */
  #isNew(id: string): boolean {
    return this.#first > 0 && this.#knowsAll && !this.#untracked.has(id);
  }

  #restart(step: number): void {
    for (const track of this.#tracks.values()) track.chunks.clear();
    this.#first = step;
  }

  #sum(track: Track, from: number, to: number, sum: Counters): void {
    for (const [number, chunk] of track.chunks) {
      // A step that has begun counts whole.
      const first = Math.floor(from) - number * CHUNK_STEPS;
      const last = Math.floor(to) - number * CHUNK_STEPS;
      const value = (field: number) => chunk.sum(field, first, last);
      sum.opened += value(AT.opened);
      sum.sent += value(AT.sent);
      sum.received += value(AT.received);
      sum.retransmits += value(AT.retransmits);
      sum.rttUs += value(AT.rttUs);
      sum.rtts += value(AT.rtts);
      sum.failedNs += value(FAILED_MS) * 1e6;
      sum.durationNs += value(DURATION_S) * 1e9;
      for (let e = 0; e < ENDS.length; e++) sum.ends[e] = (sum.ends[e] ?? 0) + value(AT.ends + e);
    }
  }

  /** Makes room for another edge, and adds the one that loses its track to `untracked`. Gives whether there is room. */
  #forgetIdle(step: number, untracked: Map<string, number>): boolean {
    const oldest = Math.floor(step / CHUNK_STEPS) - CHUNKS;
    for (const [id, { before, chunks }] of this.#tracks) {
      if ([...chunks.keys()].some((chunk) => chunk >= oldest)) continue;
      this.#tracks.delete(id);
      untracked.set(id, sumOf(before));
      return true;
    }
    return false;
  }
}

function addTo({ chunks }: Track, step: number, change: Counters, live: number): void {
  const number = Math.floor(step / CHUNK_STEPS);
  const chunk = chunks.get(number) ?? chunks.get(number - 1)?.next() ?? new Chunk();
  chunks.set(number, chunk);
  const at = step % CHUNK_STEPS;
  const add = (field: number, value: number) => chunk.add(at, field, value);
  add(AT.opened, change.opened);
  add(AT.sent, change.sent);
  add(AT.received, change.received);
  add(AT.retransmits, change.retransmits);
  add(AT.rttUs, change.rttUs);
  add(AT.rtts, change.rtts);
  chunk.set(at, AT.live, live);
  change.ends.forEach((count, i) => {
    add(AT.ends + i, count);
  });
  add(FAILED_MS, change.failedNs / 1e6);
  add(DURATION_S, change.durationNs / 1e9);
}

/** Differs whenever one of them does: counters only grow. */
function sumOf({ opened, ends, sent, received, retransmits }: Counters): number {
  return ends.reduce((sum, count) => sum + count, opened + sent + received + retransmits);
}

function isNothing({ opened, ends, sent, received, retransmits }: Counters): boolean {
  return opened + sent + received + retransmits === 0 && ends.every((count) => count === 0);
}

function copyOf(counters: Counters): Counters {
  return { ...counters, ends: [...counters.ends] };
}
