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

for (const way of ["attachEverywhere", "detachEverywhere"])
  test.skipIf(process.getuid?.() !== 0)(
    `${way} removes the filter of an interface that a bridge took`,
    async () => {
      const from = (path: string) => JSON.stringify(join(import.meta.dir, path));
      const printed = await inNamespace(`
    import { attachEverywhere, detachEverywhere } from ${from("attach.ts")};
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
    if (${way === "attachEverywhere"}) attachEverywhere(import.meta.dir, new Map(), new Map());
    else detachEverywhere("/tmp/kmesh-attach-none");
    console.log(filterProgram(index));
  `);
      expect(printed).toBe("true true\n0");
    },
  );

test.skipIf(process.getuid?.() !== 0)("lists more interfaces than the first call has room for", async () => {
  const from = JSON.stringify(join(import.meta.dir, "../kernel/net/interfaces.ts"));
  const printed = await inNamespace(`
    import { interfaces } from ${from};
    Bun.spawnSync(["ip", "link", "add", "one", "type", "veth", "peer", "name", "two"]);
    Bun.spawnSync(["ip", "link", "add", "three", "type", "bridge"]);
    const named = (room) => interfaces(room).map(({ name }) => name).filter((name) => ["lo", "one", "two", "three"].includes(name)).sort().join();
    console.log(named(1), named(2), named(64));
  `);
  const all = "lo,one,three,two";
  expect(printed).toBe([all, all, all].join(" "));
});
