import { describe, expect, test } from "bun:test";
import { type Endpoint, EndpointBuffer, EndpointList, MAX_TRANSPORTS } from "./endpoint-list.ts";

const some: Endpoint[] = [
  { address: "10.0.0.1", port: 80, weight: 1, healthy: true },
  { address: "255.255.255.255", port: 65535, weight: 4_294_967_295, healthy: false },
  { address: "fd00::1", port: 443, weight: 7, healthy: true, transport: MAX_TRANSPORTS },
];

describe("lists of endpoints", () => {
  test("give back what went in", () => {
    const list = EndpointList.of(some);
    expect(list.toJSON()).toEqual(some);
    expect(list.map(({ port }) => port)).toEqual([80, 65535, 443]);
    expect([0, 1, 2].map((i) => list.isV4(i))).toEqual([true, true, false]);
    expect(list.equals(EndpointList.of(some))).toBe(true);
    expect(list.equals(EndpointList.of(some.slice(1)))).toBe(false);
  });

  test("a list that differs in a transport alone is another one", () => {
    const [first, ...rest] = some;
    const list = EndpointList.of([{ ...(first as Endpoint), transport: 2 }, ...rest]);
    expect([0, 1, 2].map((i) => list.transport(i))).toEqual([2, 0, MAX_TRANSPORTS]);
    expect([0, 1, 2].map((i) => list.healthy(i))).toEqual([true, false, true]);
    expect(list.equals(EndpointList.of(some))).toBe(false);
    expect(list.v4Key(0)).toBe(EndpointList.of(some).v4Key(0));
  });

  test("keys tell address and port, nothing else", () => {
    const list = EndpointList.of([...some, { address: "10.0.0.1", port: 80, weight: 9, healthy: false }]);
    expect(list.v4Key(0)).toBe(0x0a000001 * 65536 + 80);
    expect(list.v4Key(3)).toBe(list.v4Key(0));
    expect(list.v4Key(2)).toBeUndefined();
  });

  test("an address that is none is refused by name", () => {
    expect(() => EndpointList.of([{ address: "a.example", port: 1, weight: 1, healthy: true }])).toThrow(
      '"a.example"',
    );
  });
});

describe("buffers of endpoints", () => {
  test("grow, order by address and port, and forget marks when picked", () => {
    const buffer = new EndpointBuffer();
    for (let i = 0; i < 500; i++) buffer.push(`10.0.${i % 7}.${i % 200}`, 1 + (i % 3), 1, true, i % 2 === 0);
    expect(buffer.length).toBe(500);
    const order = Array.from({ length: 500 }, (_, i) => i).sort((a, b) => buffer.compare(a, b));
    const picked = buffer.pick(order);
    const keys = Array.from({ length: 500 }, (_, i) => picked.v4Key(i) ?? 0);
    expect(keys).toEqual([...keys].sort((a, b) => a - b));
    expect(buffer.marked(0)).toBe(true);
    expect(buffer.pick([0]).get(0)).toEqual({ address: "10.0.0.0", port: 1, weight: 1, healthy: true });
  });

  test("of the same address and port the healthy and then the heavier one comes first", () => {
    const buffer = new EndpointBuffer();
    buffer.push("fd00::1", 80, 9, false);
    buffer.push("fd00::1", 80, 1, true);
    buffer.push("fd00::1", 80, 5, true);
    expect(buffer.same(0, 2)).toBe(true);
    expect(buffer.key(0)).toBe(buffer.key(1));
    expect([0, 1, 2].sort((a, b) => buffer.compare(a, b))).toEqual([2, 1, 0]);
  });
});
