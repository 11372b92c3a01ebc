import type { discovery } from "../discovery.gen.js";
import type { Connection } from "./connection.ts";
import { askAll, formatHealth } from "./request.ts";

/** The application's health. `message` is the reason when it is unhealthy, else "". */
export interface Health {
  healthy: boolean;
  message: string;
}

/** How long to wait for the answer to the probe below, and the pause before the probe is repeated, milliseconds. */
const PATIENCE = 10_000;
const AGAIN = 2_000;

export interface HealthReportsOptions {
  node: discovery.Node.$Properties;
  /** istiod accepts no reports. Called once for each connection. */
  refused(reason: string): void;
}

/**
 * Reports the application's health to istiod: at each change, and again on each connection.
 *
 * An istiod that reads its configuration from files accepts no reports: a report crashes it (it dereferences a nil
 * controller). So kmesh probes the istiod of each connection first. On a second stream of that connection it
 * announces a node that refers to a WorkloadEntry which does not exist. An istiod that would accept reports answers
 * that the entry is not found (Istio 1.19 and newer). An istiod without that controller, or an older one, serves the
 * node.
 */
export class HealthReports {
  readonly #question: Uint8Array;
  readonly #absent: string;
  readonly #refused: (reason: string) => void;
  #health: Health | undefined;
  #connection: Connection | undefined;
  /** The connection that is being probed, or was. */
  #asking: Connection | undefined;
  #taken = false;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #reported: { healthy: boolean; at: number } | undefined;
  #reason: string | undefined;

  constructor(options: HealthReportsOptions) {
    const { node } = options;
    this.#refused = options.refused;
    this.#absent = `kmesh-asks-${Math.floor(Math.random() * 0xffffffff).toString(16)}`;
    this.#question = askAll("cluster", strangerOf(node, this.#absent), new Map());
  }

  /** Sets the application's health and reports it, now or when the connection allows it. */
  tell(health: Health): void {
    this.#health = health;
    if (this.#taken) this.#send();
    else if (this.#connection) void this.#tryOut(this.#connection);
  }

  /**
   * istiod has answered on this connection, so the next message is not its first. Probes it if there is health to
   * report.
   */
  connected(connection: Connection): void {
    this.disconnected();
    this.#connection = connection;
    if (this.#health) void this.#tryOut(connection);
  }

  disconnected(): void {
    clearTimeout(this.#timer);
    this.#connection = undefined;
    this.#taken = false;
    this.#asking = undefined;
  }

  /** The last report, at milliseconds since the epoch; undefined before the first one. */
  get reported(): { healthy: boolean; at: number } | undefined {
    return this.#reported;
  }

  /** Why istiod gets no reports; undefined while it accepts them or none was tried. */
  get notTaken(): string | undefined {
    return this.#reason;
  }

  async #tryOut(connection: Connection): Promise<void> {
    if (this.#asking === connection) return;
    this.#asking = connection;
    const heard = await connection.tryOut(this.#question, PATIENCE);
    if (this.#connection !== connection) return;
    if (heard !== undefined && heard !== "answered" && heard.details.includes(this.#absent)) {
      this.#taken = true;
      this.#reason = undefined;
      this.#send();
      return;
    }
    if (heard === "answered") {
      this.#reason = "this istiod takes no health reports (it reads no WorkloadEntries from Kubernetes)";
      this.#refused(this.#reason);
      return;
    }
    this.#reason = `istiod did not answer whether it accepts health reports (${heard?.details ?? "no answer"}); kmesh asks again`;
    this.#timer = setTimeout(() => {
      this.#asking = undefined;
      void this.#tryOut(connection);
    }, AGAIN);
  }

  #send(): void {
    if (!this.#health) return;
    this.#connection?.send(formatHealth(this.#health));
    this.#reported = { healthy: this.#health.healthy, at: Date.now() };
  }
}

/** The same node with the WorkloadEntry `name` and without a group: it registers nothing. */
function strangerOf(node: discovery.Node.$Properties, name: string): discovery.Node.$Properties {
  const { AUTO_REGISTER_GROUP: _, ...fields } = node.metadata?.fields ?? {};
  return { ...node, metadata: { fields: { ...fields, WORKLOAD_ENTRY: { stringValue: name } } } };
}
