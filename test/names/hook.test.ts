/** Where and for whom names are answered: beside other programs at the hook, for other network namespaces, in shadow mode, by settings that change. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { innerMap } from "../../src/datapath/tables/inner-map.ts";
import { BpfMap } from "../../src/kernel/maps.ts";
import type { NamesStatus } from "../../src/names/status.ts";
import { AgentLab, missing, SERVICE, shop } from "../e2e/agent-lab.ts";
import { RunningClient } from "../interop/mesh-lab.ts";
import { NetworkNamespace } from "../lab/namespace.ts";
import { eventually, type OwnedProcess, output, placed } from "../lab/process.ts";

const why = missing();
if (why) console.warn(`skipped: the hook of names: ${why}`);

setDefaultTimeout(60_000);

const HOST = "shop.demo.svc.cluster.local";
const SERVER = "10.77.0.2";

/** One query by UDP: prints the address, or the name of the error. */
const ASK = `
import socket, struct, sys
name, server = sys.argv[1:3]
question = b"".join(bytes([len(l)]) + l.encode() for l in name.split(".")) + b"\\0" + struct.pack(">HH", 1, 1)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(0.5)
try:
    s.connect((server, 53))
    s.send(struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + question)
    answer = s.recv(1500)
    print(socket.inet_ntoa(answer[-4:]) if answer[7] else "empty")
except OSError as error:
    print(type(error).__name__)
`;
const NOBODY = "ConnectionRefusedError";

