/**
 * Computes the slots of a run, so that walking it, or hashing into it, gives every member its weight. All functions are
 * deterministic: the same members give the same slots on every machine.
 */

/** The members of a run; ids and weights are parallel. */
export interface Members {
  /** Endpoint ids or cluster ids. */
  ids: Uint32Array;
  /** Positive. */
  weights: readonly number[];
  /** The hash keys of the members, which are stable when ids change. */
  nameOf(i: number): string;
}

/** Most slots of a run, unless it has more members. The error of a share is at most 1 / 8192. */
const MAX_SLOTS = 4096;
const SLOTS_PER_MEMBER = 8;
/** Size limits of hash tables: Maglev's paper asks for a table much larger than the number of members. */
const HASH_SLOTS_PER_MEMBER = 32;
const DEFAULT_MAGLEV_SIZE = 65537;
const DEFAULT_RING_SIZE = 1024;

/**
 * Every member in proportion to its weight, spread evenly (earliest deadline first): 80/20 is A A B A A. Integer weights
 * are exact if their sum, without common divisors, fits.
 */
export function smoothOrder({ ids, weights }: Members): Uint32Array {
  if (weights.every((weight) => weight === weights[0])) return ids;
  const turns = quantise(weights);
  const deadlines: { at: number; id: number }[] = [];
  ids.forEach((id, i) => {
    const count = turns[i] ?? 0;
    for (let turn = 0; turn < count; turn++) deadlines.push({ at: (turn + 0.5) / count, id });
  });
  deadlines.sort((a, b) => a.at - b.at);
  return Uint32Array.from(deadlines, ({ id }) => id);
}

/** Turns in proportion to the weights; every member has at least one. */
function quantise(weights: readonly number[]): number[] {
  const limit = Math.max(MAX_SLOTS, weights.length * SLOTS_PER_MEMBER);
  const sum = sumOf(weights);
  if (weights.every(Number.isInteger)) {
    const divisor = weights.reduce(gcd, 0);
    if (sum / divisor <= limit) return weights.map((weight) => weight / divisor);
  }
  return weights.map((weight) => Math.max(1, Math.round((weight * limit) / sum)));
}

function sumOf(weights: readonly number[]): number {
  return weights.reduce((sum, weight) => sum + weight, 0);
}

function gcd(a: number, b: number): number {
  return b === 0 ? a : gcd(b, a % b);
}

/**
 * A Maglev look-up table (Eisenbud et al., NSDI 2016, 3.4) with weights: a member that comes or goes moves few others.
 * `size` is the configured table size, 0 for Envoy's default; the table is scaled down to its members.
 */
export function maglevTable({ ids, weights, nameOf }: Members, size: number): Uint32Array {
  if (ids.length === 0) return ids;
  const slots = primeAtLeast(
    Math.min(size || DEFAULT_MAGLEV_SIZE, ids.length * HASH_SLOTS_PER_MEMBER + 1, DEFAULT_MAGLEV_SIZE),
  );
  const heaviest = Math.max(...weights);
  const cursors = weights.map((weight, i) => ({
    id: ids[i] ?? 0,
    weight,
    offset: hashText(nameOf(i), 1) % slots,
    skip: (hashText(nameOf(i), 2) % (slots - 1)) + 1,
    next: 0,
    credit: 0,
  }));
  const table = new Uint32Array(slots);
  const taken = new Uint8Array(slots);
  for (let filled = 0; filled < slots; ) {
    for (const cursor of cursors) {
      cursor.credit += cursor.weight / heaviest;
      if (cursor.credit < 1 || filled === slots) continue;
      cursor.credit -= 1;
      let place = (cursor.offset + cursor.next * cursor.skip) % slots;
      while (taken[place]) place = (cursor.offset + ++cursor.next * cursor.skip) % slots;
      cursor.next++;
      taken[place] = 1;
      table[place] = cursor.id;
      filled++;
    }
  }
  return table;
}

/**
 * A ketama ring, sampled at even distances so that the kernel needs one look-up instead of a search.
 * `size` is the configured minimum ring size, 0 for Envoy's default of 1024.
 */
export function ringTable({ ids, weights, nameOf }: Members, size: number): Uint32Array {
  if (ids.length === 0) return ids;
  const slots = Math.max(
    Math.min(size || DEFAULT_RING_SIZE, DEFAULT_MAGLEV_SIZE - 1),
    Math.min(ids.length * HASH_SLOTS_PER_MEMBER, DEFAULT_MAGLEV_SIZE - 1),
  );
  const sum = sumOf(weights);
  const points: { at: number; id: number }[] = [];
  weights.forEach((weight, i) => {
    const share = Math.max(1, Math.round((slots * weight) / sum));
    for (let turn = 0; turn < share; turn++)
      points.push({ at: hashText(`${nameOf(i)}_${turn}`, 0), id: ids[i] ?? 0 });
  });
  points.sort((a, b) => a.at - b.at || a.id - b.id);
  const table = new Uint32Array(slots);
  let next = 0;
  for (let slot = 0; slot < slots; slot++) {
    const at = (slot / slots) * 2 ** 32;
    while (next < points.length && (points[next]?.at ?? 0) < at) next++;
    table[slot] = (points[next % points.length] ?? points[0])?.id ?? 0;
  }
  return table;
}

/** FNV-1a with an avalanche at its end (murmur3's finaliser), 32 bits. */
function hashText(text: string, seed: number): number {
  let hash = 0x811c9dc5 ^ seed;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}

function primeAtLeast(floor: number): number {
  for (let candidate = Math.max(3, floor | 1); ; candidate += 2) if (isPrime(candidate)) return candidate;
}

function isPrime(odd: number): boolean {
  for (let divisor = 3; divisor * divisor <= odd; divisor += 2) if (odd % divisor === 0) return false;
  return true;
}
