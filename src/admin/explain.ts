/** Explains where connections to a host or an address would go, by the live tables. */
import { lookup } from "node:dns/promises";
import { type Explanation, explainPinned } from "../datapath/inspect/explain.ts";
import { openPinned } from "../datapath/inspect/inspect.ts";
import { TableView } from "../datapath/inspect/table-view.ts";
import { explainInbound, type InboundExplanation, UnclearPeer } from "../inbound/explain.ts";
import { identityStore } from "../machine/identity-store.ts";
import type { Mesh } from "../mesh/model.ts";
import { type Destination, parseDestination } from "./destination.ts";
import { BadRequest } from "./server.ts";

/** An endpoint as istiod sent it, also one that gets no connections. */
export interface ConfiguredEndpoint {
  address: string;
  port: number;
  weight: number;
  healthy: boolean;
  priority: number;
  locality: string;
}

export interface Explained extends Explanation {
  /** By cluster; only from a running agent. */
  configured?: Record<string, ConfiguredEndpoint[]>;
}

/**
 * Explains `HOST`, `HOST:PORT` or `IP:PORT`, one explanation an address and port that it stands for. A host is looked
 * for among the mesh's services (whole, or its first labels), then by the machine's resolver.
 * `mesh` adds what the tables don't hold: weights, health, priorities, and why a service refuses.
 * Rejects with BadRequest when the text or the host means nothing, with NothingPinned without tables.
 */
export async function explainDestination(bpffs: string, text: string, mesh?: Mesh): Promise<Explained[]> {
  const destination = parseDestination(text);
  if (!destination) throw new BadRequest(`"${text}" is neither HOST[:PORT] nor IP:PORT`);
  const places = await placesOf(bpffs, destination);
  return places.map(({ address, port }) => {
    const explanation = explainPinned(bpffs, address, port);
    const other = explanation.service ? undefined : portsAt(bpffs, address);
    return configured(other ? { ...explanation, why: [...explanation.why, other] } : explanation, mesh);
  });
}

/**
 * Explains whether a peer's connection to a port of this machine is let in; see `explainPeerBy` for the texts. Throws
 * BadRequest when they mean nothing or no policies are pinned, and NothingPinned without tables.
 */
export function explainPeer(
  { bpffs, stateDir }: { bpffs: string; stateDir: string },
  from: string,
  to: string,
): { inbound: InboundExplanation } {
  try {
    const inbound = explainInbound(bpffs, trustDomainOf(stateDir), from, to);
    if (inbound) return { inbound };
    // Throws NothingPinned when nothing else is pinned either.
    openPinned(bpffs).close();
    throw new BadRequest(
      `no inbound policies are pinned in ${bpffs}: istiod has named no service port of this machine, so its ports are not governed`,
    );
  } catch (error) {
    if (error instanceof UnclearPeer) throw new BadRequest(error.message);
    throw error;
  }
}

/** The trust domain of this machine's certificate; undefined when it has none that can be read. */
function trustDomainOf(stateDir: string): string | undefined {
  try {
    return identityStore(stateDir).load()?.id.trustDomain;
  } catch {
    return undefined;
  }
}

function configured(explanation: Explanation, mesh: Mesh | undefined): Explained {
  if (!mesh) return explanation;
  const known = explanation.clusters.map(({ name }): [string, ConfiguredEndpoint[]] => {
    const localities = mesh.clusters.get(name)?.localities ?? [];
    const endpoints = localities.flatMap(({ region, zone, subzone, priority, endpoints }) => {
      const locality = [region, zone, subzone].filter((part) => part !== "").join("/");
      return endpoints.map((endpoint) => ({ ...endpoint, priority, locality }));
    });
    return [name, endpoints];
  });
  const notes = mesh.services.get(explanation.service ?? "")?.notes ?? [];
  // The tables know the kind of refusal alone; the mesh knows what is missing.
  const reasons = explanation.verdict === "refuse" ? notes.filter(({ kind }) => kind === "refused") : [];
  const why = [...explanation.why, ...reasons.map(({ text }) => text)];
  return { ...explanation, why, configured: Object.fromEntries(known) };
}

interface Place {
  address: string;
  port: number;
}

async function placesOf(bpffs: string, destination: Destination): Promise<Place[]> {
  const { host, address, port } = destination;
  if (address !== undefined && port !== undefined) return [{ address, port }];
  const all = frontendsOf(bpffs);
  const sameHost = (each: Frontend) =>
    address === undefined ? isHost(each.host, host) : each.address === address;
  const known = all.filter((each) => (port === undefined || each.port === port) && sameHost(each));
  if (known.length > 0) return known;
  const ports = all.filter(sameHost).map((each) => each.port);
  if (ports.length > 0) throw new BadRequest(noSuchPort(host, port, ports));
  if (port === undefined)
    throw new BadRequest(`the mesh knows no service ${host}: add the port, as in ${host}:80`);
  const found = await lookup(host, { all: true }).catch(() => []);
  if (found.length === 0)
    throw new BadRequest(`${host} is not a service of the mesh, and its name resolves to nothing`);
  return [...new Set(found.map((each) => each.address))].map((each) => ({ address: each, port }));
}

type Frontend = Place & { host: string };

/** The ports that services have at an address, for a message; undefined when there are none. */
function portsAt(bpffs: string, address: string): string | undefined {
  const there = frontendsOf(bpffs).filter((each) => each.address === address);
  if (there.length === 0) return undefined;
  const ports = [...new Set(there.map((each) => each.port))].sort((a, b) => a - b);
  const hosts = [...new Set(there.map((each) => each.host))];
  return `${address} is an address of ${hosts.join(", ")}, which has no such port; it has ${ports.join(", ")}`;
}

/** The message for a known service without that port. */
function noSuchPort(host: string, port: number | undefined, ports: readonly number[]): string {
  const has = [...new Set(ports)].sort((a, b) => a - b);
  return `${host} has no port ${port}; it has ${has.join(", ")}`;
}

function frontendsOf(bpffs: string): Frontend[] {
  const tables = openPinned(bpffs);
  try {
    return new TableView(tables).frontends().flatMap(({ match, service }) => {
      // Prefixes and port-wide frontends stand for no single address.
      const { address, port } = parseDestination(match) ?? {};
      const host = service.slice(0, service.lastIndexOf(":"));
      return address === undefined || port === undefined ? [] : [{ address, port, host }];
    });
  } finally {
    tables.close();
  }
}

function isHost(full: string, asked: string): boolean {
  return full === asked || full.startsWith(`${asked}.`);
}
