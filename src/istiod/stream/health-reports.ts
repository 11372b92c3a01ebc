import type { discovery } from "../discovery.gen.js";
import type { Connection } from "./connection.ts";
import { askAll, formatHealth } from "./request.ts";

/** The application's health: `message` says why not, "" when it is healthy. */
export interface Health {
  healthy: boolean;
  message: string;
}

/** How long istiod has to answer the question below, and until it is put again, milliseconds. */
const PATIENCE = 10_000;
const AGAIN = 2_000;

export interface HealthReportsOptions {
  node: discovery.Node.$Properties;
  /** istiod does not take reports; told once for each connection. */
  refused(reason: string): void;
}

/**
 * Tells istiod the application's health: at once when it changes, and again on each connection.
 *
 * An istiod that reads its configuration from files takes no reports, and dies of one (it dereferences a nil
 * controller). So each connection's istiod is tried out first: on a second stream of that connection a node refers to
 * a WorkloadEntry that does not exist. The part of istiod that would take the report answers that the entry is not
 * found (Istio 1.19 and newer); where that part is missing, or older, the node is served.
 */
export class HealthReports {
  readonly #question: Uint8Array;
  readonly #absent: string;
  readonly #refused: (reason: string) => void;
  #health: Health | undefined;
  #connection: Connection | undefined;
  /** The connection whose istiod is being tried out, or was. */
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

  /** From now on the application is like this. */
  tell(health: Health): void {
    this.#health = health;
    if (this.#taken) this.#send();
    else if (this.#connection) void this.#tryOut(this.#connection);
  }

  /** istiod has answered on this connection: what comes next is not its first message. */
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

  get reported(): { healthy: boolean; at: number } | undefined {
    return this.#reported;
  }

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
    this.#reason = `istiod did not say whether it takes health reports (${heard?.details ?? "no answer"}); it is asked again`;
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

/** The same machine, as if it belonged to the WorkloadEntry `name`. It registers nothing. */
function strangerOf(node: discovery.Node.$Properties, name: string): discovery.Node.$Properties {
  const { AUTO_REGISTER_GROUP: _, ...fields } = node.metadata?.fields ?? {};
  return { ...node, metadata: { fields: { ...fields, WORKLOAD_ENTRY: { stringValue: name } } } };
}
