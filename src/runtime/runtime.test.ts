import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { asset, isEmbedded } from "./assets.ts";
import { cString, ffi } from "./ffi.ts";
import { hash53 } from "./hash.ts";
import { smallHeapEnvironment } from "./heap.ts";
import { releaseCode } from "./pages.ts";
import { version } from "./version.ts";

test("native functions take and give what their table says", () => {
  const libc = ffi.open("libc.so.6", {
    strlen: ["u64", "buffer"],
    labs: ["i64", "i64"],
    abs: ["i32", "i32"],
    strchr: ["u64", "buffer", "i32"],
    getenv: ["u64", "buffer"],
  });
  expect(libc.strlen(cString("kernel ñ"))).toBe(9n);
  expect(libc.labs(-(2n ** 62n))).toBe(2n ** 62n);
  expect(libc.abs(-3)).toBe(3);
  expect(ffi.text(libc.getenv(cString("HOME")))).toBe(process.env.HOME ?? "");
  expect(ffi.text(libc.getenv(cString("KMESH_NO_SUCH_VARIABLE")))).toBe("");
  expect(() => ffi.open("libc.so.6", { no_such_function: ["void"] })).toThrow();
});

test("foreign memory is seen in place", () => {
  const libc = ffi.open("libc.so.6", { malloc: ["u64", "u64"], memset: ["u64", "u64", "i32", "u64"] });
  const address = libc.malloc(4096n);
  const memory = new Uint8Array(ffi.memory(address, 4096));
  libc.memset(address, 0x5a, 4096n);
  expect(memory.every((byte) => byte === 0x5a)).toBeTrue();
});

test("a text with a zero inside is no C string", () => {
  expect(cString("ab")).toEqual(Uint8Array.of(97, 98, 0));
  expect(() => cString("a\0b")).toThrow("zero byte");
});

test("hashes differ where bytes do", () => {
  const bytes = new TextEncoder().encode("outbound|80||example.com");
  expect(hash53(bytes)).toBe(hash53(bytes.slice()));
  expect(hash53(bytes)).not.toBe(hash53(bytes.subarray(1)));
  expect(hash53(new Uint8Array())).toBeTypeOf("number");
});

test("pages of the executable are given back, and come again when they are used", () => {
  const resident = () =>
    Number(/^RssFile:\s+(\d+)/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1] ?? Number.NaN);
  const before = resident();
  releaseCode();
  expect(resident()).toBeLessThan(before);
  expect([3, 1, 2].sort()).toEqual([1, 2, 3]);
});

test("from source, assets come from dist/, and a missing one names the next step", () => {
  expect(isEmbedded()).toBeFalse();
  expect(asset("libbpf.so").subarray(0, 4)).toEqual(Uint8Array.of(0x7f, 0x45, 0x4c, 0x46));
  expect(() => asset("none.bpf.o")).toThrow("run ./build/compile first");
  expect(version).toMatch(/^\d+\.\d+\.\d+\+source$/);
});

test("the units start the agent and the tunnel with the small heap that they would give themselves", () => {
  const unit = (name: string) => readFileSync(join(import.meta.dirname, "../../systemd", name), "utf8");
  const [heap, ...fast] = Object.entries(smallHeapEnvironment({}) ?? {}).map((each) => each.join("="));
  expect(unit("kmesh.service")).toContain(`\nEnvironment=${heap}\n`);
  expect(unit("kmesh-tunnel.service")).toContain(
    `\n${[heap, ...fast].map((line) => `Environment=${line}`).join("\n")}\n`,
  );
  expect(smallHeapEnvironment({ GLIBC_TUNABLES: "own" })?.GLIBC_TUNABLES).toBe("own");
});
