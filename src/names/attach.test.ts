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
    import { attachFilter, filters } from ${from("../kernel/net/egress.ts")};
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
    console.log(interfaces().find(({ name }) => name === "port0").enslaved, filters(index).length);
    if (${way === "attachEverywhere"}) attachEverywhere(import.meta.dir, new Map(), new Map());
    else detachEverywhere("/tmp/kmesh-attach-none");
    console.log(filters(index).length);
  `);
      expect(printed).toBe("true 1\n0");
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

/** What a script needs that answers queries on `lo` of its own namespace, and stands beside others there. */
const BESIDE = (path: string) => {
  const from = (file: string) => JSON.stringify(join(import.meta.dir, file));
  return `
    import { mkdirSync } from "node:fs";
    import { createSocket } from "node:dgram";
    import { decode } from ${JSON.stringify(require.resolve("dns-packet"))};
    import { attachEverywhere, detachEverywhere } from ${from("attach.ts")};
    import { attachFilter, filters, TcxLink } from ${from("../kernel/net/egress.ts")};
    import { interfaces } from ${from("../kernel/net/interfaces.ts")};
    import { ensureBpffs, unpin } from ${from("../kernel/bpffs.ts")};
    import { loopbackUp } from ${from("../kernel/netns.ts")};
    import { BpfObject } from ${from("../kernel/object.ts")};
    import { asset } from ${from("../runtime/assets.ts")};
    import { countsOf } from ${from("counts.ts")};
    import { NAME_FLAGS } from ${from("name-table.ts")};
    import { closeNames, linkFolder, openNames } from ${from("pins.ts")};
    import { queryMessage } from ${from("query.ts")};
    const HOST = "shop.demo.internal";
    const bpffs = ${JSON.stringify(path)};
    loopbackUp();
    ensureBpffs(bpffs);
    mkdirSync(bpffs + "/keep");
    const lo = interfaces().find(({ name }) => name === "lo").index;
    const tc = (...words) => Bun.spawnSync(["tc", ...words], { stderr: "inherit" }).stdout.toString();
    /** The addresses that the name has by a real socket; "refused" where nobody answers. */
    const ask = (name = HOST, server = "127.0.0.1") =>
      new Promise((resolve) => {
        const socket = createSocket(server.includes(":") ? "udp6" : "udp4");
        const over = (what) => (clearTimeout(timer), socket.close(), resolve(what));
        const timer = setTimeout(() => over("silence"), 2_000);
        socket.on("error", () => over("refused"));
        socket.on("message", (message) => over(decode(message).answers.map(({ data }) => data).join()));
        socket.connect(53, server, () => socket.send(queryMessage(name, "A")));
      });
    const fill = ({ table }) => {
      table.apply([[HOST, { kind: "addresses", name: HOST, addresses: ["10.99.0.1"] }]]);
      table.flags = NAME_FLAGS.NAMES_ON | NAME_FLAGS.NAMES_EVERY_CGROUP;
    };
    /** Another program at the hook: it counts each query, and lets it on to the next one. */
    const counting = () => {
      const object = BpfObject.open(asset("names.compat.bpf.o"), "other");
      object.load();
      const counts = object.map("names_counts");
      return { program: object.program("names_loopback"), seen: () => countsOf(counts)["passed-off"] };
    };
    try {
      await body();
    } finally {
      unpin(bpffs);
    }
    process.exit(0);
  `;
};

const path = () => `/sys/fs/bpf/kmesh_t_at${process.pid}_${Math.floor(performance.now())}`;

for (const way of ["tcx", "clsact"] as const)
  test.skipIf(process.getuid?.() !== 0)(`other programs at the hook stay and run beside ${way}`, async () => {
    const printed = await inNamespace(`${BESIDE(path())}
    async function body() {
      ${way === "clsact" ? "TcxLink.attach = () => undefined;" : ""}
      // A filter of another kind at the first priority, as an operator writes it, and one of another program's.
      tc("qdisc", "add", "dev", "lo", "clsact");
      tc(..."filter add dev lo egress protocol ip prio 1 u32 match ip dport 54 0xffff flowid 1:1".split(" "));
      const first = counting();
      const last = counting();
      ${
        way === "tcx"
          ? "const before = TcxLink.attach(first.program, lo);"
          : `first.program.pin(bpffs + "/first");
             tc(..."filter add dev lo egress protocol all prio 2 bpf da object-pinned".split(" "), bpffs + "/first");`
      }
      const opened = openNames(bpffs);
      fill(opened);
      const held = new Map();
      const [covered] = attachEverywhere(linkFolder(bpffs), opened.programs, held);
      const after = ${way === "tcx" ? "TcxLink.attach(last.program, lo)" : "undefined"};
      console.log(covered.way, await ask());
      const filtersLeft = () =>
        [...tc("filter", "show", "dev", "lo", "egress").matchAll(/pref (\\d+) (\\w+) chain 0 (?:fh \\S+::|handle)/g)]
          .map(([, priority, kind]) => kind + " at " + priority);
      // Who is behind sees the response in the query's place, and counts queries only.
      console.log("answered:", first.seen(), last.seen());
      console.log("passed:", await ask("example.com"), first.seen(), last.seen());
      console.log("filters:", ...filtersLeft());
      attachEverywhere(linkFolder(bpffs), opened.programs, held);
      for (const link of held.values()) link.close();
      detachEverywhere(linkFolder(bpffs));
      // The kernel detaches a link whose pin was removed a moment later.
      await Bun.sleep(200);
      console.log("detached:", await ask(), first.seen(), last.seen());
      console.log("filters:", ...filtersLeft());
      closeNames(opened);
    }`);
    expect(printed.split("\n")).toEqual(
      way === "tcx"
        ? [
            "tcx 10.99.0.1",
            "answered: 0 1",
            "passed: refused 1 2",
            "filters: u32 at 1",
            "detached: refused 2 3",
            "filters: u32 at 1",
          ]
        : [
            "clsact 10.99.0.1",
            "answered: 0 0",
            "passed: refused 1 0",
            "filters: u32 at 1 bpf at 2 bpf at 2",
            "detached: refused 2 0",
            "filters: u32 at 1 bpf at 2",
          ],
    );
  });
