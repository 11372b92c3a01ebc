/** From a cluster or split of the mesh to what its descriptor and slots will hold, and a digest of that. */
import { hash } from "node:crypto";
import { ENDPOINT_WORDS } from "../../mesh/endpoint-list.ts";
import {
  type Balance,
  type Cluster,
  type Ejection,
  NO_EJECTION,
  type Reason,
  type Split,
} from "../../mesh/model.ts";
import type { Kind, SlotPolicy } from "./descriptor.ts";
import { type Members, maglevTable, ringTable, smoothOrder } from "./slots.ts";
import { type Selection, weighEndpoints } from "./weights.ts";

export const DIGEST_SIZE = 16;
const MAX_UINT32 = 0xffff_ffff;

/** A descriptor before its slots have ids. */
export interface Compiled {
  kind: Kind;
  policy: SlotPolicy;
  reason: Reason;
  maxConnections: number;
  /** Of the kind port; 0 for all others. */
  port: number;
  ejection: Ejection;
  v4: Selection;
  v6: Selection;
  /** Of a split: cluster names and weights. */
  shares: { cluster: string; weight: number }[];
  order: (members: Members) => Uint32Array;
  digest: Uint8Array;
}

const KIND_OF: Record<Cluster["kind"], Kind> = {
  endpoints: "endpoints",
  passthrough: "pass",
  "port-override": "port",
  refuse: "refuse",
};

export function compileCluster(cluster: Cluster): Compiled {
  const { balance } = cluster;
  const ejection = boundedEjection(cluster.ejection);
  const members = cluster.kind === "endpoints";
  const v4 = members ? weighEndpoints(cluster, "v4") : NOBODY;
  const v6 = members ? weighEndpoints(cluster, "v6") : NOBODY;
  const { after, base, longest, percent } = ejection;
  const head =
    `${cluster.kind}\n${balance.policy}\n${tableSizeOf(balance)}\n${cluster.reason}\n${cluster.maxConnections}\n` +
    `${after}\n${base}\n${longest}\n${percent}${cluster.port > 0 ? `\n${cluster.port}` : ""}`;
  return {
    kind: KIND_OF[cluster.kind],
    policy: policyOf(balance),
    reason: cluster.reason,
    maxConnections: Math.min(cluster.maxConnections, MAX_UINT32),
    port: cluster.port,
    ejection,
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

/** As the kernel takes it. */
function boundedEjection({ after, base, longest, percent }: Ejection): Ejection {
  return {
    after: Math.min(after, MAX_UINT32),
    base: Math.min(base, MAX_UINT32),
    longest: Math.min(longest, MAX_UINT32),
    percent: Math.min(percent, 100),
  };
}

const NOBODY: Selection = { lists: [], places: [], weights: [] };

const NOTHING: Omit<Compiled, "digest"> = {
  kind: "endpoints",
  policy: "round-robin",
  reason: "none",
  maxConnections: 0,
  port: 0,
  ejection: NO_EJECTION,
  v4: NOBODY,
  v6: NOBODY,
  shares: [],
  order: smoothOrder,
};

function policyOf(balance: Balance): SlotPolicy {
  return balance.policy === "ring-hash" || balance.policy === "maglev" ? "hash" : balance.policy;
}

function orderOf(balance: Balance): (members: Members) => Uint32Array {
  if (balance.policy === "ring-hash") return (members) => ringTable(members, balance.tableSize);
  if (balance.policy === "maglev") return (members) => maglevTable(members, balance.tableSize);
  return smoothOrder;
}

function tableSizeOf(balance: Balance): number {
  return "tableSize" in balance ? balance.tableSize : 0;
}

/** Of each member in a digest: four words of address, the port, the weight as a double. */
const MEMBER_BYTES = (ENDPOINT_WORDS - 1) * 4 + 8;
const encoder = new TextEncoder();
let draft = new DataView(new ArrayBuffer(4096));

/** Compared with what an earlier start, or an earlier version, wrote: never change how it is made. */
function digest(head: string, v4 = NOBODY, v6 = NOBODY): Uint8Array {
  // Three bytes of UTF-8 a unit of UTF-16 at most.
  const size = head.length * 3 + 1 + (v4.places.length + v6.places.length) * MEMBER_BYTES;
  if (draft.byteLength < size) draft = new DataView(new ArrayBuffer(size * 2));
  const { written } = encoder.encodeInto(head, new Uint8Array(draft.buffer));
  draft.setUint8(written, 0);
  const end = pack(v6, pack(v4, written + 1));
  const result = new Uint8Array(new ArrayBuffer(DIGEST_SIZE));
  result.set(hash("sha1", new Uint8Array(draft.buffer, 0, end), "buffer").subarray(0, DIGEST_SIZE));
  return result;
}

/** Writes the members into the draft from `at` on; gives where they end. */
function pack({ lists, places, weights }: Selection, at: number): number {
  for (let i = 0; i < places.length; i++) {
    const list = lists[i];
    const place = places[i];
    if (list === undefined || place === undefined) continue;
    for (let word = 0; word < 4; word++)
      draft.setUint32(at + word * 4, list.words[place * ENDPOINT_WORDS + word] ?? 0);
    draft.setUint32(at + 16, list.port(place));
    draft.setFloat64(at + 20, weights[i] ?? 0);
    at += MEMBER_BYTES;
  }
  return at;
}
