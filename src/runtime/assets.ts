/**
 * The files embedded in the executable: libbpf.so, the BPF objects, the systemd unit. When run from source, they are
 * read from dist/ and systemd/.
 */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const embedded = new Map<string, string>();

/** Names the embedded files; called once by the generated entry of the single file, before anything else runs. */
export function embed(paths: Readonly<Record<string, string>>): void {
  for (const [name, path] of Object.entries(paths)) embedded.set(name, path);
}

/** Whether this process runs from the single executable. */
export function isEmbedded(): boolean {
  return embedded.size > 0;
}

/**
 * The bytes of an asset: "libbpf.so", "connect.bpf.o", "release.compat.bpf.o", ...
 * Throws when it was never built.
 */
export function asset(name: string): Uint8Array {
  if (isEmbedded()) {
    const path = embedded.get(name);
    if (path === undefined) throw new Error(`${name} is not in this executable: build it again`);
    return readFileSync(path);
  }
  const folder = name.endsWith(".bpf.o")
    ? "../../dist/bpf/"
    : /\.(service|socket)$/.test(name)
      ? "../../systemd/"
      : "../../dist/";
  const path = fileURLToPath(new URL(folder + name, import.meta.url));
  try {
    return readFileSync(path);
  } catch (error) {
    throw new Error(`${path} can't be read: run ./build/compile first`, { cause: error });
  }
}
