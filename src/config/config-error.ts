/** A wrong flag, variable or key. The message names it and where it came from; `next` is what to do. */
import { ActionableError } from "../errors/actionable-error.ts";
export class ConfigError extends ActionableError {}
