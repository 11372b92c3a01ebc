/** The machine or the user can't do it. `next` is the next step. */
import { ActionableError } from "../errors/actionable-error.ts";
export class Unsupported extends ActionableError {}

/** Throws Unsupported unless the user is root. `what` names the operation that needs root. */
export function requireRoot(what: string): void {
  if (process.getuid?.() === 0) return;
  throw new Unsupported(`${what} needs root`, "Run it as root, or with sudo.");
}
