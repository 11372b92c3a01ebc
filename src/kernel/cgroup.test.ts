import { expect, test } from "bun:test";
import { findCgroup2 } from "./cgroup.ts";
import { parseRelease } from "./features.ts";

const line = (root: string, point: string, type: string): string =>
  `31 24 0:26 ${root} ${point} rw,nosuid shared:9 - ${type} ${type} rw,nsdelegate`;

test("cgroup2 is found on unified and on hybrid layouts", () => {
  expect(findCgroup2([line("/", "/sys/fs/cgroup", "cgroup2")].join("\n"))).toBe("/sys/fs/cgroup");
  const hybrid = [line("/", "/sys/fs/cgroup/cpu", "cgroup"), line("/", "/sys/fs/cgroup/unified", "cgroup2")];
  expect(findCgroup2(hybrid.join("\n"))).toBe("/sys/fs/cgroup/unified");
  expect(findCgroup2(line("/", "/sys/fs/cgroup", "cgroup"))).toBeUndefined();
  expect(findCgroup2("")).toBeUndefined();
});

test("of several mounts the one that shows the root wins, and escaped names are read", () => {
  const mounts = [line("/system.slice", "/mnt/part", "cgroup2"), line("/", "/mnt/with\\040space", "cgroup2")];
  expect(findCgroup2(mounts.join("\n"))).toBe("/mnt/with space");
  expect(findCgroup2(line("/../..", "/sys/fs/cgroup", "cgroup2"))).toBe("/sys/fs/cgroup");
});

test("kernel releases are read as Debian and others write them", () => {
  expect(parseRelease("5.10.0-46-amd64")).toEqual({ major: 5, minor: 10, text: "5.10.0-46-amd64" });
  expect(parseRelease("6.12-rc3")).toMatchObject({ major: 6, minor: 12 });
});
