import { expect, test } from "bun:test";
import { choose, defaultInterface, fleeting } from "./addresses.ts";

const ROUTES = [
  "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT",
  "wlan0\t00000000\t0100000A\t0003\t0\t0\t600\t00000000\t0\t0\t0",
  "eth1\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0",
  "eth0\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0",
  "lo\t00000000\t00000000\t0203\t0\t0\t0\t00000000\t0\t0\t0",
].join("\n");

const INET6 = [
  "fd0000000000000000000000000000a1 02 40 00 80     eth0",
  "fd0000000000000000000000000000a2 02 40 00 01     eth0",
  "fd0000000000000000000000000000a3 02 40 00 20     eth0",
  "fd0000000000000000000000000000a4 02 40 00 c8     eth0",
  "00000000000000000000000000000001 01 80 10 80       lo",
  "",
].join("\n");

test("the default route's interface: the smallest metric, no reject route", () => {
  expect(defaultInterface(ROUTES)).toBe("eth1");
  expect(defaultInterface("")).toBeUndefined();
});

test("temporary, deprecated and tentative addresses are told by their flags", () => {
  expect([...fleeting(INET6)]).toEqual(["fd00::a2", "fd00::a3", "fd00::a4"]);
});

test("IPv4 of the default route's interface comes first, then IPv6; nothing of containers, loopback and links", () => {
  const all = [
    { name: "lo", address: "127.0.0.1" },
    { name: "docker0", address: "172.17.0.1" },
    { name: "br-5f1e", address: "172.18.0.1" },
    { name: "cni0", address: "10.244.0.1" },
    { name: "cali12ab", address: "169.254.1.1" },
    { name: "eth0", address: "fd00::a1" },
    { name: "eth0", address: "fd00::a2" },
    { name: "eth0", address: "fe80::1" },
    { name: "eth0", address: "192.168.0.5" },
    { name: "eth1", address: "192.168.1.5" },
  ];
  expect(choose(all, fleeting(INET6), "eth1")).toEqual(["192.168.1.5", "192.168.0.5", "fd00::a1"]);
  expect(choose(all, new Set(), undefined)).toEqual(["192.168.0.5", "192.168.1.5", "fd00::a1", "fd00::a2"]);
});
