import { expect, test } from "bun:test";
import { check, ENOTSUPP, KernelError } from "./error.ts";

test("an error names the call, the object and the code", () => {
  const error = new KernelError("bpf_obj_get", 2, "/sys/fs/bpf/none", "nothing is pinned there");
  expect(error.message).toBe("bpf_obj_get(/sys/fs/bpf/none): ENOENT: nothing is pinned there");
  expect(error).toMatchObject({ call: "bpf_obj_get", code: "ENOENT", errno: 2, object: "/sys/fs/bpf/none" });
  expect(error).toBeInstanceOf(Error);
});

test("codes that libc has no name for have one", () => {
  expect(new KernelError("a", ENOTSUPP, "b").code).toBe("ENOTSUPP");
  expect(new KernelError("a", 4007, "b").code).toBe("LIBBPF_VERIFY");
  expect(new KernelError("a", 11, "b").code).toBe("EAGAIN");
  expect(new KernelError("a", 9999, "b").code).toBe("E9999");
});

test("check lets results through and throws negative ones", () => {
  expect(check(0, "open", "x")).toBe(0);
  expect(check(7, "open", "x")).toBe(7);
  expect(() => check(-13, "open", "x")).toThrow("open(x): EACCES");
});
