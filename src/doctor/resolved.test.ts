import { expect, test } from "bun:test";
import { keptByResolved, parseTable } from "./resolved.ts";

const NAME = "shop.demo.svc.cluster.local";
const resolved = (servers: string, domains: string) => ({
  servers: parseTable(servers),
  domains: parseTable(domains),
});

test("reads what resolvectl prints", () => {
  expect([...parseTable("Global:\nLink 2 (far0):\nLink 3 (up0): 10.77.0.2 fd77::2#dns.example\n")]).toEqual([
    ["Global", []],
    ["far0", []],
    ["up0", ["10.77.0.2", "fd77::2#dns.example"]],
  ]);
  expect(parseTable("Global: ~cluster.local Corp.Example").get("Global")).toEqual([
    "cluster.local",
    "corp.example",
  ]);
});

test("a routing domain counts where the servers are", () => {
  const link = "Global:\nLink 3 (up0): 10.77.0.2";
  const kept = keptByResolved(NAME, resolved(link, "Global: ~cluster.local\nLink 3 (up0):"));
  expect(kept?.text).toContain("keeps names below .local");
  expect(kept?.cure).toContain("resolvectl domain up0 '~cluster.local'");
  expect(kept?.cure).toContain("[Network]");
  expect(keptByResolved(NAME, resolved(link, "Global:\nLink 3 (up0): ~cluster.local"))).toBeUndefined();
  const global = "Global: 10.77.0.2\nLink 3 (up0):";
  expect(keptByResolved(NAME, resolved(global, "Global: ~cluster.local"))).toBeUndefined();
  expect(keptByResolved(NAME, resolved(global, "Global: ~."))?.cure).toStartWith(
    "Domains=~cluster.local below [Resolve]",
  );
});

test("other names need none, but a server", () => {
  expect(keptByResolved("shop.demo.internal", resolved("Global: 10.77.0.2", "Global:"))).toBeUndefined();
  expect(keptByResolved("shop.demo.internal", resolved("Global:", "Global:"))?.text).toContain(
    "no name server",
  );
});
