/** What `kmesh restart`, `upgrade` and `rollback` ask of the agent. */
import { BadRequest, Conflict } from "../admin/server.ts";

export interface RestartRequest {
  kind: "restart" | "upgrade" | "rollback";
  /** By a successor that takes over when it is ready; otherwise the agent executes itself anew. */
  graceful: boolean;
  /** What is to run from then on; what runs now when absent. */
  executable?: string;
  /** Milliseconds, for all of it. */
  timeout: number;
  /** When it was asked, milliseconds since the epoch. */
  asked: number;
}

/** An agent that was stopped meanwhile must not do what nobody waits for any more, milliseconds. */
const STALE = 10_000;
const LONGEST = 3_600_000;

/** Throws BadRequest for what is no order, and Conflict for one that is too old. */
export function readRestartRequest(body: unknown, now = Date.now()): RestartRequest {
  if (typeof body !== "object" || body === null) throw new BadRequest("an order is an object");
  const { kind, graceful, executable, timeout, asked } = body as Partial<
    Record<keyof RestartRequest, unknown>
  >;
  if (kind !== "restart" && kind !== "upgrade" && kind !== "rollback")
    throw new BadRequest(`"${kind}" is neither restart nor upgrade nor rollback`);
  if (typeof graceful !== "boolean") throw new BadRequest("graceful is missing");
  if (executable !== undefined && (typeof executable !== "string" || !executable.startsWith("/")))
    throw new BadRequest("executable is no absolute path");
  if (typeof timeout !== "number" || !(timeout > 0 && timeout <= LONGEST))
    throw new BadRequest("timeout is not a number of milliseconds up to an hour");
  if (typeof asked !== "number" || Math.abs(now - asked) > STALE)
    throw new Conflict(
      "the agent got to it too late, or the clock was set meanwhile: nothing was done, ask again",
    );
  return { kind, graceful, timeout, asked, ...(executable === undefined ? {} : { executable }) };
}