describe.skipIf(why !== undefined)("the hook of names", () => {
  let lab: AgentLab;
  /** Has no name server: whoever gets there is refused. */
  let beyond: NetworkNamespace;
  /** Its packets pass through the lab's namespace. */
  let inner: NetworkNamespace;
  let agent: OwnedProcess;
  let uplink: string;
  let config: string;

  const names = async (): Promise<NamesStatus> => {
    const { names } = await lab.toldStatus();
    if (!names) throw new Error("the agent says nothing of names");
    return names;
  };
  const count = async (event: string) => (await names()).counts[event] ?? 0;
  const ask = async (name = HOST, netns = lab.namespace.path, enrolled = true): Promise<string> => {
    const place = { netns, ...(enrolled ? { cgroup: lab.apps } : {}) };
    return (await output(placed(["python3", "-c", ASK, name, SERVER], place))).trim();
  };
  const start = async (settings: string) => {
    writeFileSync(config, settings);
    agent = await lab.liveAgent(`--config=${config}`);
    await eventually("names are live", async () => (await names()).interfaces.length > 0);
  };
  const reload = (settings: string) => {
    writeFileSync(config, settings);
    agent.signal("SIGHUP");
  };

  beforeAll(async () => {
    lab = await AgentLab.create(shop({ v1: 50, v2: 50 }));
    config = join(lab.folder, "config.yaml");
    beyond = await NetworkNamespace.create("far");
    inner = await NetworkNamespace.create("in");
    await lab.namespace.connect(beyond, ["10.77.0.1/24"], [`${SERVER}/24`]);
    const all: { ifname: string; addr_info: { local: string }[] }[] = JSON.parse(
      await output(["ip", "-n", lab.namespace.name, "-json", "addr"]),
    );
    uplink = all.find(({ addr_info }) => addr_info.some(({ local }) => local === "10.77.0.1"))?.ifname ?? "";
    await lab.namespace.connect(inner, ["10.78.0.1/24"], ["10.78.0.2/24"]);
    await inner.ip("route", "add", "default", "via", "10.78.0.1");
    await beyond.ip("route", "add", "default", "via", "10.77.0.1");
    await output(placed(["sysctl", "-qw", "net.ipv4.ip_forward=1"], { netns: lab.namespace.path }));
    await start("dns: auto\n");
  }, 60_000);
  afterAll(async () => {
    await inner?.remove();
    await beyond?.remove();
    if (lab) expect(await lab.remove()).toEqual([]);
  }, 30_000);

  test("another tcx program and a clsact filter stay, and all see what passes", async () => {
    const script = join(import.meta.dirname, "other-program.ts");
    const other = new RunningClient(
      placed([process.execPath, script, uplink], { netns: lab.namespace.path }),
    );
    /** Queries that the tcx program and the filter saw. */
    const seen = async () => {
      other.go();
      return (await other.line()).split(" ").map(Number);
    };
    try {
      expect(await other.line()).toBe("attached");
      const passed = await count("passed-unknown");
      expect([await ask("example.com"), await ask()]).toEqual([NOBODY, SERVICE]);
      // The tcx program is first and sees both; what kmesh answers does not get as far as the filter.
      expect(await seen()).toEqual([2, 1]);
      expect(await count("passed-unknown")).toBe(passed + 1);

      await agent.stop("SIGKILL");
      await start("dns: auto\n");
      expect((await names()).writes).toBe(0);
      expect([await ask("example.com"), await ask()]).toEqual([NOBODY, SERVICE]);
      expect(await seen()).toEqual([4, 2]);

      // Without kmesh's programs the others go on.
      reload("dns: off\n");
      await eventually("nobody is answered", async () => (await ask()) === NOBODY);
      const then = await seen();
      expect(await ask()).toBe(NOBODY);
      expect(await seen()).toEqual(then.map((number) => number + 1));
      reload("dns: auto\n");
      await eventually("names are answered again", async () => (await ask()) === SERVICE);
    } finally {
      other.kill();
    }
  });

  test("settings of names take effect by SIGHUP", async () => {
    expect(await ask(HOST, lab.namespace.path, false)).toBe(NOBODY);
    reload("dns: on\n");
    await eventually(
      "everybody is answered",
      async () => (await ask(HOST, lab.namespace.path, false)) === SERVICE,
    );
    expect((await names()).askers).toBe("everybody");
    reload("dns: auto\ndns-exclude: [demo.svc.cluster.local]\n");
    await eventually("the suffix passes", async () => (await ask()) === NOBODY);
    expect(await count("passed-excluded")).toBeGreaterThan(0);
    reload("dns: auto\n");
    await eventually("it is answered again", async () => (await ask()) === SERVICE);
  });

  test("two queries in one send, which the interface is to cut (UDP_SEGMENT), pass", async () => {
    const before = [await count("answered-a"), await count("passed-malformed")];
    const script = ASK.replace(
      "s.send(",
      "s.setsockopt(socket.SOL_UDP if hasattr(socket, 'SOL_UDP') else 17, 103, 12 + len(question))\n    s.send(2 * (",
    ).replace("+ question)\n    answer", "+ question))\n    answer");
    const place = { netns: lab.namespace.path, cgroup: lab.apps };
    expect((await output(placed(["python3", "-c", script, HOST, SERVER], place))).trim()).toBe(NOBODY);
    // Not even read: what is read of two messages is malformed.
    expect([await count("answered-a"), await count("passed-malformed")]).toEqual(before);
  });

  test("shadow mode counts what it would answer, and answers nothing", async () => {
    reload("shadow: true\n");
    const answered = await count("answered-a");
    await eventually("nothing is answered", async () => (await ask()) === NOBODY);
    const [would, right] = [await count("would-answer"), await count("answered-a")];
    expect(await ask()).toBe(NOBODY);
    expect([await count("would-answer"), await count("answered-a")]).toEqual([would + 1, right]);
    expect(right).toBeGreaterThanOrEqual(answered);
    reload("shadow: false\n");
    await eventually("names are answered again", async () => (await ask()) === SERVICE);
  });

  test("queries of other network namespaces pass, and are answered with netns: all", async () => {
    reload("dns: on\n");
    await eventually(
      "everybody is answered",
      async () => (await ask(HOST, lab.namespace.path, false)) === SERVICE,
    );
    const forwarded = await count("passed-forwarded");
    expect(await ask(HOST, inner.path)).toBe(NOBODY);
    expect(await count("passed-forwarded")).toBe(forwarded + 1);
    await agent.stop("SIGKILL");
    await start("dns: on\nnetns: all\n");
    await eventually("they are answered", async () => (await ask(HOST, inner.path)) === SERVICE);
    expect(await ask("example.com", inner.path)).toBe(NOBODY);
    await agent.stop("SIGKILL");
    await start("dns: auto\n");
  });

  test("a table that can't be read is replaced, and no query is lost meanwhile", async () => {
    const [layout] = readdirSync(join(lab.bpffs, "names")).filter(
      (one) => one !== "links" && one !== "counts",
    );
    using outer = BpfMap.fromPin(join(lab.bpffs, "names", layout ?? "", "tables", "names"));
    using hash = innerMap(outer);
    const word = (value: bigint) => new Uint8Array(BigUint64Array.of(value).buffer);
    hash?.updateBatch(word(7n), word(0xffff_fff0n), 1);
    const script = join(import.meta.dirname, "resolver.py");
    const resolver = new RunningClient(
      placed(["python3", script, "30", SERVER, "127.0.0.1", "--", `${HOST}:A=${SERVICE}`], {
        netns: lab.namespace.path,
        cgroup: lab.apps,
      }),
    );
    try {
      expect(await resolver.line()).toBe("asking");
      await agent.stop("SIGKILL");
      await start("dns: auto\n");
      expect(lab.said("the pinned table of mesh names can't be read")).toHaveLength(1);
      expect((await names()).writes).toBeGreaterThan(0);
      await resolver.close();
      const tally = JSON.parse(await resolver.line());
      expect(tally.wrong).toEqual({});
      expect(tally.asked).toBeGreaterThan(20);
    } finally {
      resolver.kill();
    }
  });
});
