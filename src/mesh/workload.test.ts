import { describe, expect, test } from "bun:test";
import { keyOf, WorkloadIndex } from "./workload.ts";

describe("the index of workloads", () => {
  const index = new WorkloadIndex();
  index.set(keyOf("10.0.0.1", 80), "a;ns;a;;");
  index.set(keyOf("10.0.0.1", 81), "a;ns;a;;");
  index.set(keyOf("10.0.0.2", 80), "b;ns;b;;");
  index.set(keyOf("2001:db8::1", 80), "c;ns;c;;");

  test("finds by endpoint, and by host alone, in both families", () => {
    expect(index.find("10.0.0.2", 80)).toBe("b;ns;b;;");
    expect(index.find("10.0.0.2", 81)).toBeUndefined();
    expect(index.findHost("10.0.0.1")).toBe("a;ns;a;;");
    expect(index.findHost("2001:db8::1")).toBe("c;ns;c;;");
    expect(index.findHost("10.0.0.9")).toBeUndefined();
  });

  test("the ports of hosts follow what is set, also for the same list of addresses", () => {
    const addresses = ["10.0.0.1", "2001:db8::1"];
    expect(index.portsOf(addresses)).toEqual([80, 81]);
    index.set(keyOf("10.0.0.1", 443), "a;ns;a;;");
    expect(index.portsOf(addresses)).toEqual([80, 81, 443]);
    expect(index.portsOf(["10.0.0.2"])).toEqual([80]);
  });

  test("setting the same again is no change, another text is one", () => {
    const { revision } = index;
    index.set(keyOf("10.0.0.2", 80), "b;ns;b;;");
    expect(index.revision).toBe(revision);
    index.set(keyOf("10.0.0.2", 80), "d;ns;d;;");
    expect(index.revision).toBeGreaterThan(revision);
    expect(index.findHost("10.0.0.2")).toBe("d;ns;d;;");
  });

  test("texts that no endpoint has any more are dropped, and the others stay", () => {
    const own = new WorkloadIndex();
    const bytes = new TextEncoder().encode("0123456789");
    own.set(keyOf("10.0.0.1", 80), "a;ns;a;;");
    for (let i = 0; i < 20_000; i++) {
      for (const digit of String(i)) own.draft.append(bytes, Number(digit), Number(digit) + 1);
      const text = own.endDraft();
      own.put(keyOf("10.0.0.2", 80), text);
      own.put(keyOf("2001:db8::1", 80), text);
    }
    expect(own.find("10.0.0.1", 80)).toBe("a;ns;a;;");
    expect(own.find("10.0.0.2", 80)).toBe("19999");
    expect(own.findHost("2001:db8::1")).toBe("19999");
    expect(own.size).toBe(3);
  });

  test("an endpoint of several services has for each what that one says", () => {
    const key = keyOf("10.0.0.3", 80);
    const seen = () =>
      ["x:80", "y:80", "z:80"].map((service) => index.variant(key, service) ?? index.at(key));
    index.set(key, "x-1;ns;x;;", "x:80");
    index.set(key, "y-1;ns;y;;", "y:80");
    expect(seen()).toEqual(["x-1;ns;x;;", "y-1;ns;y;;", "y-1;ns;y;;"]);
    // Pushes take turns, and one of them changes.
    index.set(key, "x-2;ns;x;;", "x:80");
    expect(seen()).toEqual(["x-2;ns;x;;", "y-1;ns;y;;", "x-2;ns;x;;"]);
    index.set(key, "x-2;ns;x;;", "y:80");
    expect(seen()).toEqual(["x-2;ns;x;;", "x-2;ns;x;;", "x-2;ns;x;;"]);
  });
});
