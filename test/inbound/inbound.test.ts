/** Inbound policies on a real kernel: peers in one network namespace, the machine in another, and nothing of ours running. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Talker } from "../../bench/continuity/talker.ts";
import { installInnerMap } from "../../src/datapath/tables/inner-map.ts";
import { readRefusals } from "../../src/inbound/refusals.ts";
import { unpin } from "../../src/kernel/bpffs.ts";
import { BpfMap } from "../../src/kernel/maps.ts";
import type { Condition, Inbound, Policy } from "../../src/mesh/inbound.ts";
import { encodeSet, keptInboundPin, openPolicySet } from "../../src/policy/pinned.ts";
import { NetworkNamespace, ownName } from "../lab/namespace.ts";
import { eventually, OwnedProcess, output, run } from "../lab/process.ts";

setDefaultTimeout(90_000);

const HERE = import.meta.dir;
const VM = { v4: "10.79.0.1", v6: "fd79::1", other: "10.79.9.9" };
const PEER = { v4: "10.79.0.2", v6: "fd79::2", second: "10.79.0.3" };
const PORT = 8080;
const STRICT = 8443;
const OPEN = 9000;
const KEPT = 8888;

const source = (...prefixes: string[]): Condition => ({ kind: "source", prefixes });
const policy = (name: string, action: Policy["action"], when: Condition): Policy => ({
  name,
  action,
  rules: [{ name: "rule 1", when }],
});

describe("inbound policies", () => {
  const bpffs = `/sys/fs/bpf/${ownName("in")}`;
  const folder = mkdtempSync(join(tmpdir(), "kmesh-inbound-"));
  let vm: NetworkNamespace;
  let peer: NetworkNamespace;
  const started: OwnedProcess[] = [];
  const talkers: Talker[] = [];

  const python = (netns: NetworkNamespace, ...args: (string | number)[]) => ({
    command: ["python3", join(HERE, "peers.py"), ...args.map(String)],
    netns: netns.path,
  });
  const start = async (name: string, ...args: (string | number)[]): Promise<OwnedProcess> => {
    const process = new OwnedProcess({ name, log: join(folder, name), ...python(vm, ...args) });
    started.push(process);
    await eventually(`${name} is ready`, () => process.output().includes("ready"));
    return process;
  };
  const ask = async (address: string, port: number, from = "", netns = peer): Promise<string> => {
    const { command } = python(netns, "ask", from, address, port);
    return (await output(command, { netns: netns.path })).trim();
  };
  const publish = (mode: "leave" | "flip" | "off" | "cut" | "none", ...sets: Inbound[]): Promise<string> =>
    output(
      [process.execPath, join(HERE, "publisher.ts"), bpffs, mode, ...sets.map((set) => JSON.stringify(set))],
      { netns: vm.path },
    );
  /** Connections that stay, each SOURCE>ADDRESS. */
  const holding = async (netns: NetworkNamespace, ...pairs: string[]): Promise<Talker> => {
    const { command } = python(netns, "hold", KEPT, ...pairs);
    const client = new Talker("hold", command, join(folder, "hold"), { netns: netns.path });
    talkers.push(client);
    expect(await client.hear(5_000)).toBe("ready");
    return client;
  };
  const inbound = (policies: Policy[], strict: number[] = []): Inbound => ({
    ports: [PORT, STRICT, KEPT],
    mtls: { default: "disable", ports: strict.map((port) => ({ port, mode: "strict" })) },
    policies,
  });

  beforeAll(async () => {
    vm = await NetworkNamespace.create("vm");
    peer = await NetworkNamespace.create("pe");
    await vm.connect(peer, [`${VM.v4}/16`, `${VM.v6}/64`], [`${PEER.v4}/16`, `${PEER.v6}/64`]);
    await vm.addLoopback(VM.other);
    await peer.addLoopback(PEER.second);
    await start("app", "serve", PORT, STRICT, OPEN);
  });
  afterAll(async () => {
    for (const talker of talkers) await talker.end();
    for (const process of started) await process.stop();
    unpin(bpffs);
    await vm?.remove();
    await peer?.remove();
    rmSync(folder, { recursive: true, force: true });
  });

  test("a DENY of a source refuses it at once, others and other ports pass, and no agent runs", async () => {
    expect(await publish("leave", inbound([policy("shop/no", "deny", source(`${PEER.v4}/32`))]))).toContain(
      "applied 1 attached true",
    );
    expect(await ask(VM.v4, PORT)).toBe("ECONNREFUSED");
    expect(await ask(VM.v4, PORT, PEER.second)).toBe(`app ${PEER.second} ${VM.v4}:${PORT}`);
    expect(await ask(VM.v6, PORT)).toBe(`app ${PEER.v6} ${VM.v6}:${PORT}`);
    expect(await ask(VM.v4, OPEN)).toStartWith("app");
    const { refusals, recent } = readRefusals(bpffs) ?? {};
    expect(refusals).toEqual([{ by: "shop/no", count: 1 }]);
    expect(recent?.[0]).toMatchObject({ by: "shop/no", source: PEER.v4, destination: VM.v4, port: PORT });
    using set = openPolicySet(bpffs);
    expect(
      set?.current()?.decide({ sourceAddress: PEER.v4, destinationAddress: VM.v4, destinationPort: PORT }),
    ).toEqual({ allowed: false, reason: "denied", policy: "shop/no", rule: "rule 1" });
  });

  test("an ALLOW admits what it names and nothing else; this machine itself is exempt", async () => {
    await publish(
      "leave",
      inbound([policy("shop/yes", "allow", source(`${PEER.second}/32`, `${PEER.v6}/128`))]),
    );
    expect(await ask(VM.v4, PORT)).toBe("ECONNREFUSED");
    expect(await ask(VM.v4, PORT, PEER.second)).toStartWith("app");
    expect(await ask(VM.v6, PORT)).toStartWith("app");
    for (const address of ["127.0.0.1", VM.v4, VM.v6, "::1"])
      expect(await ask(address, PORT, "", vm)).toStartWith("app");
    // From one of its own addresses to another.
    expect(await ask(VM.v4, PORT, VM.other, vm)).toStartWith("app");
  });

  test("destinations count", async () => {
    await publish(
      "leave",
      inbound([policy("shop/to", "deny", { kind: "destination", prefixes: [`${VM.v6}/128`] })]),
    );
    expect(await ask(VM.v6, PORT)).toBe("ECONNREFUSED");
    expect(await ask(VM.v4, PORT)).toStartWith("app");
  });

  test("STRICT refuses plaintext from outside; a tunnel that listens gets it; when it dies, all is refused again", async () => {
    await publish("leave", inbound([], [STRICT]));
    // istiod names no ports, or some, to a machine whose WorkloadEntry is not made yet.
    for (const ports of [[], [PORT]])
      await publish("leave", { ports, mtls: { default: "permissive", ports: [] }, policies: [] });
    {
      using set = openPolicySet(bpffs);
      expect(set?.read()?.inbound.ports).toEqual([PORT, STRICT, KEPT]);
    }
    expect(await ask(VM.v4, STRICT)).toBe("ECONNREFUSED");
    await publish("leave", inbound([], [STRICT]));
    expect(await ask(VM.v4, STRICT)).toBe("ECONNREFUSED");
    expect(await ask(VM.v6, STRICT)).toBe("ECONNREFUSED");
    expect(await ask(VM.v4, STRICT, "", vm)).toStartWith("app");
    expect(await ask(VM.v4, PORT)).toStartWith("app");
    const tunnel = await start("tunnel", "tunnel", keptInboundPin(bpffs, "inbound_listeners"));
    expect(await ask(VM.v4, STRICT)).toBe(`tunnel ${PEER.v4} ${VM.v4}:${STRICT}`);
    expect(await ask(VM.v6, STRICT)).toBe(`tunnel ${PEER.v6} ${VM.v6}:${STRICT}`);
    expect(await ask(VM.v4, STRICT, "", vm)).toStartWith("app");
    // Mutual TLS is disabled there: nothing in the way.
    expect(await ask(VM.v4, PORT)).toStartWith("app");
    process.kill(tunnel.pid, "SIGKILL");
    await tunnel.exited;
    expect(await ask(VM.v4, STRICT)).toBe("ECONNREFUSED");
    expect(await ask(VM.v4, STRICT, "", vm)).toStartWith("app");
  });

  test("what no identity can change is refused before the tunnel", async () => {
    const tunnel = await start("tunnel2", "tunnel", keptInboundPin(bpffs, "inbound_listeners"));
    const principal = policy("shop/who", "allow", { kind: "principal", match: [{ kind: "presence" }] });
    await publish(
      "leave",
      inbound([policy("shop/no", "deny", source(`${PEER.v4}/32`)), principal], [STRICT]),
    );
    expect(await ask(VM.v4, STRICT)).toBe("ECONNREFUSED");
    expect(await ask(VM.v4, STRICT, PEER.second)).toStartWith("tunnel");
    expect(await ask(VM.v4, PORT, PEER.second)).toBe("ECONNREFUSED");
    await tunnel.stop();
  });

  test("40 changes between two sets that both refuse: none is let in, and a port that both admit loses none", async () => {
    const sets = [
      inbound([policy("shop/a", "deny", source(`${PEER.v4}/32`))]),
      inbound([
        policy("shop/b", "deny", source("10.79.0.0/24")),
        policy("shop/c", "deny", source("10.80.0.0/16")),
      ]),
    ];
    await publish("leave", ...sets);
    const storm = (address: string, port: number) => {
      const { command, netns } = python(peer, "storm", address, port, 2);
      return output(command, { netns });
    };
    const [refused, accepted] = await Promise.all([
      storm(VM.v4, PORT),
      storm(VM.v6, PORT),
      publish("flip", ...sets),
    ]);
    expect(refused.trim()).toMatch(/^ECONNREFUSED=\d{3,}$/);
    expect(accepted.trim()).toMatch(/^app=\d{3,}$/);
    const { refusals } = readRefusals(bpffs) ?? {};
    expect(refusals?.map(({ by }) => by)).toEqual(expect.arrayContaining(["shop/a", "shop/b"]));
  });

  test("established connections live on when a policy denies them, and are cut with enforce-established", async () => {
    await publish("leave", inbound([]));
    await start("keeper", "keep", KEPT);
    const from = [PEER.v4, PEER.second, PEER.v6].map(
      (each) => `${each}>${each.includes(":") ? VM.v6 : VM.v4}`,
    );
    const far = await holding(peer, ...from);
    const near = await holding(vm, `127.0.0.1>127.0.0.1`, `${VM.other}>${VM.v4}`);
    const deny = inbound([
      policy("shop/no", "deny", source(`${PEER.v4}/32`)),
      policy("shop/six", "deny", source("fd79::/64")),
    ]);
    await publish("leave", deny);
    expect(await far.ask("", 5_000)).toBe("open open open");
    expect(await publish("cut", deny)).toContain("1 established connection is cut: refused by shop/no");
    expect(await far.ask("", 5_000)).toBe("ECONNRESET open ECONNRESET");
    expect(await near.ask("", 5_000)).toBe("open open");
    // An error is told once. Plaintext where it is not let in any more; the machine itself is exempt.
    expect(await publish("cut", inbound([], [KEPT]))).toContain("cut: refused by strict");
    expect(await far.ask("", 5_000)).toBe("closed ECONNRESET closed");
    expect(await near.ask("", 5_000)).toBe("open open");
  });

  test("off: nothing is refused, until it is on again", async () => {
    const set = inbound([policy("shop/no", "deny", source("10.79.0.0/16"))], [STRICT]);
    await publish("off", set);
    expect(await ask(VM.v4, PORT)).toStartWith("app");
    expect(await ask(VM.v4, STRICT)).toStartWith("app");
    await publish("leave", set);
    expect(await ask(VM.v4, PORT)).toBe("ECONNREFUSED");
  });

  test("killed between the text of a set and the switch to it: the next start switches", async () => {
    await publish("leave", inbound([policy("shop/no", "deny", source("10.79.0.0/16"))]));
    const next = inbound([policy("shop/six", "deny", source("fd79::/64"))]);
    {
      using text = BpfMap.fromPin(keptInboundPin(bpffs, "inbound_text"));
      using set = openPolicySet(bpffs);
      const before = set?.read();
      if (before?.slot === undefined) throw new Error("the set does not say which slot it filled");
      installInnerMap(text, encodeSet({ ...before, inbound: next, slot: 1 - before.slot })).close();
    }
    expect(await ask(VM.v4, PORT)).toBe("ECONNREFUSED");
    expect(await publish("leave", next)).toContain("applied 1 attached true");
    expect(await ask(VM.v4, PORT)).toStartWith("app");
    expect(await ask(VM.v6, PORT)).toBe("ECONNREFUSED");
    expect(await publish("leave", next)).toContain("applied 0 attached true");
  });

  test("own addresses that changed without an agent: a new one is judged as a peer, until an agent runs again", async () => {
    const added = "10.79.9.10";
    const set = inbound([policy("shop/no", "deny", source("10.79.9.0/24"))]);
    await publish("leave", set);
    await vm.addLoopback(added);
    expect(await ask(VM.v4, PORT, added, vm)).toBe("ECONNREFUSED");
    expect(await ask(VM.v4, PORT, VM.other, vm)).toStartWith("app");
    await publish("none", set);
    expect(await ask(VM.v4, PORT, added, vm)).toStartWith("app");
  });

  test("a start that changes nothing writes nothing, and repairs what was removed", async () => {
    const set = inbound([policy("shop/no", "deny", source("10.79.0.0/16"))], [STRICT]);
    await publish("leave", set);
    expect(await publish("leave", set)).toContain("applied 0 attached true");
    await run(["rm", `${bpffs}/inbound/link`]);
    expect(await ask(VM.v4, PORT)).toStartWith("app");
    // Before istiod's first push, too.
    expect(await publish("none", set)).toContain("applied 0 attached true");
    expect(await ask(VM.v4, PORT)).toBe("ECONNREFUSED");
    await run(["rm", `${bpffs}/inbound/link`]);
    expect(await publish("leave", set)).toContain("applied 0 attached true");
    expect(await ask(VM.v4, PORT)).toBe("ECONNREFUSED");
  });
});
