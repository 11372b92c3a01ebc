/** Second half of dump.ts, inside the control plane's namespace: connects, waits for quiet, writes the files. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { eventually, sleep } from "../lab/process.ts";
import { AdsClient, type Received } from "./ads-client.ts";

const [istiod = "", out = "", debugSocket = ""] = process.argv.slice(2);
const responses: Received[] = [];
// istiod debounces what was just applied.
await sleep(1_000);
const client = new AdsClient({
  istiod,
  node: { ip: "127.0.0.1", name: "vm", namespace: "shop" },
  received: (response) => {
    // The bytes belong to the message: copy what outlives it.
    const resources = response.resources.map(({ name, bytes }) => ({ name, bytes: bytes.slice() }));
    responses.push({ ...response, resources });
  },
});
await client.first;
await sleep(500);
const config = await eventually("istiod's config_dump", async () => {
  const response = await fetch("http://localhost/debug/config_dump?proxyID=vm.shop", {
    unix: debugSocket,
    proxy: "",
  });
  return response.status === 200 ? response.text() : undefined;
});
client.close();
const lines = responses.map(({ type, version, removed, resources }) =>
  JSON.stringify({
    type,
    version,
    removed,
    resources: resources.map(({ name, bytes }) => ({ name, base64: Buffer.from(bytes).toString("base64") })),
  }),
);
writeFileSync(join(out, "received.jsonl"), `${lines.join("\n")}\n`);
writeFileSync(join(out, "config_dump.json"), config);
const names = responses.flatMap(({ type, resources }) => resources.map(({ name }) => `${type} ${name}`));
writeFileSync(join(out, "names.txt"), `${names.join("\n")}\n`);
console.log(`${responses.length} responses, ${names.length} resources, ${client.size} bytes in ${out}`);
process.exit(0);
