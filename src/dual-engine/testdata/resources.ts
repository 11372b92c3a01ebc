/** For tests: resources of the workload API in few words, the recordings of a real istiod, and an engine fed with them. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { ResourceType } from "../../istiod/stream/sink.ts";
import { typeOfUrl } from "../../istiod/stream/types.ts";
import { parseAddress } from "../../mesh/address.ts";
import type { Changes, Mesh } from "../../mesh/model.ts";
import { DualEngine, type DualEngineOptions } from "../dual-engine.ts";
import type { Place } from "../records/records.ts";
import { workload } from "../records/workload.gen.js";

/** Where the tests' machine is. */
export const HERE: Place = {
  network: "",
  region: "r1",
  zone: "z1",
  subzone: "s1",
  node: "",
  cluster: "Kubernetes",
};

/** 4 or 16 bytes in network order. */
export function bytesOf(address: string): Uint8Array {
  const bytes = parseAddress(address) ?? new Uint8Array(0);
  return address.includes(":") ? bytes : bytes.slice(12);
}

export interface ServiceSpec extends Omit<workload.Service.$Properties, "addresses" | "ports"> {
  /** ADDRESS or ADDRESS/LENGTH. */
  addresses?: string[];
  network?: string;
  /** Service port to target port; 0 is a named one. */
  ports?: Record<number, number>;
}

/** A Service of `NAME.shop`. Gives name and bytes. */
export function service(name: string, spec: ServiceSpec = {}): [string, Uint8Array] {
  const { addresses = [], ports = { 80: 8080 }, network = "", namespace = "shop", ...rest } = spec;
  const hostname = rest.hostname ?? `${name}.shop`;
  const message: workload.Service.$Properties = {
    name,
    ...rest,
    namespace,
    hostname,
    addresses: addresses.map((text) => {
      const [address = "", length] = text.split("/");
      return { network, address: bytesOf(address), ...(length ? { length: Number(length) } : {}) };
    }),
    ports: Object.entries(ports).map(([port, target]) => ({ servicePort: Number(port), targetPort: target })),
  };
  return [`${namespace}/${hostname}`, workload.Address.encode({ service: message }).finish()];
}

export interface WorkloadSpec
  extends Omit<workload.Workload.$Properties, "addresses" | "services" | "capacity"> {
  addresses?: string[];
  /** By service (resource name), service port to target port. */
  services?: Record<string, Record<number, number>>;
  capacity?: number;
}

/** A Workload of namespace shop; its uid is the name. */
export function pod(uid: string, spec: WorkloadSpec = {}): [string, Uint8Array] {
  const { addresses = [], services = { "shop/a.shop": { 80: 8080 } }, capacity, ...rest } = spec;
  const message: workload.Workload.$Properties = {
    uid,
    name: uid,
    workloadName: uid,
    namespace: "shop",
    ...rest,
    addresses: addresses.map(bytesOf),
    services: Object.fromEntries(
      Object.entries(services).map(([key, ports]) => [
        key,
        {
          ports: Object.entries(ports).map(([port, target]) => ({
            servicePort: Number(port),
            targetPort: target,
          })),
        },
      ]),
    ),
    ...(capacity === undefined ? {} : { capacity: { value: capacity } }),
  };
  return [uid, workload.Address.encode({ workload: message }).finish()];
}

/** An engine, and what it published. */
export class Fixture {
  readonly engine: DualEngine;
  readonly published: Changes[] = [];

  constructor(options: Partial<DualEngineOptions> = {}) {
    this.engine = new DualEngine({
      ...{
        namespace: "shop",
        here: HERE,
        tunnel: true,
        allowPlaintext: false,
        trustDomains: ["cluster.local"],
        self: { addresses: ["10.0.0.9"] },
      },
      lookup: () => Promise.resolve({ addresses: [], ttl: 60 }),
      ...options,
      publish: (mesh, changes) => {
        this.published.push(changes);
        options.publish?.(mesh, changes);
      },
    });
  }

  /** Stores Address resources and commits. */
  push(...resources: [string, Uint8Array][]): this {
    for (const [name, bytes] of resources) this.engine.upsert("address", name, bytes);
    this.engine.commit();
    return this;
  }

  remove(...names: string[]): this {
    for (const name of names) this.engine.remove("address", name);
    this.engine.commit();
    return this;
  }

  get mesh(): Mesh {
    return this.engine.mesh;
  }

  /** `ADDRESS:PORT`, in the order of localities. */
  endpoints(cluster: string): string[] {
    const { localities = [] } = this.mesh.clusters.get(cluster) ?? {};
    return localities.flatMap(({ endpoints }) => endpoints.map(({ address, port }) => `${address}:${port}`));
  }
}

export interface Recorded {
  type: ResourceType;
  name: string;
  bytes: Uint8Array;
}

interface Line {
  type_url: string;
  name: string;
  b64: string;
}

/** A recorded state: rec-authz, rec-strict or rec-waypoint. */
export function recordedState(name: string): Recorded[] {
  return linesOf(name).flatMap((line) => recorded(line as unknown as Line));
}

/** A recorded stream: rec-stream-ztunnel or rec-stream-sidecar, response by response. */
export function recordedStream(
  name: string,
): { version: string; resources: Recorded[]; removed: string[]; type: ResourceType | undefined }[] {
  return linesOf(name).map((line) => ({
    version: String(line.system_version_info ?? ""),
    type: typeOfUrl(String(line.type_url)),
    resources: ((line.resources ?? []) as Line[]).flatMap(recorded),
    removed: (line.removed_resources ?? []) as string[],
  }));
}

function recorded({ type_url, name, b64 }: Line): Recorded[] {
  const type = typeOfUrl(type_url);
  return type === undefined ? [] : [{ type, name, bytes: new Uint8Array(Buffer.from(b64, "base64")) }];
}

function linesOf(name: string): Record<string, unknown>[] {
  const text = readFileSync(join(import.meta.dirname, `${name}.jsonl`), "utf8");
  return text
    .split("\n")
    .filter(Boolean)
    .map((line) => JSON.parse(line));
}
