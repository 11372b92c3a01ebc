/** Exit codes. Scripts depend on them: never renumber. */
import { ActionableError } from "../../errors/actionable-error.ts";
export const EXIT = {
  done: 0,
  failed: 1,
  /** A flag, argument, variable or key of the configuration is wrong. */
  usage: 2,
  /** No agent runs. `kmesh status` printed the state in the kernel; other commands need an agent, or pinned tables. */
  agentNotRunning: 3,
  /** The user or the machine can't do it: not root, or a kernel feature is missing. */
  unsupported: 4,
  /** Another agent holds these folders. */
  alreadyRunning: 5,
  /** A restart, upgrade or rollback failed. The previous agent continues, and connections stay governed. */
  notHandedOver: 6,
  /** Another restart, upgrade or rollback is under way. */
  busy: 7,
  /** `kmesh wait`: no connection is governed yet. */
  notGoverned: 8,
  /** Another version left state that this version does not know. Nothing was changed. */
  unknownState: 9,
  /** `kmesh status`: something is damaged; the output says how to repair it. With or without an agent. */
  damaged: 10,
  /** `kmesh run` as a service: something that the configuration needs is missing; systemd tries again. */
  notThereYet: 11,
} as const;

/** For --help and the README. */
export const EXIT_CODES: readonly [number, string][] = [
  [EXIT.done, "success"],
  [EXIT.failed, "failed"],
  [EXIT.usage, "a flag, an argument or the configuration is wrong"],
  [
    EXIT.agentNotRunning,
    "no agent runs: status printed what the kernel holds, other commands need an agent or pinned tables",
  ],
  [EXIT.unsupported, "not root, or the machine lacks a required feature"],
  [EXIT.alreadyRunning, "another agent holds these folders"],
  [EXIT.notHandedOver, "restart, upgrade or rollback failed; the previous agent continues"],
  [EXIT.busy, "another restart, upgrade or rollback is in progress"],
  [EXIT.notGoverned, "kmesh wait: nothing is governed yet"],
  [EXIT.unknownState, "the state of a later version was found; nothing was changed"],
  [EXIT.damaged, "kmesh status: something is damaged; the output has the repair"],
  [EXIT.notThereYet, "kmesh run as a service: something is missing; systemd tries again"],
];

/** Ends a command with `code` and one line; `next` is the next step. */
export class Failure extends ActionableError {
  readonly code: number;
  constructor(code: number, message: string, next = "") {
    super(message, next);
    this.code = code;
  }
}
