import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { KernelError } from "../../src/kernel/error.ts";
import { BpfObject } from "../../src/kernel/object.ts";

const OBJECT = join(import.meta.dirname, "../../dist/test/walker.bpf.o");

/**
 * Why iterators over maps can't be tested here; undefined when they can. Some locked-down kernels refuse to load them
 * (EPERM). kmesh then counts live connections at their end, and test/kernels runs these tests on a kernel that it boots.
 * Throws KernelError for every other failure.
 */
export function mapIteratorsRefused(): string | undefined {
  if (process.getuid?.() !== 0) return "needs root";
  if (!existsSync(OBJECT)) return `${OBJECT} is missing: run ./build/compile`;
  const object = BpfObject.open(readFileSync(OBJECT), "walker");
  try {
    object.load();
    return undefined;
  } catch (error) {
    if (error instanceof KernelError && error.code === "EPERM")
      return "this kernel refuses iterators over maps (EPERM)";
    throw error;
  } finally {
    object.close();
  }
}
