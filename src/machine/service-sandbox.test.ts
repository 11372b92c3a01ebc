import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ServiceSandbox } from "./service-sandbox.ts";

const folder = mkdtempSync(join(tmpdir(), "kmesh-sandbox-"));
afterAll(() => rmSync(folder, { recursive: true }));

const UNIT = readFileSync(join(import.meta.dirname, "../../systemd/kmesh.service"), "utf8");
const ours = new ServiceSandbox(UNIT);

test("the unit hides homes and devices, and lets only its own folders be written", () => {
  for (const path of ["/root/ca.pem", "/home/ann/files/token", "/run/user/0/x", "/dev/sda", "/dev/mem"])
    expect(ours.blocked(path, "read")?.reason).toMatch(
      /can't be seen by kmesh\.service \((ProtectHome|PrivateDevices)=yes hides/,
    );
  for (const path of [
    "/etc/kmesh/ca.pem",
    "/var/lib/kmesh/root-cert.pem",
    "/srv/ca.pem",
    "/rooted",
    "/dev/null",
  ])
    expect(ours.blocked(path, "read")).toBeUndefined();
  for (const path of ["/var/lib/kmesh", "/run/kmesh", "/sys/fs/bpf/kmesh", "/var/lib/kmesh/deep"])
    expect(ours.blocked(path, "write")).toBeUndefined();
  for (const path of ["/srv/kmesh", "/var/lib/other", "/tmp/kmesh", "/sys/fs/cgroup/x"])
    expect(ours.blocked(path, "write")?.reason).toStartWith(
      `${path} can't be written to by kmesh.service (Protect`,
    );
  expect(ours.blocked("/srv/kmesh", "write")?.next).toContain("ReadWritePaths=/srv/kmesh");
  expect(ours.blocked("ca.pem", "read")?.reason).toContain("is no whole path");
});

test("a link is followed, also over links of folders", () => {
  symlinkSync("/root", join(folder, "home"));
  symlinkSync(join(folder, "home/ca.pem"), join(folder, "ca.pem"));
  expect(ours.blocked(join(folder, "ca.pem"), "read")?.reason).toBe(
    `${join(folder, "ca.pem")}, which leads to /root/ca.pem, can't be seen by kmesh.service (ProtectHome=yes hides /root)`,
  );
  symlinkSync("loop", join(folder, "loop"));
  expect(ours.blocked(join(folder, "loop"), "read")).toBeUndefined();
  writeFileSync(join(folder, "file"), "");
  expect(ours.blocked(join(folder, "x/../file"), "read")).toBeUndefined();
});

test("drop-ins count, and an empty value takes back what was said", () => {
  const path = "/root/ca.pem";
  const hides = (dropIn: string) => new ServiceSandbox(UNIT, dropIn).blocked(path, "read") !== undefined;
  expect(hides("[Service]\nProtectHome=no\n")).toBe(false);
  expect(hides("[Service]\nProtectHome=read-only\n")).toBe(false);
  expect(hides("[Service]\nProtectHome=tmpfs\n")).toBe(true);
  expect(hides("[Service]\nBindReadOnlyPaths=/root/ca.pem\n")).toBe(false);
  expect(hides("[Service]\nBindReadOnlyPaths=-/srv/a:/root/ca.pem\nBindReadOnlyPaths=\n")).toBe(true);
  expect(hides("[Unit]\nProtectHome=no\n")).toBe(true);
  const more = new ServiceSandbox(
    UNIT,
    "[Service]\nReadWritePaths=/srv/kmesh \\\n  /srv/run\nInaccessiblePaths=-/etc/secret\n",
  );
  expect(more.blocked("/srv/run/x", "write")).toBeUndefined();
  expect(more.blocked("/etc/secret/x", "read")?.reason).toContain(
    "InaccessiblePaths=-/etc/secret hides /etc/secret",
  );
  // A unit without sandbox settings hides nothing.
  expect(new ServiceSandbox("[Service]\nExecStart=/bin/true\n").blocked(path, "write")).toBeUndefined();
});
