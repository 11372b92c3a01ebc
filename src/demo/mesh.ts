/** The mesh of the demo: one service, two versions, three upstreams. */
import { stringify } from "yaml";

/** The weights of the service's versions. */
export interface Shares {
  v1: number;
  v2: number;
}

export const ISTIOD_PORT = 15010;

export const MESH = {
  /** The node of the demo's machine. */
  node: "10.96.0.2",
  service: { host: "shop.demo.internal", address: "10.96.0.10", port: 80 },
  upstreamPort: 8080,
  upstreams: [
    { name: "a", version: "v1", address: "127.1.0.1" },
    { name: "b", version: "v1", address: "127.1.0.2" },
    { name: "c", version: "v2", address: "127.1.0.3" },
  ],
} as const;

/** The configured share of an upstream in the new connections, 0 to 1. */
export function shareOf(upstream: string, shares: Shares): number {
  const own = MESH.upstreams.find(({ name }) => name === upstream);
  if (!own) return 0;
  const siblings = MESH.upstreams.filter(({ version }) => version === own.version).length;
  return shares[own.version] / (shares.v1 + shares.v2) / siblings;
}

/** The file that the embedded control plane serves. */
export function meshYaml(shares: Shares): string {
  const { host, address, port } = MESH.service;
  return stringify(
    {
      services: [
        {
          host,
          addresses: [address],
          port,
          protocol: "tcp",
          balance: "round-robin",
          endpoints: MESH.upstreams.map((upstream) => ({
            address: upstream.address,
            port: MESH.upstreamPort,
            subset: upstream.version,
          })),
          split: { v1: shares.v1, v2: shares.v2 },
        },
      ],
    },
    { aliasDuplicateObjects: false },
  );
}
