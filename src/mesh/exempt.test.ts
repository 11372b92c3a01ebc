import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { formatAddress, formatV4 } from "./address.ts";
import { EXEMPT, exemptBlockOf, exemptBlockOfMatch, formatExemptBlock } from "./exempt.ts";

/** The blocks that the kernel's program is compiled from, as `ADDRESS/LENGTH`. */
function blocksOfHeader(): string[] {
  const text = readFileSync(join(import.meta.dirname, "../../bpf/include/exempt.h"), "utf8");
  const listed = (name: string) => {
    const [, body = ""] = new RegExp(`#define ${name}\\(block\\)((?:.*\\\\\\n)*.*)`).exec(text) ?? [];
    return [...body.matchAll(/block\((0x[0-9a-f]{8})u, (\d+)\)/g)].map(([, head, length]) => ({
      head: Number(head),
      length: Number(length),
    }));
  };
  const v6 = (head: number) => {
    const bytes = new Uint8Array(16);
    new DataView(bytes.buffer).setUint32(0, head);
    return formatAddress(bytes);
  };
  const [, zero] = /#define EXEMPT_V6_ZERO (\d+)/.exec(text) ?? [];
  return [
    ...listed("EXEMPT_V4").map(({ head, length }) => `${formatV4(head)}/${length}`),
    ...listed("EXEMPT_V6").map(({ head, length }) => `${v6(head)}/${length}`),
    `::/${zero}`,
  ];
}

test("the kernel's program has the same list", () => {
  expect(blocksOfHeader()).toEqual(EXEMPT.map(({ address, length }) => `${address}/${length}`));
});

test.each([
  ["0.0.0.0", "0.0.0.0/8 (this host)"],
  ["127.0.0.53", "127.0.0.0/8 (loopback)"],
  ["169.254.169.254", "169.254.0.0/16 (link-local)"],
  ["224.0.0.1", "224.0.0.0/4 (multicast)"],
  ["239.255.255.255", "224.0.0.0/4 (multicast)"],
  ["255.255.255.255", "255.255.255.255/32 (broadcast)"],
  ["::", "::/127 (unspecified or loopback)"],
  ["::1", "::/127 (unspecified or loopback)"],
  ["fe80::1", "fe80::/10 (link-local)"],
  ["febf::1", "fe80::/10 (link-local)"],
  ["ff02::1", "ff00::/8 (multicast)"],
])("%s is exempt: %s", (address, block) => {
  const found = exemptBlockOf(address);
  expect(found && formatExemptBlock(found)).toBe(block);
});

test.each([
  "240.0.0.1",
  "240.240.0.7",
  "255.255.255.254",
  "223.255.255.255",
  "169.253.0.1",
  "::2",
  "fec0::1",
  "fd00::1",
])("%s is governed", (address) => {
  expect(exemptBlockOf(address)).toBeUndefined();
});

test("a frontend is unreachable when all its addresses are exempt", () => {
  const prefix = (address: string, length: number) =>
    exemptBlockOfMatch({ kind: "prefix", address, length, port: 80 })?.what;
  expect(exemptBlockOfMatch({ kind: "address", address: "169.254.169.254", port: 80 })?.what).toBe(
    "link-local",
  );
  expect(exemptBlockOfMatch({ kind: "address", address: "240.240.0.1", port: 80 })).toBeUndefined();
  expect(prefix("127.0.0.0", 8)).toBe("loopback");
  expect(prefix("127.1.0.0", 16)).toBe("loopback");
  expect(prefix("224.0.0.0", 3)).toBeUndefined();
  expect(prefix("0.0.0.0", 0)).toBeUndefined();
  expect(prefix("fe80::", 64)).toBe("link-local");
  expect(exemptBlockOfMatch({ kind: "port", port: 80 })).toBeUndefined();
});
