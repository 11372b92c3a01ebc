/** Compiles a cluster or split of the mesh to the content of its descriptor and slots, with a digest. */
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
import type { Transport } from "../../mesh/transport.ts";
import { type Kind, MAX_FALLBACKS, type SlotPolicy } from "./descriptor.ts";
import { type Members, maglevTable, ringTable, smoothOrder } from "./slots.ts";
import { textOf } from "./tunnel-targets.ts";
import { type Selection, weighEndpoints, weighFallbacks } from "./weights.ts";

export const DIGEST_SIZE = 16;
const MAX_UINT32 = 0xffff_ffff;

/** A descriptor before its slots have ids. */
export interface Compiled {
  kind: Kind;
  policy: SlotPolicy;
  reason: Reason;
  maxConnections: number;
  /** The port of kind port; 0 for other kinds. */
  port: number;
  ejection: Ejection;
  v4: Selection;
  v6: Selection;
  /** Further priorities, used when all earlier endpoints are ejected. */
  fallbacks: { v4: Selection; v6: Selection }[];
  /** The transports of endpoints that are not reached directly, as in the model. */
  transports: readonly Transport[];
  /** The name of a cluster with transports; otherwise "". */
  service: string;
  /** The cluster names and weights of a split. */
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
  const fallbacks = members ? fallbacksOf(cluster) : [];
  const { after, base, longest, percent, enforcing } = ejection;
  // Without transports the digest is the same as before transports existed.
  const part = after > 0 && enforcing < 100 ? `\nenforcing ${enforcing}` : "";
  const transports = members ? cluster.transports : [];
  const tunnel = transports.length > 0 ? `\n${cluster.service}\n${transports.map(textOf).join("\n")}` : "";
  const more = fallbacks.length > 0 ? `\nfallbacks ${fallbacks.length}` : "";
  const head =
    `${cluster.kind}\n${balance.policy}\n${tableSizeOf(balance)}\n${cluster.reason}\n${cluster.maxConnections}\n` +
    `${after}\n${base}\n${longest}\n${percent}${cluster.port > 0 ? `\n${cluster.port}` : ""}${part}${more}${tunnel}`;
  return {
    kind: KIND_OF[cluster.kind],
    policy: policyOf(balance),
    reason: cluster.reason,
    maxConnections: Math.min(cluster.maxConnections, MAX_UINT32),
    port: cluster.port,
    ejection,
    v4,
    v6,
    fallbacks,
    transports,
    service: transports.length > 0 ? cluster.service : "",
    shares: [],
    order: orderOf(balance),
    digest: digest(head, v4, v6, ...fallbacks.flatMap((each) => [each.v4, each.v6])),
  };
}

function fallbacksOf(cluster: Cluster): Compiled["fallbacks"] {
  const v4 = weighFallbacks(cluster, "v4", MAX_FALLBACKS);
  const v6 = weighFallbacks(cluster, "v6", MAX_FALLBACKS);
  return Array.from({ length: Math.max(v4.length, v6.length) }, (_, i) => ({
    v4: v4[i] ?? NOBODY,
    v6: v6[i] ?? NOBODY,
  }));
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

/** The content of a cluster that istiod never sent. */
export function compileMissing(): Compiled {
  return { ...NOTHING, kind: "refuse", reason: "missing-cluster", digest: digest("missing") };
}

/** The kernel's value. */
function boundedEjection({ after, base, longest, percent, enforcing }: Ejection): Ejection {
  return {
    after: Math.min(after, MAX_UINT32),
    base: Math.min(base, MAX_UINT32),
    longest: Math.min(longest, MAX_UINT32),
    percent: Math.min(percent, 100),
    enforcing: Math.min(enforcing, 100),
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
  fallbacks: [],
  transports: [],
  service: "",
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

/** Words of a member in a digest: four of the address, the port, and the weight as a double. */
const MEMBER_BYTES = (ENDPOINT_WORDS - 1) * 4 + 8;
const encoder = new TextEncoder();
let draft = new DataView(new ArrayBuffer(4096));

/** Compared with digests of earlier starts and versions, so its computation must never change. */
function digest(head: string, ...selections: Selection[]): Uint8Array {
  const members = selections.reduce((sum, { places }) => sum + places.length, 0);
  // At most three bytes of UTF-8 for each unit of UTF-16; one word between two fallbacks.
  const size = head.length * 3 + 1 + members * MEMBER_BYTES + selections.length * 4;
  if (draft.byteLength < size) draft = new DataView(new ArrayBuffer(size * 2));
  const { written } = encoder.encodeInto(head, new Uint8Array(draft.buffer));
  draft.setUint8(written, 0);
  let end = written + 1;
  selections.forEach((selection, i) => {
    // Marks a member's priority. The first two selections had no mark, so they must not get one.
    if (i >= 2) {
      draft.setUint32(end, selection.places.length);
      end += 4;
    }
    end = pack(selection, end);
  });
  const result = new Uint8Array(new ArrayBuffer(DIGEST_SIZE));
  result.set(hash("sha1", new Uint8Array(draft.buffer, 0, end), "buffer").subarray(0, DIGEST_SIZE));
  return result;
}

/** Writes the members into the draft at `at`. Returns the end. */
function pack({ lists, places, weights }: Selection, at: number): number {
  for (let i = 0; i < places.length; i++) {
    const list = lists[i];
    const place = places[i];
    if (list === undefined || place === undefined) continue;
    for (let word = 0; word < 4; word++)
      draft.setUint32(at + word * 4, list.words[place * ENDPOINT_WORDS + word] ?? 0);
    // The transport's number in bits that are 0 without one.
    draft.setUint32(at + 16, list.port(place) | (list.transport(place) << 16));
    draft.setFloat64(at + 20, weights[i] ?? 0);
    at += MEMBER_BYTES;
  }
  return at;
}
