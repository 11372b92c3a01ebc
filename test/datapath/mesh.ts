/** Meshes for tests, from a few words. */
import { type Endpoint, EndpointList } from "../../src/mesh/endpoint-list.ts";
import { frontendKey } from "../../src/mesh/frontend.ts";
import {
  type Cluster,
  type Frontend,
  type Locality,
  type Match,
  type Mesh,
  NO_EJECTION,
  type Target,
} from "../../src/mesh/model.ts";

/** `ADDRESS:PORT`, IPv6 in brackets. */
export function endpoint(at: string, more: Partial<Endpoint> = {}): Endpoint {
  const [, address = "", port = ""] = /^\[?(.*?)\]?:(\d+)$/.exec(at) ?? [];
  return { address, port: Number(port), weight: 1, healthy: true, ...more };
}

export function locality(endpoints: Endpoint[], more: Partial<Locality> = {}): Locality {
  return {
    region: "",
    zone: "",
    subzone: "",
    priority: 0,
    weight: 0,
    endpoints: EndpointList.of(endpoints),
    ...more,
  };
}

export function cluster(name: string, endpoints: Endpoint[], more: Partial<Cluster> = {}): Cluster {
  return {
    name,
    service: name,
    kind: "endpoints",
    reason: "none",
    port: 0,
    balance: { policy: "round-robin" },
    localities: [locality(endpoints)],
    localityWeighted: false,
    overprovisioning: 140,
    panicThreshold: 50,
    maxConnections: 0,
    ejection: NO_EJECTION,
    transports: [],
    pending: false,
    ...more,
  };
}

/** Adds a frontend and its service; `match` may be `ADDRESS:PORT`. */
export function addFrontend(mesh: Mesh, match: Match | string, target: Target, service = "svc:80"): string {
  const where: Match =
    typeof match === "string"
      ? { kind: "address", address: endpoint(match).address, port: endpoint(match).port }
      : match;
  const frontend: Frontend = { match: where, protocol: "tcp", service, target };
  mesh.services.set(service, {
    name: service,
    host: service.split(":")[0] ?? "",
    port: where.port,
    notes: [],
  });
  mesh.frontends.set(frontendKey(frontend), frontend);
  return frontendKey(frontend);
}

export function addCluster(
  mesh: Mesh,
  name: string,
  endpoints: Endpoint[],
  more: Partial<Cluster> = {},
): void {
  mesh.clusters.set(name, cluster(name, endpoints, more));
}
