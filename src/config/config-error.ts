/** A wrong flag, variable or key. The message names it and where it came from; `next` is what to do. */
import { ActionableError } from "../errors/actionable-error.ts";
export class ConfigError extends ActionableError {}

/** Something that the configuration needs is not there: it may be made later, in the boot or by an operator. */
export class NotThereYet extends ConfigError {
  /** What is to appear or to change. */
  readonly path: string;
  constructor(message: string, next: string, path: string) {
    super(message, next);
    this.path = path;
  }
}
