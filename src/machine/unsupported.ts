/** This machine, or this user, can't. `next` is what would help. */
import { ActionableError } from "../errors/actionable-error.ts";
export class Unsupported extends ActionableError {}

/** Throws Unsupported unless this is root. `what` is what root is needed for. */
export function requireRoot(what: string): void {
  if (process.getuid?.() === 0) return;
  throw new Unsupported(`${what} needs root`, "Run it as root, or with sudo.");
}
