/**
 * The embedded control plane: a real delta-ADS server over gRPC, fed by a list of services. It behaves towards a
 * sidecar as istiod does: whole types at once, endpoints and routes by name, empty resource versions, a push in
 * the order clusters, endpoints, listeners, routes, names under one version, no patience for acknowledgements.
 */

import { readFileSync } from "node:fs";
import { Server, ServerCredentials, type ServerDuplexStream, status } from "@grpc/grpc-js";
import { reasonOf } from "../errors/reason.ts";
import { discovery } from "../istiod/discovery.gen.js";
import type { ResourceType } from "../istiod/stream/sink.ts";
import { isWildcard, typeOfUrl } from "../istiod/stream/types.ts";
import { type Encoded, encodeEntry, encodeResponse } from "./encoding.ts";
import { noEndpoints, type Resources, resourcesOf } from "./resources.ts";
import { type DemoMesh, parseDemoMesh } from "./services.ts";

const PATH = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/** Interval of the check of a watched file, milliseconds. */
const WATCH = 100;
/** Most unsent bytes for a client. */
const FLOW_WINDOW = 8 << 20;

/** The order of types in a push, as istiod's. */
const ORDER: readonly ResourceType[] = [
  "cluster",
  "endpoints",
  "listener",
  "route",
  "address",
  "authorization",
  "names",
];

type Call = ServerDuplexStream<Buffer, Buffer>;

/** A client's answer to a push. */
export interface Answer {
  node: string;
  type: ResourceType;
  /** Absent for an ACK. */
  error?: string;
}

export class ControlPlane {
  readonly #server: Server;
  readonly #clients = new Set<ClientStream>();
  readonly #heard: ((answer: Answer) => void) | undefined;
  #mesh: DemoMesh = { services: [] };
  #resources: Resources = resourcesOf(this.#mesh);
  /** Whether a client has subscribed to services and workloads. */
  #workloads = false;
  #pushes = 0;
  #port = 0;

  private constructor(heard: ((answer: Answer) => void) | undefined) {
    this.#heard = heard;
    this.#server = new Server({
      "grpc.max_receive_message_length": -1,
      "grpc.max_send_message_length": -1,
      "grpc-node.flow_control_window": FLOW_WINDOW,
    });
    this.#server.addService(
      {
        DeltaAggregatedResources: {
          path: PATH,
          requestStream: true,
          responseStream: true,
          requestSerialize: (value: Buffer) => value,
          requestDeserialize: (bytes: Buffer) => bytes,
          responseSerialize: (value: Buffer) => value,
          responseDeserialize: (bytes: Buffer) => bytes,
        },
      },
      { DeltaAggregatedResources: (call: Call) => this.#accept(call) },
    );
  }

  /**
   * Serves `mesh` in plaintext on `host:port` (port 0: any free one). `heard` is called with every ACK and NACK. Rejects
   * when the address can't be bound.
   */
  static async start(
    mesh: DemoMesh,
    options: { port?: number; host?: string; heard?: (answer: Answer) => void } = {},
  ): Promise<ControlPlane> {
    const { port = 0, host = "127.0.0.1", heard } = options;
    const plane = new ControlPlane(heard);
    plane.set(mesh);
    plane.#port = await new Promise<number>((resolve, reject) =>
      plane.#server.bindAsync(`${host}:${port}`, ServerCredentials.createInsecure(), (error, bound) =>
        error ? reject(error) : resolve(bound),
      ),
    );
    return plane;
  }

  get port(): number {
    return this.#port;
  }

  /** The number of connected clients. */
  get clients(): number {
    return this.#clients.size;
  }

  /** The version of the last push. */
  get version(): string {
    return `demo/${this.#pushes}`;
  }

  /** Replaces the whole mesh and sends the difference as one push. Returns its version. */
  set(mesh: DemoMesh): string {
    const before = this.#resources;
    this.#mesh = mesh;
    this.#resources = resourcesOf(mesh, before, this.#workloads);
    this.#pushes++;
    const differences = ORDER.map((type) => differenceOf(type, before[type], this.#resources[type]));
    for (const client of this.#clients) client.push(this.version, differences);
    return this.version;
  }

  /** Closes every stream and the port. */
  stop(): void {
    this.#server.forceShutdown();
  }

  #of(type: ResourceType): Resources[ResourceType] {
    if ((type === "address" || type === "authorization") && !this.#workloads) {
      this.#workloads = true;
      this.#resources = resourcesOf(this.#mesh, this.#resources, true);
    }
    return this.#resources[type];
  }

  #accept(call: Call): void {
    const client = new ClientStream(call, {
      resources: (type) => this.#of(type),
      version: () => this.version,
      heard: (answer) => this.#heard?.(answer),
    });
    this.#clients.add(client);
    const gone = () => this.#clients.delete(client);
    call.on("end", () => {
      gone();
      call.end();
    });
    call.on("cancelled", gone);
    call.on("error", gone);
    call.on("close", gone);
  }
}

/**
 * Serves the services of a YAML file (services.ts) and pushes its changes. An invalid file changes nothing and is reported
 * on standard error. Rejects when the first reading fails or the port is taken.
 */
export async function serveFile(file: string, port: number, host?: string): Promise<ControlPlane> {
  let seen = readFileSync(file, "utf8");
  const plane = await ControlPlane.start(parseDemoMesh(seen), { port, ...(host !== undefined && { host }) });
  let complaint = "";
  // Compare the content: the times of the file would miss a change before the first check.
  const watch = setInterval(() => {
    try {
      const text = readFileSync(file, "utf8");
      if (text === seen) return;
      seen = text;
      plane.set(parseDemoMesh(text));
      complaint = "";
    } catch (error) {
      const told = `${file} is not applied: ${reasonOf(error)}`;
      if (told !== complaint) console.error(told);
      complaint = told;
    }
  }, WATCH);
  watch.unref();
  const stop = plane.stop.bind(plane);
  plane.stop = () => {
    clearInterval(watch);
    stop();
  };
  return plane;
}

