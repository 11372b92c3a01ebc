/** A wrong flag, variable or key. The message names it and its source; `next` is the next step. */
import { ActionableError } from "../errors/actionable-error.ts";
export class ConfigError extends ActionableError {}

/** Something that the configuration needs is missing. It may appear later, during the boot or by an operator. */
export class NotThereYet extends ConfigError {
  /** The missing path. */
  readonly path: string;
  constructor(message: string, next: string, path: string) {
    super(message, next);
    this.path = path;
  }
}
