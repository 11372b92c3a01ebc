/** When a certificate is renewed, and the clock skew that its times show. All times in milliseconds. */

/** The validity period of a certificate, in milliseconds since the epoch. */
export interface Lifetime {
  notBefore: number;
  notAfter: number;
}

/**
 * Renewal is due at half of the lifetime, plus or minus this part of it, so that machines that joined together spread
 * out.
 */
const JITTER = 0.01;
/** A new certificate is kept for at least this part of its lifetime, even when our clock says that it is old. */
const SHORTEST = 0.02;
/** istiod sets notBefore so far into the past, for clocks that are a little slow. */
const DATED_BACK = 120_000;
/** A smaller skew is not reported. */
const TOLERANCE = 300_000;

/** The time of the renewal, milliseconds since the epoch. `random` gives 0 to 1. */
export function renewalOf(life: Lifetime, random: () => number = Math.random): number {
  return life.notBefore + (life.notAfter - life.notBefore) * (0.5 + (random() * 2 - 1) * JITTER);
}

/** The shortest time before a certificate that was just received is renewed, milliseconds, whatever our clock says. */
export function shortestPause(life: Lifetime): number {
  return (life.notAfter - life.notBefore) * SHORTEST;
}

/**
 * How far our clock is ahead (positive) of or behind (negative) the signer's clock, judged by a certificate that was
 * just received; 0 when the difference is within the tolerance. A signer that does not backdate notBefore seems two
 * minutes fast, which is within the tolerance.
 */
export function skewOf(life: Lifetime, received: number): number {
  const skew = received - (life.notBefore + DATED_BACK);
  if (received < life.notBefore || received >= life.notAfter) return skew;
  return Math.abs(skew) > TOLERANCE ? skew : 0;
}

/** Formats a duration in milliseconds: "3 min", "2 h", "12 d". */
export function span(milliseconds: number): string {
  const minutes = Math.abs(milliseconds) / 60_000;
  if (minutes < 1) return `${Math.round(minutes * 60)} s`;
  if (minutes < 120) return `${Math.round(minutes)} min`;
  return minutes < 2 * 24 * 60 ? `${Math.round(minutes / 60)} h` : `${Math.round(minutes / 1440)} d`;
}
