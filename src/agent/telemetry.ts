/** The agent's telemetry: counting while it has the tables, the answers about it, metrics and the access log. */

import { isDeepStrictEqual } from "node:util";
import { type MetricsAnswers, MetricsServer } from "../admin/metrics-server.ts";
import { BadRequest } from "../admin/server.ts";
import type { Config } from "../config/config.ts";
import type { Log } from "../config/log.ts";
import type { Datapath } from "../datapath/datapath.ts";
import { reasonOf } from "../errors/reason.ts";
import { RefusalFollower, readRefusals } from "../inbound/refusals.ts";
import type { Json } from "../istiod/node.ts";
import { formatSpiffe } from "../istiod/spiffe.ts";
import { monotonic } from "../kernel/clock.ts";
import { ownWorkload } from "../machine/workload.ts";
import type { Mesh } from "../mesh/model.ts";
import type { WorkloadIndex } from "../mesh/workload.ts";
import { version } from "../runtime/version.ts";
import { AccessLog } from "../telemetry/access-log/access-log.ts";
import type { LogRecord } from "../telemetry/access-log/record.ts";
import { MOST_EDGES } from "../telemetry/history.ts";
import { chooseFormat } from "../telemetry/metrics/exposition.ts";
import type { SelfLabels } from "../telemetry/metrics/istio-labels.ts";
import { istioFamilies } from "../telemetry/metrics/istio-metrics.ts";
import { type AgentNumbers, kmeshFamilies } from "../telemetry/metrics/kmesh-metrics.ts";
import { Scrape } from "../telemetry/metrics/scrape.ts";
import { Tally } from "../telemetry/metrics/tally.ts";
import { tunnelFamilies } from "../telemetry/metrics/tunnel-metrics.ts";
import type { EdgeHistory, EdgesDocument, Machine } from "../telemetry/model.ts";
import { withRefusedPeers } from "../telemetry/refused-peers.ts";
import { ServiceStates } from "../telemetry/service-states.ts";
import { Traffic } from "../telemetry/traffic.ts";
import type { TunnelStatus } from "../tunnel/process/status-file.ts";

/** Seconds of a document when nobody says how many. */
const WINDOW = 300;
const ANOTHER_AGENT = "another agent has the tables";

export interface TelemetryOptions {
  config: Config;
  /** The machine's own. */
  addresses: string[];
  host: string;
  workloads: WorkloadIndex;
  log: Log;
  mesh(): Mesh | undefined;
  numbers(): Omit<AgentNumbers, "version">;
  /** The status of each tunnel process that lives. */
  tunnels(): TunnelStatus[];
  /** Undefined when all is well, else a sentence that says what is not. */
  unready(): string | undefined;
}

export class Telemetry {
  readonly #options: TelemetryOptions;
  readonly #machine: Machine;
  readonly #self: SelfLabels;
  readonly #states: ServiceStates;
  #config: Config;
  #traffic: Traffic | undefined;
  #tally: Tally | undefined;
  /** The last one, which may still use the tally. */
  #scrape: Scrape | undefined;
  #accessLog: AccessLog | undefined;
  #server: MetricsServer | undefined;
  #retry: ReturnType<typeof setTimeout> | undefined;
  #stopped = false;

