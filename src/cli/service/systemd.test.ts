import { expect, test } from "bun:test";
import { serviceInCgroups, serviceOf } from "./systemd.ts";

test("a process's service is told by its cgroups, in every layout", () => {
  const texts: [string, string | undefined][] = [
    ["0::/system.slice/kmesh.service\n", "kmesh.service"],
    ["9:name=systemd:/system.slice/kmesh.service\n8:memory:/else.service\n0::/\n", "kmesh.service"],
    ["0::/system.slice/a:b.service\n", "a:b.service"],
    ["0::/user.slice/user-0.slice/session-3.scope\n", undefined],
    ["0::/system.slice/docker.service/inner\n", undefined],
    ["0::/\n", undefined],
    ["", undefined],
  ];
  for (const [text, unit] of texts) expect(serviceInCgroups(text)).toBe(unit);
});

test("this test is no service's main process", () => {
  expect(serviceOf(process.pid)).toBeUndefined();
});
