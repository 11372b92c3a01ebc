/** The mesh that the connections run over: services of every kind, each with a pool of endpoints of its own. */
import { BALANCES, type DemoMesh, type DemoService } from "../../src/demo/services.ts";
import type { Random } from "../../test/lab/random.ts";
import { AdmissionPlan, MACHINE } from "./admission-plan.ts";

const POOL = 6;
const PORT = 80;
export const ENDPOINT_PORT = 9000;
/** The addresses of the peers' machine: a block of 16 bits. */
export const PEERS = "172.30";

export interface Endpoint {
  index: number;
  service: number;
  address: string;
  port: number;
  subset: "v1" | "v2";
}

interface Shape {
  name: string;
  families: readonly (4 | 6)[];
  protocol: "tcp" | "http";
  balance: (typeof BALANCES)[number];
  split: boolean;
  /** Endpoints that it may have; 0: its connections are refused. */
  pool: number;
  /** Nobody listens at its endpoints. */
  dead: boolean;
  /** Its endpoints are on the peers' machine and demand mutual TLS. */
  mtls?: "istio" | "hbone";
  /** Its endpoints are somebody else than istiod says: the tunnel must refuse them. */
  impostor: boolean;
}

const shape = (name: string, more: Partial<Shape>): Shape => ({
  name,
  families: [4],
  protocol: "tcp",
  balance: "round-robin",
  split: false,
  pool: POOL,
  dead: false,
  impostor: false,
  ...more,
});

const SHAPES: readonly Shape[] = [
  ...BALANCES.map((balance) => shape(balance, { balance })),
  shape("http", { protocol: "http" }),
  shape("split", { split: true }),
  shape("six", { families: [6] }),
  shape("six-least", { families: [6], balance: "least-request" }),
  shape("dual", { families: [4, 6] }),
  shape("closed", { pool: 0 }),
  shape("dead", { pool: 1, dead: true }),
  shape("sidecar", { mtls: "istio" }),
  shape("hbone", { mtls: "hbone", balance: "round-robin" }),
  shape("impostor", { pool: 1, mtls: "istio", impostor: true }),
];

/** Of the connections, to each: services that answer, those that do not, and no service, to compare with. */
const SHARE = { service: 8, unanswered: 1, direct: 8 };

export class Plan {
  /** Who the peers are, and who istiod says that the impostors are. */
  readonly #identities: { peer: string; other: string };
  readonly endpoints: readonly Endpoint[];
  /** Who may connect to the machine. */
  readonly admission = new AdmissionPlan();
  /** By service, the endpoints that it is to have. */
  readonly #sets: number[][];
  readonly #weights: number[];

  /** `identities`: SPIFFE ids. */
  constructor(identities: { peer: string; other: string }) {
    this.#identities = identities;
    const endpoints: Endpoint[] = [];
    SHAPES.forEach(({ families, pool, mtls }, service) => {
      for (let i = 0; i < pool; i++) {
        const family = families[i % families.length];
        endpoints.push({
          index: endpoints.length,
          service,
          address:
            family === 6
              ? `fd00:31::${service + 1}:${i + 1}`
              : `${mtls ? PEERS : "127.1"}.${service + 1}.${i + 1}`,
          port: ENDPOINT_PORT,
          subset: i < pool / 2 ? "v1" : "v2",
        });
      }
    });
    this.endpoints = endpoints;
    this.#sets = SHAPES.map((_, service) => this.#poolOf(service).map(({ index }) => index));
    this.#weights = SHAPES.map(() => 50);
  }

  /** Names as the kernel's counters have them. */
  get services(): readonly string[] {
    return SHAPES.map(({ name }) => `${hostOf(name)}:${PORT}`);
  }

  set(service: number): readonly number[] {
    return this.#sets[service] ?? [];
  }

  /** The share of the connections to its service that the cluster of a subset is to get, percent. */
  weightOf(cluster: string): number {
    const [, , subset, host] = cluster.split("|");
    const weight = this.#weights[SHAPES.findIndex(({ name }) => hostOf(name) === host)] ?? 0;
    return subset === "v1" ? weight : 100 - weight;
  }

  /** Whether connections to it are to be refused by the kernel. */
  refuses(service: number): boolean {
    return SHAPES[service]?.pool === 0;
  }

  /** Whether connections to it are expected to find no listener. */
  fails(service: number): boolean {
    return SHAPES[service]?.dead ?? false;
  }

  /** Whether connections to it go through the tunnel. */
  tunnelled(service: number): boolean {
    return SHAPES[service]?.mtls !== undefined;
  }

  /** Whether the tunnel is to reset connections to it, since its endpoints are somebody else. */
  impostor(service: number): boolean {
    return SHAPES[service]?.impostor ?? false;
  }

