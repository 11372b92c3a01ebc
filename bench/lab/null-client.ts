/**
 * Connects to a control plane like an agent, receives and acknowledges everything and keeps nothing:
 * `bun bench/lab/null-client.ts HOST:PORT [dual-engine]`; prints {"milliseconds", "first", "bytes", "resources"},
 * milliseconds from connecting to complete and to the first response.
 */
import { AdsClient } from "../../test/control-plane/ads-client.ts";
import { printUsageOnHelp } from "./flags.ts";

printUsageOnHelp();
const [istiod = "", mode] = process.argv.slice(2);
let resources = 0;
let first: number | undefined;
let last = performance.now();
const began = performance.now();
const client = new AdsClient({
  istiod,
  node: { ip: "10.60.0.1", name: "null", namespace: "bench" },
  ...(mode === "dual-engine" ? { types: ["authorization", "address", "names"] as const } : {}),
  received: (response) => {
    resources += response.resources.length;
    first ??= response.at;
    last = response.at;
  },
});
await client.first;
console.log(
  JSON.stringify({
    milliseconds: last - began,
    first: (first ?? last) - began,
    bytes: client.size,
    resources,
  }),
);
client.close();
process.exit(0);
