/** A stream to istiod at the gateway `gw.example`, for gateway.test.ts: prints a line for each thing that happens. */
import { IstiodStream } from "../../src/istiod/stream/stream.ts";

const [port = ""] = process.argv.slice(2);
const stream = new IstiodStream({
  istiod: `istiod.istio-system.svc:${port}`,
  hosts: { "istiod.istio-system.svc": ["gw.example"] },
  security: { kind: "plaintext" },
  identity: { ips: ["10.0.0.5"], name: "vm1", namespace: "shop" },
  sink: {
    upsert: () => undefined,
    remove: () => undefined,
    wanted: () => new Set(),
    commit: () => undefined,
  },
  on: (event) => console.log(event.kind),
  backoff: { first: 50, longest: 100 },
});
stream.start();
