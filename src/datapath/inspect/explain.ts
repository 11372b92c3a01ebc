/** A dry run of connect() through the live tables: the same steps as bpf/connect.bpf.c, with a reason at each. */
import { isV4, parseAddress } from "../../mesh/address.ts";
import { exemptBlockOf, formatExemptBlock } from "../../mesh/exempt.ts";
import { formatMatch } from "../../mesh/frontend.ts";
import type { Reason } from "../../mesh/model.ts";
import { decodeTarget, reasonName } from "../mesh-tables/target.ts";
import { BROADCAST_ID } from "../tables/broadcast.ts";
import type { Tables } from "../tables/tables.ts";
import { openPinned } from "./inspect.ts";
import type { ClusterState } from "./state.ts";
import { TableView } from "./table-view.ts";

export interface Explanation {
  asked: { address: string; port: number };
  /** The decision for a connection made now. In shadow mode it is only counted. */
  verdict: "redirect" | "pass" | "refuse";
  reason?: Reason;
  shadow: boolean;
  /** The matching frontend, `10.0.0.1:80`; absent without a match. */
  frontend?: string;
  service?: string;
  /** The split, if the target is one, and all clusters that it may choose. */
  split?: string;
  clusters: (ClusterState & { share: number })[];
  /** The steps of the decision, one line each. */
  why: string[];
}

/**
 * Explains a TCP connection to `address` (canonical text) from an enrolled process in the governed namespace.
 * Throws NothingPinned and KernelError.
 */
export function explainPinned(bpffs: string, address: string, port: number): Explanation {
  const tables = openPinned(bpffs);
  try {
    return explain(tables, address, port);
  } finally {
    tables.close();
  }
}

function explain(tables: Tables, address: string, port: number): Explanation {
  const shadow = tables.settings.flags.shadow;
  const base = { asked: { address, port }, shadow, clusters: [], why: [] as string[] };
  const exempt = exemption(tables, address, port);
  if (exempt) return { ...base, verdict: "pass", why: [exempt] };
  const found = findFrontend(tables, address, port);
  base.why.push(found.why);
  const { action, service, value } = decodeTarget(found.word);
  const view = new TableView(tables);
  const known = {
    ...base,
    ...(found.frontend ? { frontend: found.frontend } : {}),
    ...(service ? { service: view.serviceName(service) } : {}),
  };
  if (action === "refuse") {
    base.why.push(`refused: ${reasonName(value)}`);
    return { ...known, verdict: "refuse", reason: reasonName(value) };
  }
  if (action !== "cluster") {
    base.why.push("goes to the address that the app asked for");
    return { ...known, verdict: "pass" };
  }
  return followCluster(view, known, value, isV4(address) ? "IPv4" : "IPv6");
}

type Known = Omit<Explanation, "verdict">;

function followCluster(view: TableView, known: Known, id: number, family: "IPv4" | "IPv6"): Explanation {
  const descriptor = view.descriptor(id);
  const state = view.cluster(id);
  if (!descriptor || !state) {
    return {
      ...known,
      verdict: "refuse",
      reason: "internal",
      why: [...known.why, `${view.clusterName(id)} is empty`],
    };
  }
  if (descriptor.kind !== "split") return settle({ ...known, clusters: [{ ...state, share: 1 }] }, family);
  const byName = new Map(view.clusters().map((cluster) => [cluster.name, cluster]));
  const clusters = state.shares.flatMap(({ cluster, share }) => {
    const part = byName.get(cluster);
    return part ? [{ ...part, share }] : [];
  });
  const parts = state.shares.map(({ cluster, share }) => `${percent(share)} to ${cluster}`);
  const why = [...known.why, `split ${state.name}: ${parts.join(", ")}`];
  return settle({ ...known, split: state.name, clusters, why }, family);
}

