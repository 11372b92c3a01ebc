/** What an agent answers: on the admin socket, for root, and on one that only reads, for the group that admin-group names. */
import { explainDestination, explainPeer } from "../admin/explain.ts";
import { type Action, AdminServer, type Answer, BadRequest, TextAnswer } from "../admin/server.ts";
import { type AgentStatus, adminSocket, readerSocket } from "../admin/status.ts";
import { type Config, LOG_LEVELS, type LogLevel } from "../config/config.ts";
import { ConfigError } from "../config/config-error.ts";
import type { LevelledLog } from "../config/log.ts";
import { settingValues } from "../config/values.ts";
import { damageAt } from "../datapath/inspect/damage.ts";
import { inspectPinned, summarizePinned } from "../datapath/inspect/inspect.ts";
import { reasonOf } from "../errors/reason.ts";
import { type RestartRequest, readRestartRequest } from "../handover/restart-request.ts";
import { viewInbound } from "../inbound/view.ts";
import { groupNumber, keepGroupsOut, letGroupEnter } from "../machine/admin-group.ts";
import { damageOf } from "../machine/damage.ts";
import { Unsupported } from "../machine/unsupported.ts";
import type { SnapshotKeeper } from "../state/snapshot-writer.ts";
import { PAGE_FOLDER, PAGE_HEADERS, PAGE_PATHS, pageFile } from "../topology/page-files.ts";
import type { ControlPlane } from "./control-plane.ts";
import type { LiveTables } from "./live-tables.ts";
import type { Ownership } from "./ownership.ts";
import type { Telemetry } from "./telemetry.ts";

export interface SocketsOptions {
  config(): Config;
  log: LevelledLog;
  ownership: Ownership;
  tables: LiveTables;
  controlPlane: ControlPlane;
  telemetry: Telemetry;
  snapshots: SnapshotKeeper;
  status(): AgentStatus;
  /** The reason, in one sentence, why istiod's configuration does not govern connections. */
  unready(): string | undefined;
  restart(request: RestartRequest, answer: (line: unknown) => void): Promise<void>;
  /** Returns the log line. Throws Conflict and ConfigError, and then nothing was changed. */
  reload(): string;
}

/** Owns both servers. */
export class Sockets {
  readonly #options: SocketsOptions;
  #admin: AdminServer | undefined;
  /** Absent without admin-group. */
  #reader: AdminServer | undefined;

  constructor(options: SocketsOptions) {
    this.#options = options;
  }

  /** Whether clients that open the admin socket's path get here. */
  get reachable(): boolean {
    return this.#admin?.reachable ?? false;
  }

  /** Listens. Rejects when the admin socket can't be made. */
  async serve(): Promise<void> {
    const { runDir } = this.#options.config();
    const answers = this.#answers();
    this.#admin = await AdminServer.listen(adminSocket(runDir), answers, this.#actions());
    this.#options.telemetry.serve();
    await this.#serveReaders(answers);
  }

  close(): void {
    this.#admin?.close();
    this.#reader?.close();
  }

