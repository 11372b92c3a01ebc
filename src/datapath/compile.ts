/** From a cluster or split of the mesh to what its descriptor and slots will hold, and a digest of that. */
import { createHash } from "node:crypto";
import { isV4 } from "../mesh/address.ts";
import type { Balance, Cluster, Reason, Split } from "../mesh/model.ts";
import type { Kind, SlotPolicy } from "./descriptor.ts";
import { type Member, maglevTable, ringTable, smoothOrder } from "./slots.ts";
import { type Weighted, weighEndpoints } from "./weights.ts";

export const DIGEST_SIZE = 16;

/** A descriptor before its slots have ids. */
export interface Compiled {
  kind: Kind;
  policy: SlotPolicy;
  reason: Reason;
  maxConnections: number;
  v4: Weighted[];
  v6: Weighted[];
  /** Of a split: cluster names and weights. */
  shares: { cluster: string; weight: number }[];
  order: (members: Member[]) => Uint32Array;
  digest: Uint8Array;
}

export function compileCluster(cluster: Cluster): Compiled {
  const { balance } = cluster;
  const members = cluster.kind === "endpoints" ? cluster : { ...cluster, localities: [] };
  const v4 = weighEndpoints(members, ({ address }) => isV4(address)).members;
  const v6 = weighEndpoints(members, ({ address }) => !isV4(address)).members;
  const text = [
    cluster.kind,
    JSON.stringify(balance),
    cluster.reason,
    cluster.maxConnections,
    ...[...v4, ...v6].map(({ endpoint, weight }) => `${endpoint.address} ${endpoint.port} ${weight}`),
  ];
  return {
    kind: cluster.kind === "passthrough" ? "pass" : cluster.kind,
    policy: policyOf(balance),
    reason: cluster.reason,
    maxConnections: Math.min(cluster.maxConnections, 0xffffffff),
    v4,
    v6,
    shares: [],
    order: orderOf(balance),
    digest: digest(text.join("\n")),
  };
}

export function compileSplit(split: Split): Compiled {
  const text = split.shares.map(({ cluster, weight }) => `${cluster} ${weight}`).join("\n");
  return {
    ...NOTHING,
    kind: "split",
    shares: split.shares.filter(({ weight }) => weight > 0),
    digest: digest(`split\n${text}`),
  };
}

/** What a name stands for that istiod never sent. */
export function compileMissing(): Compiled {
  return { ...NOTHING, kind: "refuse", reason: "missing-cluster", digest: digest("missing") };
}

const NOTHING: Omit<Compiled, "digest"> = {
  kind: "endpoints",
  policy: "round-robin",
  reason: "none",
  maxConnections: 0,
  v4: [],
  v6: [],
  shares: [],
  order: smoothOrder,
};

function policyOf(balance: Balance): SlotPolicy {
  return balance.policy === "ring-hash" || balance.policy === "maglev" ? "hash" : balance.policy;
}

function orderOf(balance: Balance): (members: Member[]) => Uint32Array {
  if (balance.policy === "ring-hash") return (members) => ringTable(members, balance.tableSize);
  if (balance.policy === "maglev") return (members) => maglevTable(members, balance.tableSize);
  return smoothOrder;
}

/** Compared with what an earlier start, or an earlier version, wrote: never change how it is made. */
function digest(text: string): Uint8Array {
  return createHash("sha1").update(text).digest().subarray(0, DIGEST_SIZE);
}
