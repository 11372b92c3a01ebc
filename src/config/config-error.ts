/** A wrong flag, variable or key. The message names it and where it came from; `next` is what to do. */
export class ConfigError extends Error {
  readonly next: string;
  constructor(message: string, next: string) {
    super(message);
    this.name = "ConfigError";
    this.next = next;
  }
}
