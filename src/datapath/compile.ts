/** From a cluster or split of the mesh to what its descriptor and slots will hold, and a digest of that. */
import { createHash } from "node:crypto";
import { ENDPOINT_WORDS } from "../mesh/endpoint-list.ts";
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
  const members = cluster.kind === "endpoints";
  const v4 = members ? weighEndpoints(cluster, "v4") : [];
  const v6 = members ? weighEndpoints(cluster, "v6") : [];
  const head = `${cluster.kind}\n${balance.policy}\n${tableSizeOf(balance)}\n${cluster.reason}\n${cluster.maxConnections}`;
  return {
    kind: cluster.kind === "passthrough" ? "pass" : cluster.kind,
    policy: policyOf(balance),
    reason: cluster.reason,
    maxConnections: Math.min(cluster.maxConnections, 0xffffffff),
    v4,
    v6,
    shares: [],
    order: orderOf(balance),
    digest: digest(head, v4, v6),
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

function tableSizeOf(balance: Balance): number {
  return "tableSize" in balance ? balance.tableSize : 0;
}

/** Address and port of each member in words, then its weight as a double: what the digest is taken over. */
const MEMBER_BYTES = (ENDPOINT_WORDS - 1) * 4 + 8;
let packed = new DataView(new ArrayBuffer(64 * MEMBER_BYTES));

/** Compared with what an earlier start, or an earlier version, wrote: never change how it is made. */
function digest(head: string, ...families: Weighted[][]): Uint8Array {
  const hash = createHash("sha1").update(head);
  for (const members of families) hash.update(pack(members));
  return hash.digest().subarray(0, DIGEST_SIZE);
}

function pack(members: Weighted[]): Uint8Array {
  const size = members.length * MEMBER_BYTES;
  if (packed.byteLength < size) packed = new DataView(new ArrayBuffer(size * 2));
  let at = 0;
  for (const { list, index, weight } of members) {
    const first = index * ENDPOINT_WORDS;
    for (let word = 0; word < 4; word++, at += 4) packed.setUint32(at, list.words[first + word] ?? 0);
    packed.setUint32(at, list.port(index));
    packed.setFloat64(at + 4, weight);
    at += 12;
  }
  return new Uint8Array(packed.buffer, 0, size);
}
