/** When a certificate is renewed, and what its times say about our clock. All times in milliseconds. */

/** From when to when a certificate is valid, since the epoch. */
export interface Lifetime {
  notBefore: number;
  notAfter: number;
}

/** Renewal is due at half of the life, give or take this part of it: machines that joined together spread out. */
const JITTER = 0.01;
/** A new certificate is not renewed sooner than after this part of its life, whatever our clock says. */
const SHORTEST = 0.02;
/** istiod dates certificates back by so much, for clocks that are a little slow. */
const DATED_BACK = 120_000;
/** A clock that is off by less is nobody's concern. */
const TOLERANCE = 300_000;

/** The moment of renewal; `random` gives 0 to 1. */
export function renewalOf(life: Lifetime, random: () => number = Math.random): number {
  return life.notBefore + (life.notAfter - life.notBefore) * (0.5 + (random() * 2 - 1) * JITTER);
}

/** How long a certificate that was just received is kept at least, though our clock may say that it is old. */
export function shortestPause(life: Lifetime): number {
  return (life.notAfter - life.notBefore) * SHORTEST;
}

/**
 * How far our clock is ahead (positive) or behind (negative) of that of whoever signed a certificate that was just
 * received; 0 when it is right, as far as its times can tell. A signer that does not date back looks two minutes
 * fast, which is within the tolerance.
 */
export function skewOf(life: Lifetime, received: number): number {
  const skew = received - (life.notBefore + DATED_BACK);
  if (received < life.notBefore || received >= life.notAfter) return skew;
  return Math.abs(skew) > TOLERANCE ? skew : 0;
}

/** A length of time in words: "3 min", "2 h", "12 d". */
export function span(milliseconds: number): string {
  const minutes = Math.abs(milliseconds) / 60_000;
  if (minutes < 1) return `${Math.round(minutes * 60)} s`;
  if (minutes < 120) return `${Math.round(minutes)} min`;
  return minutes < 2 * 24 * 60 ? `${Math.round(minutes / 60)} h` : `${Math.round(minutes / 1440)} d`;
}
