/** This machine, or this user, can't. `next` is what would help. */
export class Unsupported extends Error {
  readonly next: string;
  constructor(message: string, next: string) {
    super(message);
    this.name = "Unsupported";
    this.next = next;
  }
}

/** Throws Unsupported unless this is root. `what` is what root is needed for. */
export function requireRoot(what: string): void {
  if (process.getuid?.() === 0) return;
  throw new Unsupported(`${what} needs root`, "Run it as root, or with sudo.");
}
