/** What a real istiod sent to a sidecar, as recorded beside this file. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { gunzipSync } from "node:zlib";
import type { ResourceType } from "../../istiod/stream/sink.ts";
import { KernelNative } from "../kernel-native.ts";
import type { Lookup } from "../resolver.ts";
import type { Excluded } from "../unreachable.ts";

/** v4: the node has one IPv4 address. restarted: the same after a restart of istiod. */
export type Recording =
  | "v4"
  | "v6"
  | "dual-stack"
  | "no-dns-capture"
  | "registry-only"
  | "egress-proxy"
  | "restarted"
  /** Of test/interop/shapes.yaml under REGISTRY_ONLY. */
  | "shapes"
  | "changes";

export interface Response {
  /** Of `changes` only: what was done before. */
  step?: string;
  type: ResourceType;
  version: string;
  removed: string[];
  resources: { name: string; bytes: Uint8Array }[];
}

export function recorded(name: Recording): Response[] {
  const text = gunzipSync(readFileSync(join(import.meta.dirname, `${name}.jsonl.gz`))).toString();
  return text
    .trim()
    .split("\n")
    .map((line) => {
      const response = JSON.parse(line) as Omit<Response, "resources"> & {
        resources: { name: string; base64: string }[];
      };
      const resources = response.resources.map((one) => ({
        name: one.name,
        bytes: Buffer.from(one.base64, "base64"),
      }));
      return { ...response, resources };
    });
}

export interface Published {
  everything: boolean;
  services: string[];
  frontends: string[];
  splits: string[];
  clusters: string[];
}

/** A KernelNative without a network, and what it published, oldest first. */
export function observed(
  options: {
    allowPlaintext?: boolean;
    tunnel?: boolean;
    lookup?: Lookup;
    excluded?: readonly Excluded[];
  } = {},
): {
  native: KernelNative;
  published: Published[];
} {
  const published: Published[] = [];
  const native = new KernelNative({
    allowPlaintext: options.allowPlaintext ?? false,
    tunnel: options.tunnel ?? false,
    excluded: options.excluded ?? [],
    lookup: options.lookup ?? (() => Promise.resolve({ addresses: [], ttl: 60 })),
    publish: (_, changes) => {
      published.push(
        changes.everything
          ? { everything: true, services: [], frontends: [], splits: [], clusters: [] }
          : {
              everything: false,
              services: [...changes.services].sort(),
              frontends: [...changes.frontends].sort(),
              splits: [...changes.splits].sort(),
              clusters: [...changes.clusters].sort(),
            },
      );
    },
  });
  return { native, published };
}

/** Hands responses over as the stream does: only endpoints and routes that are wanted. */
export function feed(native: KernelNative, responses: Iterable<Response>): void {
  for (const { type, resources, removed } of responses) {
    for (const name of removed) native.remove(type, name);
    for (const { name, bytes } of resources) {
      const asked = type !== "endpoints" && type !== "route" ? true : native.wanted(type).has(name);
      if (asked) native.upsert(type, name, bytes);
    }
  }
}

/** The mesh of a recording. The names of its DNS clusters have no addresses. */
export function meshOf(name: Recording, options: { allowPlaintext?: boolean; tunnel?: boolean } = {}) {
  const { native } = observed(options);
  feed(native, recorded(name));
  native.commit();
  native.close();
  return native.mesh;
}