/** The changes of one type in a push. */
interface Difference {
  type: ResourceType;
  changed: Map<string, Encoded>;
  removed: string[];
}

function differenceOf(
  type: ResourceType,
  before: ReadonlyMap<string, Encoded>,
  after: ReadonlyMap<string, Encoded>,
): Difference {
  const changed = new Map<string, Encoded>();
  for (const [name, encoded] of after) if (before.get(name) !== encoded) changed.set(name, encoded);
  const removed = [...before.keys()].filter((name) => !after.has(name));
  return { type, changed, removed };
}

/** Types that change when endpoints do. */
const ENDPOINTS: ReadonlySet<ResourceType> = new Set(["endpoints", "address"]);
/** Types that istiod omits from a push when nothing changed. */
const SILENT: ReadonlySet<ResourceType> = new Set(["names", "address", "authorization"]);

const isEmpty = ({ changed, removed }: Difference) => changed.size === 0 && removed.length === 0;

interface Source {
  resources(type: ResourceType): Resources[ResourceType];
  version(): string;
  heard(answer: Answer): void;
}

/** One client and its subscriptions. */
class ClientStream {
  readonly #call: Call;
  readonly #source: Source;
  /** The subscribed names of each subscribed type. */
  readonly #watched = new Map<ResourceType, Set<string>>();
  #node = "";
  #nonce = 0;

  constructor(call: Call, source: Source) {
    this.#call = call;
    this.#source = source;
    call.on("data", (bytes: Buffer) => this.#handle(bytes));
  }

  /** Sends a push: endpoints only, or every subscribed type, changed or not, so that the client sees its end. */
  push(version: string, differences: readonly Difference[]): void {
    const endpointsOnly = differences.every(
      (difference) => ENDPOINTS.has(difference.type) || isEmpty(difference),
    );
    for (const difference of differences) {
      const { type, changed, removed } = difference;
      const watched = this.#watched.get(type);
      if (!watched || ((endpointsOnly || SILENT.has(type)) && isEmpty(difference))) continue;
      if (isWildcard(type)) {
        this.#send(type, version, entriesOf(changed.values()), removed);
        continue;
      }
      const entries = entriesOf(
        [...changed].filter(([name]) => watched.has(name)).map(([, encoded]) => encoded),
      );
      // istiod never removes endpoints; an unknown cluster has an empty list.
      if (type === "endpoints") {
        for (const name of removed) if (watched.has(name)) entries.push(emptyEntry(name));
        if (entries.length > 0) this.#send(type, version, entries, []);
      } else
        this.#send(
          type,
          version,
          entries,
          removed.filter((name) => watched.has(name)),
        );
    }
  }

  #handle(bytes: Buffer): void {
    let request: discovery.DeltaDiscoveryRequest;
    try {
      request = discovery.DeltaDiscoveryRequest.decode(bytes);
    } catch (error) {
      this.#refuse(status.INVALID_ARGUMENT, `not a request: ${reasonOf(error)}`);
      return;
    }
    if (this.#node === "") {
      this.#node = request.node?.id ?? "";
      if (this.#node === "") {
        this.#refuse(status.INVALID_ARGUMENT, "missing node information");
        return;
      }
    }
    const type = typeOfUrl(request.typeUrl);
    if (type === undefined) return;
    if (request.responseNonce !== "") {
      const error = request.errorDetail?.message;
      this.#source.heard({ node: this.#node, type, ...(error != null && { error }) });
      return;
    }
    this.#subscribe(type, request);
  }

  #subscribe(type: ResourceType, request: discovery.DeltaDiscoveryRequest): void {
    const all = this.#source.resources(type);
    const version = this.#source.version();
    const known = this.#watched.get(type);
    const watched = known ?? new Set();
    this.#watched.set(type, watched);
    if (isWildcard(type)) {
      if (known) return;
      const held = request.initialResourceVersions;
      const gone = Object.keys(held).filter((name) => !all.has(name));
      const fresh = [...all].filter(([name, each]) => each.version === "" || held[name] !== each.version);
      this.#send(
        type,
        version,
        fresh.map(([, { entry }]) => entry),
        gone,
      );
      return;
    }
    for (const name of request.resourceNamesUnsubscribe) watched.delete(name);
    const names = request.resourceNamesSubscribe;
    if (names.length === 0) return;
    const entries: Uint8Array[] = [];
    const missing: string[] = [];
    for (const name of names) {
      watched.add(name);
      const encoded = all.get(name);
      if (encoded) entries.push(encoded.entry);
      else if (type === "endpoints") entries.push(emptyEntry(name));
      else missing.push(name);
    }
    this.#send(type, version, entries, missing);
  }

  #send(
    type: ResourceType,
    version: string,
    entries: readonly Uint8Array[],
    removed: readonly string[],
  ): void {
    this.#call.write(encodeResponse(type, version, `${version}-${++this.#nonce}`, entries, removed));
  }

  #refuse(code: status, details: string): void {
    this.#call.emit("error", { code, details });
  }
}

const entriesOf = (resources: Iterable<Encoded>) => Array.from(resources, ({ entry }) => entry);
const emptyEntry = (name: string) => encodeEntry("endpoints", name, noEndpoints(name));