/** The verdict over all possible clusters: a redirect if one of them accepts connections. */
function settle(known: Known, family: "IPv4" | "IPv6"): Explanation {
  const fates = known.clusters.map((cluster) => ({ cluster, fate: fateOf(cluster, family) }));
  const why = [...known.why, ...fates.map(({ cluster, fate }) => `cluster ${cluster.name}: ${fate.text}`)];
  const fate = fates.find(({ fate }) => fate.verdict === "redirect")?.fate ?? fates[0]?.fate;
  if (!fate) return { ...known, why, verdict: "refuse", reason: "internal" };
  return { ...known, why, verdict: fate.verdict, ...(fate.reason ? { reason: fate.reason } : {}) };
}

interface Fate {
  verdict: Explanation["verdict"];
  reason?: Reason;
  text: string;
}

function fateOf(cluster: ClusterState, family: "IPv4" | "IPv6"): Fate {
  if (cluster.kind === "pass") return { verdict: "pass", text: "goes to the address that the app asked for" };
  if (cluster.kind === "refuse") {
    const reason = cluster.reason ?? "internal";
    return { verdict: "refuse", reason, text: `refused: ${reason}` };
  }
  const isFull = cluster.maxConnections > 0 && cluster.live >= cluster.maxConnections;
  if (cluster.kind === "port" && !isFull) {
    return {
      verdict: "redirect",
      text: `goes to the address that the app asked for, at port ${cluster.port}`,
    };
  }
  if (cluster.kind !== "port" && cluster.endpoints.length === 0)
    return { verdict: "refuse", reason: "no-endpoint", text: "no endpoint" };
  const usable = cluster.endpoints.filter((endpoint) => family === "IPv6" || isV4(endpoint.address));
  if (cluster.kind !== "port" && usable.length === 0) {
    return {
      verdict: "refuse",
      reason: "no-family",
      text: `no ${family} endpoint among ${cluster.endpoints.length}`,
    };
  }
  if (isFull) {
    return {
      verdict: "refuse",
      reason: "max-connections",
      text: `${cluster.live} of ${cluster.maxConnections} connections in use`,
    };
  }
  const further = (cluster.fallbacks ?? []).flat().length;
  const then = further > 0 ? `, and to ${further} of further priorities when all of these are ejected` : "";
  return {
    verdict: "redirect",
    text: `${cluster.policy} over ${usable.length} ${usable.length === 1 ? "endpoint" : "endpoints"}${then}`,
  };
}

/** The target word for a governed address, and how it was found. */
export function findFrontend(tables: Tables, address: string, port: number) {
  const exact = tables.exact.find(address, port);
  const text = formatMatch({ kind: "address", address, port });
  if (exact !== undefined) {
    return { word: tables.targets.long(exact), frontend: text, why: `frontend ${text} by address and port` };
  }
  const prefix = tables.prefixes.find(address, port);
  if (prefix) {
    const frontend = formatMatch(prefix.match);
    const how = prefix.match.kind === "port" ? "port alone" : "longest prefix";
    return { word: tables.targets.long(prefix.id), frontend, why: `frontend ${frontend} by ${how}` };
  }
  return { word: tables.settings.get("fallback"), why: "no frontend matches: the mesh's default" };
}

/** The reason why the destination is never governed; undefined when it is. */
export function exemption(tables: Tables, address: string, port: number): string | undefined {
  if (!parseAddress(address)) throw new TypeError(`"${address}" is not an IP address`);
  const block = exemptBlockOf(address);
  if (block) return `always exempt: ${formatExemptBlock(block)}`;
  const excluded = tables.exclusions.find(address, port) ?? tables.exclusions.find(address, 0);
  if (excluded?.id === BROADCAST_ID)
    return `always exempt: ${address} is a broadcast address of this machine`;
  return excluded && `excluded by configuration: ${formatMatch(excluded.match)}`;
}

function percent(share: number): string {
  return `${Math.round(share * 1000) / 10} %`;
}