  constructor(options: TelemetryOptions) {
    this.#options = options;
    this.#config = options.config;
    const { config, addresses, host } = options;
    const { labels } = config;
    const own = ownWorkload(config, host);
    const { workload, namespace, cluster } = own;
    this.#machine = { host, workload, namespace, cluster, addresses };
    this.#self = {
      ...own,
      app: labels.app ?? "",
      version: labels.version ?? "",
      principal: formatSpiffe(config),
    };
    this.#states = new ServiceStates(options.mesh, addresses);
  }

  /** The tables are this agent's from now on. Never throws: connections are more than their numbers. */
  open(datapath: Datapath): void {
    const { workloads, log } = this.#options;
    const config = this.#config;
    try {
      this.#traffic = new Traffic({
        tables: datapath.tables,
        workloads,
        machine: this.#machine,
        counts: config.traffic,
        ports: portsOf(config.ports),
        stateDir: config.stateDir,
        service: (name) => this.#states.of(name, datapath.tables, Number(monotonic())),
        tunnels: this.#options.tunnels,
        attached: () => datapath.attached,
        warn: (line) => log.warn(line),
      });
      this.#tally = new Tally({
        labels: this.#traffic.labels,
        sources: this.#traffic.sources,
        self: this.#self,
        inbound: (port) => this.#states.inbound(port),
      });
      this.#accessLog = new AccessLog({
        map: datapath.tables.maps.traffic_log,
        traffic: this.#traffic,
        ...(config.accessLog ? { config: config.accessLog } : {}),
        refusals: new RefusalFollower(config.bpffs),
        warn: (line) => log.warn(line),
      });
    } catch (error) {
      log.error(`connections are not counted: ${reasonOf(error)}`);
      this.close();
      // The kernel may count on for an earlier agent: ids that nobody retires must not get another meaning.
      datapath.tables.mayReuse = () => false;
    }
  }

  /** Another agent is about to have them. The kernel counts on. */
  close(): void {
    this.#scrape?.stop(new Error(ANOTHER_AGENT));
    this.#accessLog?.close();
    this.#traffic?.close();
    this.#scrape = undefined;
    this.#accessLog = undefined;
    this.#traffic = undefined;
    this.#tally = undefined;
  }

  /** Answers scrapers over TCP, when the configuration names an address. A taken one is tried again. */
  serve(): void {
    const { metrics } = this.#config;
    if (!metrics || this.#server || this.#stopped) return;
    MetricsServer.listen(metrics.host, metrics.port, this.#answers).then(
      (server) => {
        // The setting may have changed meanwhile.
        if (this.#stopped || this.#server || this.#config.metrics !== metrics) server.close();
        else this.#server = server;
      },
      (error) => {
        if (this.#stopped || this.#config.metrics !== metrics) return;
        if (!this.#retry)
          this.#options.log.warn(`metrics are not served: ${reasonOf(error)}. The next tries are silent`);
        this.#retry = setTimeout(() => this.serve(), 2_000);
      },
    );
  }

  /** Does by these settings from now on what changes while connections go on: traffic, metrics and the access log. */
  configure(config: Config): void {
    const before = this.#config;
    this.#config = config;
    if (config.traffic !== before.traffic) this.#traffic?.count(config.traffic);
    if (!isDeepStrictEqual(config.accessLog, before.accessLog)) this.#accessLog?.configure(config.accessLog);
    if (isDeepStrictEqual(config.metrics, before.metrics)) return;
    clearTimeout(this.#retry);
    this.#retry = undefined;
    this.#server?.close();
    this.#server = undefined;
    this.serve();
  }

  /** Ends the process's part. */
  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#retry);
    this.#server?.close();
    this.#server = undefined;
  }

  /** `window` in seconds as text, or nothing. Throws BadRequest, and Error while another agent has the tables. */
  document(window: string | null): EdgesDocument {
    const seconds = window === null ? WINDOW : Number(window);
    if (!Number.isFinite(seconds) || seconds <= 0) throw new BadRequest("window is a number of seconds");
    const traffic = this.#open;
    const refused = readRefusals(this.#config.bpffs)?.recent ?? [];
    return withRefusedPeers(traffic.document(seconds), refused, (address) => traffic.labels.caller(address));
  }

  /** Throws BadRequest for an edge that has none, and KernelError. */
  history(edge: string | null): EdgeHistory {
    const found = this.#open.history(edge ?? "");
    if (found === "unknown") throw new BadRequest(`there is no edge ${edge ?? ""}: GET /edges lists them`);
    if (found === "no-room")
      throw new BadRequest(`there is no history of the edge ${edge ?? ""}: ${MOST_EDGES} others have one`);
    return found;
  }

  /** Follows connections as they end. Gives how to stop. */
  follow(listener: (record: LogRecord) => void): () => void {
    if (!this.#accessLog) throw new Error(ANOTHER_AGENT);
    return this.#accessLog.follow(listener);
  }

  /** All numbers are of one moment; the parts are as Scrape.parts gives them. Throws KernelError. */
  metrics(accept: string | undefined): { type: string; parts: Iterable<Uint8Array> } {
    const type = chooseFormat(accept);
    const traffic = this.#open;
    const tally = this.#tally;
    if (!tally) throw new Error(ANOTHER_AGENT);
    this.#scrape?.finish();
    const scrape = new Scrape({
      tally,
      revision: () => traffic.labels.revision,
      read: () => traffic.readRows(),
      families: (rows) => [
        ...istioFamilies(tally, version),
        ...kmeshFamilies(tally, rows, traffic.counting, { version, ...this.#options.numbers() }),
        ...tunnelFamilies(this.#options.tunnels()),
      ],
    });
    this.#scrape = scrape;
    return { type, parts: scrape.parts(type) };
  }

  get #open(): Traffic {
    if (!this.#traffic) throw new Error(ANOTHER_AGENT);
    return this.#traffic;
  }

  get #answers(): MetricsAnswers {
    return {
      metrics: (accept) => this.metrics(accept),
      unready: () => this.#options.unready(),
    };
  }
}

/** The numbers of a WorkloadGroup's ports: `{name: containerPort}` entries in any of istiod's shapes. */
function portsOf(ports: Config["ports"]): number[] {
  return (ports ?? []).flatMap((port) => {
    if (typeof port !== "object" || port === null || Array.isArray(port)) return [];
    const number = Number((port as { containerPort?: Json }).containerPort);
    return Number.isInteger(number) && number > 0 && number < 65536 ? [number] : [];
  });
}
