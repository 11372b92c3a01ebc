import { expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";

/** What the script of a process in a network namespace of its own prints. */
async function inNamespace(script: string): Promise<string> {
  const folder = mkdtempSync("/tmp/kmesh-attach-");
  try {
    const file = join(folder, "script.ts");
    await Bun.write(file, script);
    const child = Bun.spawn(["unshare", "-n", process.execPath, file], { stdout: "pipe", stderr: "inherit" });
    return (await new Response(child.stdout).text()).trim();
  } finally {
    rmSync(folder, { recursive: true });
  }
}

test.skipIf(process.getuid?.() !== 0)(
  "a filter is removed from an interface that a bridge took meanwhile",
  async () => {
    const from = (path: string) => JSON.stringify(join(import.meta.dir, path));
    const printed = await inNamespace(`
    import { detachEverywhere } from ${from("attach.ts")};
    import { attachFilter, filterProgram } from ${from("../kernel/net/egress.ts")};
    import { interfaces } from ${from("../kernel/net/interfaces.ts")};
    import { BpfObject } from ${from("../kernel/object.ts")};
    import { asset } from ${from("../runtime/assets.ts")};
    const ip = (...words) => Bun.spawnSync(["ip", "link", ...words], { stderr: "inherit" });
    ip("add", "br0", "type", "bridge");
    ip("add", "port0", "type", "veth", "peer", "name", "port1");
    const index = interfaces().find(({ name }) => name === "port0").index;
    using object = BpfObject.open(asset("names.compat.bpf.o"), "names");
    object.load();
    using program = object.program("names_ethernet");
    attachFilter(program, index);
    ip("set", "port0", "master", "br0");
    console.log(interfaces().find(({ name }) => name === "port0").enslaved, filterProgram(index) !== 0);
    detachEverywhere("/tmp/kmesh-attach-none");
    console.log(filterProgram(index));
  `);
    expect(printed).toBe("true true\n0");
  },
);
