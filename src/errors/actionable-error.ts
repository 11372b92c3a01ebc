/**
 * An error that a user can act on. `message` says what is wrong; `next` is the sentence that says what to do, "" when
 * there is nothing to do. Each subclass stands for one exit code.
 */
export class ActionableError extends Error {
  readonly next: string;

  constructor(message: string, next: string) {
    super(message);
    this.name = new.target.name;
    this.next = next;
  }
}

/** The message, with the next step on a line of its own. */
export function withNextStep({ message, next }: ActionableError): string {
  return next === "" ? message : `${message}\n  ${next}`;
}
