/** Compares how the tunnel can be reached with what istiod was told. */
import { isSameReach, type TunnelReach, UNREACHED } from "../../istiod/node.ts";

/** Time between two checks, milliseconds. */
const INTERVAL = 2_000;
/** Equal checks in a row until a way counts as there, and as gone: a tunnel without systemd closes its sockets when it restarts. */
const CHECKS = { there: 2, gone: 8 };

/** The use of the tunnel: whether connections of apps go through it, and how peers reach this machine. */
export interface TunnelUse {
  outbound: boolean;
  reach: TunnelReach;
}

/** No tunnel. */
export const NO_USE: TunnelUse = { outbound: false, reach: UNREACHED };

export class ReachWatch {
  readonly #told: TunnelUse;
  readonly #read: () => TunnelUse;
  readonly #changed: (now: TunnelUse) => void;
  readonly #timer: ReturnType<typeof setInterval>;
  #last: TunnelUse;
  #count = 0;

  /** Calls `changed` once, when `read` differs from `told` in enough checks in a row. */
  constructor(
    told: TunnelUse,
    read: () => TunnelUse,
    changed: (now: TunnelUse) => void,
    interval: number = INTERVAL,
  ) {
    this.#told = told;
    this.#read = read;
    this.#changed = changed;
    this.#last = told;
    this.#timer = setInterval(() => this.#check(), interval);
    this.#timer.unref();
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  #check(): void {
    const now = this.#read();
    this.#count = isSameUse(now, this.#last) ? this.#count + 1 : 1;
    this.#last = now;
    if (isSameUse(now, this.#told)) return;
    if (this.#count < (losesAWay(this.#told, now) ? CHECKS.gone : CHECKS.there)) return;
    this.stop();
    this.#changed(now);
  }
}

/** Whether istiod was told of a way that is not there any more. */
export function losesAWay(told: TunnelUse, now: TunnelUse): boolean {
  const { hbone, mtls } = now.reach;
  return (told.outbound && !now.outbound) || (told.reach.hbone && !hbone) || (told.reach.mtls && !mtls);
}

/** For a log line. */
export function formatUse({ outbound, reach: { hbone, mtls } }: TunnelUse): string {
  const ways = [
    ...(outbound ? ["connections of apps"] : []),
    ...(mtls ? ["mTLS of peers"] : []),
    ...(hbone ? ["HBONE of peers"] : []),
  ];
  return ways.join(", ") || "nothing";
}

function isSameUse(one: TunnelUse, other: TunnelUse): boolean {
  return one.outbound === other.outbound && isSameReach(one.reach, other.reach);
}