  /** Gives one to three services other endpoints, and one port of the machine other policies; gives these services. */
  change(random: Random): number[] {
    this.admission.change(random);
    const open = SHAPES.flatMap(({ pool, dead, impostor }, service) =>
      pool > 0 && !dead && !impostor ? [service] : [],
    );
    const changed = random.shuffled(open).slice(0, 1 + random.below(3));
    for (const service of changed) {
      this.#sets[service] = this.#otherSet(service, random);
      this.#weights[service] = random.pick([10, 50, 90]);
    }
    return changed;
  }

  mesh(): DemoMesh {
    return {
      services: SHAPES.map((_, service) => this.#service(service)),
      inbound: this.admission.inbound(),
      machine: MACHINE,
    };
  }

  /** The same, but istiod says that the impostors are right. */
  meshWithImpostors(): DemoMesh {
    const right = (service: DemoService) =>
      service.mtls ? { ...service, sans: [this.#identities.peer] } : service;
    const mesh = this.mesh();
    return { ...mesh, services: mesh.services.map(right) };
  }

  /** `SERVICE,ADDRESS,PORT,SHARE` for ends.c: what is reached in plaintext, or what goes through the tunnel. */
  targets(by: "plaintext" | "tunnel"): string[] {
    const services = SHAPES.flatMap(({ pool, dead, families, impostor }, service) => {
      if (this.tunnelled(service) !== (by === "tunnel")) return [];
      const share = pool === 0 || dead || impostor ? SHARE.unanswered : SHARE.service / families.length;
      return families.map((family) => `${service},${vip(service, family)},${PORT},${share}`);
    });
    const first = this.endpoints[0];
    return by === "tunnel" ? services : [...services, `-1,${first?.address},${first?.port},${SHARE.direct}`];
  }

  /** `NAME:TYPE=ADDRESS` for test/names/resolver.py: each service's name by each family, and one reverse name. */
  lookups(): string[] {
    const forward = SHAPES.flatMap(({ name, families }, service) =>
      ([4, 6] as const).map((family) => {
        const address = families.includes(family) ? vip(service, family) : "";
        return `${hostOf(name)}:${family === 6 ? "AAAA" : "A"}=${address}`;
      }),
    );
    const reverse = vip(0, 4).split(".").reverse().join(".");
    return [...forward, `${reverse}.in-addr.arpa:PTR=${hostOf(SHAPES[0]?.name ?? "")}`];
  }

  /** `INDEX,ADDRESS,PORT` for ends.c: here, or on the peers' machine. */
  listeners(where: "here" | "peers"): string[] {
    return this.endpoints
      .filter(({ service }) => !this.fails(service) && this.tunnelled(service) === (where === "peers"))
      .map(({ index, address, port }) => `${index},${address},${port}`);
  }

  #poolOf(service: number): Endpoint[] {
    return this.endpoints.filter((endpoint) => endpoint.service === service);
  }

  /** Two to five endpoints, other than now; a family or subset that the service has is never without one. */
  #otherSet(service: number, random: Random): number[] {
    const pool = this.#poolOf(service);
    const now = String(this.#sets[service]);
    for (;;) {
      const chosen = random.shuffled(pool).slice(0, 2 + random.below(4));
      const indexes = chosen.map(({ index }) => index).sort((a, b) => a - b);
      const kinds = (of: Endpoint[]) =>
        new Set(
          of.map(({ address, subset }) => `${address.includes(":")} ${SHAPES[service]?.split && subset}`),
        ).size;
      if (String(indexes) !== now && kinds(chosen) === kinds(pool)) return indexes;
    }
  }

  #service(service: number): DemoService {
    const { name, families, protocol, balance, split, mtls, impostor } = SHAPES[service] ?? shape("", {});
    const { peer, other } = this.#identities;
    const weight = this.#weights[service] ?? 50;
    return {
      host: hostOf(name),
      addresses: families.map((family) => vip(service, family)),
      port: PORT,
      protocol,
      balance,
      endpoints: this.set(service).flatMap((index) => {
        const endpoint = this.endpoints[index];
        if (!endpoint) return [];
        const { address, port, subset } = endpoint;
        return [{ address, port, ...(split && { subset }) }];
      }),
      ...(split && { split: { v1: weight, v2: 100 - weight } }),
      ...(mtls && { mtls, sans: [impostor ? other : peer] }),
    };
  }
}

export function hostOf(name: string): string {
  return `${name}.continuity.internal`;
}

function vip(service: number, family: 4 | 6): string {
  return family === 6 ? `fd00:96::${service + 1}` : `10.96.1.${service + 1}`;
}
