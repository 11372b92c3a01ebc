/**
 * Notifies the service manager (sd_notify(3)): ready, reloading, stopping, a line of status, and the watchdog. Does nothing
 * without NOTIFY_SOCKET. A message that can't be sent is logged and never stops the agent.
 */
import { reasonOf } from "../errors/reason.ts";
import { sendDatagram } from "../kernel/net/datagram.ts";

export class ServiceNotifier {
  readonly #socket: string | undefined;
  /** Interval of watchdog messages, milliseconds; undefined without a watchdog. */
  readonly watchdogEvery: number | undefined;
  readonly #warn: (line: string) => void;
  #watchdog: ReturnType<typeof setInterval> | undefined;
  #status = "";
  #complained = false;

  /** From NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, as the service manager sets them. */
  constructor(env: Readonly<Record<string, string | undefined>>, warn: (line: string) => void) {
    this.#warn = warn;
    const socket = env.NOTIFY_SOCKET ?? "";
    this.#socket = /^[/@]./.test(socket) ? socket : undefined;
    if (socket !== "" && this.#socket === undefined)
      warn(`NOTIFY_SOCKET is ${socket}: only unix sockets are known, the service manager hears nothing`);
    const period = Number(env.WATCHDOG_USEC ?? "") / 1000;
    const meant = env.WATCHDOG_PID === undefined || Number(env.WATCHDOG_PID) === process.pid;
    // Half the timeout, as sd_watchdog_enabled(3) recommends.
    if (this.#socket !== undefined && meant && period > 0) this.watchdogEvery = period / 2;
  }

  /** Whether a service manager listens. */
  get active(): boolean {
    return this.#socket !== undefined;
  }

  /** The start is complete. From now on watchdog messages are sent; they stop when the event loop is stuck. */
  ready(status: string): void {
    this.#send("READY=1", `STATUS=${oneLine(status)}`);
    this.#status = status;
    if (this.watchdogEvery === undefined || this.#watchdog !== undefined) return;
    this.#send("WATCHDOG=1");
    this.#watchdog = setInterval(() => this.#send("WATCHDOG=1"), this.watchdogEvery);
    this.#watchdog.unref();
  }

  /** The line that `systemctl status` shows; sent when it has changed. */
  status(text: string): void {
    if (text === this.#status) return;
    this.#status = text;
    this.#send(`STATUS=${oneLine(text)}`);
  }

  /** Must be followed by `ready`. */
  reloading(): void {
    this.#send("RELOADING=1");
  }

  /**
   * Makes another process the main process of the service: systemd accepts only its messages from then on. That process
   * must have been reparented before, or a stop would not wait for it.
   */
  succeeded(pid: number): void {
    this.#endWatch();
    this.#send(`MAINPID=${pid}`);
  }

  stopping(): void {
    this.#endWatch();
    this.#send("STOPPING=1", "STATUS=Ending; what the kernel holds stays");
  }

  #endWatch(): void {
    clearInterval(this.#watchdog);
    this.#watchdog = undefined;
  }

  #send(...lines: string[]): void {
    if (this.#socket === undefined) return;
    try {
      sendDatagram(this.#socket, lines.join("\n"));
      this.#complained = false;
    } catch (error) {
      if (!this.#complained) this.#warn(`The service manager can't be told ${lines[0]}: ${reasonOf(error)}`);
      this.#complained = true;
    }
  }
}

function oneLine(text: string): string {
  return text.replace(/\s*\n\s*/g, " ");
}