  /** Closes when the requests in progress are answered. */
  async finish(): Promise<void> {
    await Promise.all([this.#admin?.finish(), this.#reader?.finish()]);
  }

  #answers(): Record<string, Answer> {
    const { config, ownership, tables, controlPlane, telemetry, snapshots, log } = this.#options;
    const { bpffs } = config();
    return {
      "/agent": () => this.#options.status(),
      "/config": () => settingValues(config()),
      "/status": () => ({
        agent: this.#options.status(),
        kernel: ownership.datapath?.summarize() ?? summarizePinned(bpffs),
        inbound: viewInbound(bpffs),
        damage: damageOf(
          config(),
          snapshots.trouble,
          () => ownership.datapath?.damage() ?? damageAt(bpffs),
          config(),
        ),
      }),
      "/dump/received": () => controlPlane.received(),
      "/dump/model": () => tables.mesh ?? null,
      "/dump/tables": () => ownership.datapath?.inspect() ?? inspectPinned(bpffs),
      "/explain/inbound": (query: URLSearchParams) =>
        explainPeer(config(), query.get("from") ?? "", query.get("to") ?? ""),
      "/explain": (query: URLSearchParams) =>
        explainDestination(bpffs, query.get("target") ?? "", tables.mesh),
      "/edges": (query: URLSearchParams) => telemetry.document(query.get("window")),
      "/edges/history": (query: URLSearchParams) => telemetry.history(query.get("edge")),
      ...this.#pageAnswers(),
      "/metrics": (_: URLSearchParams, accept?: string) => {
        const { type, parts } = telemetry.metrics(accept);
        return new TextAnswer(
          type,
          Array.from(parts, (part) => part.slice()),
        );
      },
      "/healthz": () => ({ ok: true }),
      "/readyz": () => {
        const reason = this.#options.unready();
        return new TextAnswer(
          "application/json",
          [Buffer.from(JSON.stringify({ ok: reason === undefined, reason }))],
          reason === undefined ? 200 : 503,
        );
      },
      "/log-level": () => ({ level: log.logLevel, configured: config().logLevel }),
    };
  }

  #actions(): Record<string, Action> {
    const { restart } = this.#options;
    return {
      "/restart": (body, answer) => restart(readRestartRequest(body), answer),
      "/reload": async (_, answer) => answer({ reloaded: this.#reloadByOrder() }),
      "/log": (_, answer, closed) => this.#followLog(answer, closed),
      "/log-level": async (body, answer) => answer({ level: this.#setLogLevel(body) }),
    };
  }

  /** Serves the page of `kmesh topology --open` and its data. */
  #pageAnswers(): Record<string, Answer> {
    const { telemetry } = this.#options;
    const files = PAGE_PATHS.map((path): [string, Answer] => [
      PAGE_FOLDER + path,
      () => {
        const file = pageFile(path);
        return new TextAnswer(file?.type ?? "", [file?.body ?? Buffer.alloc(0)], 200, PAGE_HEADERS);
      },
    ]);
    return {
      ...Object.fromEntries(files),
      [`${PAGE_FOLDER}edges`]: (query) => telemetry.document(query.get("window")),
      [`${PAGE_FOLDER}edges/history`]: (query) => telemetry.history(query.get("edge")),
    };
  }

  /** Streams the access log until the client disconnects. */
  #followLog(answer: (line: unknown) => void, closed: Promise<void>): Promise<void> {
    const stop = this.#options.telemetry.follow(answer);
    return closed.finally(stop);
  }

  /** Serves the read-only socket. A missing group does not stop the agent. */
  async #serveReaders(answers: Record<string, Answer>): Promise<void> {
    const { runDir, adminGroup } = this.#options.config();
    this.#reader?.close();
    this.#reader = undefined;
    try {
      if (adminGroup === undefined) return keepGroupsOut(runDir, readerSocket(runDir));
      const group = groupNumber(adminGroup);
      this.#reader = await AdminServer.listen(readerSocket(runDir), answers, {}, group);
      letGroupEnter(runDir, group);
    } catch (error) {
      const next = error instanceof Unsupported ? `. ${error.next}` : "";
      this.#options.log.warn(`Only root can look at this agent: ${reasonOf(error)}${next}`);
    }
  }

  /** Sets the log level until the next start. Returns the level; throws BadRequest. */
  #setLogLevel(body: unknown): LogLevel {
    const asked = typeof body === "object" && body !== null && "level" in body ? body.level : undefined;
    const level = LOG_LEVELS.find((each) => each === asked);
    if (level === undefined) throw new BadRequest(`a level is one of ${LOG_LEVELS.join(", ")}`);
    const { log } = this.#options;
    const before = log.logLevel;
    // Logged at the more verbose of the two levels, so that the journal shows where the details begin and end.
    if (LOG_LEVELS.indexOf(level) > LOG_LEVELS.indexOf(before)) log.logLevel = level;
    log.info(`The log level is ${level} now, instead of ${before}; a restart takes the configured one`);
    log.logLevel = level;
    return level;
  }

  #reloadByOrder(): string {
    try {
      return this.#options.reload();
    } catch (error) {
      throw error instanceof ConfigError ? new BadRequest(`${error.message}. ${error.next}`) : error;
    }
  }
}
