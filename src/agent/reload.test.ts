import { expect, test } from "bun:test";
import { type Config, readConfig } from "../config/config.ts";
import { differences, formatReload } from "./reload.ts";

function config(flags: Record<string, string | boolean | string[]>): Config {
  const base = { istiod: "a:1", plaintext: true };
  return readConfig({ flags: { ...base, ...flags }, env: {}, file: { path: "/dev/null", required: false } });
}

test("nothing changed", () => {
  const found = differences(config({}), config({}));
  expect(found).toEqual({ live: [], later: [] });
  expect(formatReload(found)).toBe("Reloaded: nothing that can change without a restart did");
});

test("what is decided in the kernel changes at once, the rest is named", () => {
  const after = config({
    istiod: "b:1",
    exclude: ["10.0.0.0/8"],
    cgroup: ["/a", "/b"],
    unit: ["nginx"],
    netns: "all",
    shadow: true,
    metrics: "127.0.0.1:15020",
    "access-log": "stdout",
    ip: ["10.0.0.1"],
    "service-account": "other",
  });
  const found = differences(config({}), after);
  expect(found).toEqual({
    live: ["unit", "cgroup", "exclude", "netns", "shadow", "metrics", "access-log"],
    later: ["istiod", "service-account", "ip"],
  });
  expect(formatReload(found)).toBe(
    "Reloaded unit, cgroup, exclude, netns, shadow, metrics, access-log. A restart is needed for istiod, service-account, ip (connections continue meanwhile)",
  );
});
