/** The 8-byte target word, which decides a connection (bpf/maps/verdict.h). */
import { REASONS, type Reason } from "../../mesh/model.ts";

export type Action = "absent" | "cluster" | "pass" | "refuse";
const ACTIONS: readonly Action[] = ["absent", "cluster", "pass", "refuse"];

export interface TargetWord {
  action: Action;
  service: number;
  /** A cluster id, or the number of a reason. */
  value: number;
}

export function encodeTarget(action: Action, service: number, value: number): bigint {
  return (BigInt(ACTIONS.indexOf(action)) << 56n) | (BigInt(service & 0xffffff) << 32n) | BigInt(value >>> 0);
}

export function decodeTarget(word: bigint): TargetWord {
  return {
    action: ACTIONS[Number(word >> 56n)] ?? "absent",
    service: Number((word >> 32n) & 0xffffffn),
    value: Number(word & 0xffffffffn),
  };
}

export function reasonNumber(reason: Reason): number {
  return REASONS.indexOf(reason);
}

export function reasonName(number: number): Reason {
  return REASONS[number] ?? "internal";
}
