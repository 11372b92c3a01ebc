import { expect, test } from "bun:test";
import { monotonic } from "../kernel/clock.ts";
import { BpfMap, FLAG } from "../kernel/maps.ts";
import { formatAddress } from "../mesh/address.ts";
import { callerKey, endCarried, isCounted, putCarried, sweepCarried } from "./callers.ts";
import { findPeer, isPeerKey, peerKey } from "./peers.ts";
import * as layout from "./tables/layout.gen.ts";

const APP = 8080;
const proof = (name: string) => ({ by: "hbone", principal: `spiffe://m/ns/shop/sa/${name}` }) as const;
const own = { tgid: 1, startTicks: 10n };
const other = { tgid: 2, startTicks: 20n };

function mapOf(name: "carried" | "peers", maxEntries: number): BpfMap {
  const { keySize, valueSize } = layout.maps[name];
  return BpfMap.create({ name, type: "hash", keySize, valueSize, maxEntries, flags: FLAG.noPrealloc });
}

test.skipIf(process.getuid?.() !== 0)("an entry stands for its caller until its own end is seen", () => {
  using carried = mapOf("carried", 8);
  using peers = mapOf("peers", 2);
  const maps = { carried, peers };
  const { remote, until_ns } = layout.carried.fields;
  const read = (key: Uint8Array) => {
    const value = new Uint8Array(new ArrayBuffer(layout.carried.size));
    if (!carried.lookup(key, value)) return undefined;
    const who = formatAddress(value.subarray(remote.offset, remote.offset + 16));
    const ended = new DataView(value.buffer).getBigUint64(until_ns.offset, true) !== 0n;
    return { who: isPeerKey(who) ? findPeer(peers, who) : who, ended };
  };
  const keys = [1, 2, 3, 4].map((port) => callerKey({ address: "10.0.0.1", port }, APP));
  const [first = new Uint8Array(), second = first, third = first, fourth = first] = keys;
  const web = { address: "10.0.0.7", text: "hbone spiffe://m/ns/shop/sa/web" };
  const entry = putCarried(maps, first, { address: "10.0.0.7", proof: proof("web") }, own);
  putCarried(maps, second, { address: "fd00::9", proof: proof("cart") }, other);
  putCarried(maps, third, { address: "10.0.0.7" }, own);
  // It finds no room: it is one of the others by this way. So is one whose name would break labels.
  putCarried(maps, fourth, { address: "10.0.0.8", proof: proof("late") }, own);
  expect([first, second, third, fourth].map((key) => read(key)?.who)).toEqual([
    ...[web, { address: "fd00::9", text: "hbone spiffe://m/ns/shop/sa/cart" }, "10.0.0.7"],
    { address: "::", text: "hbone" },
  ]);
  putCarried(maps, fourth, { address: "10.0.0.8", proof: proof("a;b") }, own);
  expect(read(fourth)?.who).toEqual({ address: "::", text: "hbone" });

  endCarried(carried, first, entry);
  expect(read(first)).toEqual({ who: web, ended: true });
  // Another process has the port by now.
  const stale = putCarried(maps, third, { address: "10.0.0.7" }, own);
  putCarried(maps, third, { address: "10.0.0.7" }, other);
  endCarried(carried, third, stale);
  expect(read(third)?.ended).toBe(false);
  carried.delete(fourth);
  endCarried(carried, fourth, stale);
  expect(read(fourth)).toBeUndefined();

  // The other process has crashed: what it left has ended, and what ended lately stays for the app's end.
  sweepCarried(carried, own, ({ tgid }) => tgid === own.tgid);
  expect([first, second, third].map((key) => read(key)?.ended)).toEqual([true, true, true]);
  sweepCarried(carried, own, () => true, monotonic() + 601n * 1_000_000_000n);
  expect([first, second, third].map((key) => read(key)?.ended)).toEqual([undefined, true, true]);
});

test("a key stands for one address, way and identity", () => {
  const key = (address: string, name: string, by: "istio" | "hbone") =>
    formatAddress(peerKey(address, { ...proof(name), by }));
  const all = [
    ...[key("10.0.0.1", "web", "istio"), key("10.0.0.1", "web", "hbone"), key("10.0.0.1", "cart", "istio")],
    key("10.0.0.2", "web", "istio"),
  ];
  expect(new Set(all).size).toBe(4);
  expect(all.every(isPeerKey)).toBe(true);
  expect(key("10.0.0.1", "web", "istio")).toBe(all[0] ?? "");
});

test.skipIf(process.getuid?.() !== 0)("whether a port's connections are counted", () => {
  const { type, keySize, valueSize, maxEntries } = layout.maps.served_ports;
  using served = BpfMap.create({ name: "served_ports", type, keySize, valueSize, maxEntries });
  served.update(
    new Uint8Array(Uint32Array.of(1023).buffer),
    new Uint8Array(BigUint64Array.of(1n << 63n).buffer),
  );
  expect([65_535, 65_534, 8080].map((port) => isCounted(served, port))).toEqual([true, false, false]);
});
