/** What the kernel counts of a connection is what the apps at both ends saw, however it goes. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { callerKey, putCarried } from "../../src/datapath/callers.ts";
import { peerKey } from "../../src/datapath/peers.ts";
import * as layout from "../../src/datapath/tables/layout.gen.ts";
import { netnsCookie } from "../../src/kernel/netns.ts";
import { RingReader } from "../../src/kernel/ring.ts";
import { formatAddress } from "../../src/mesh/address.ts";
import { emptyMesh } from "../../src/mesh/model.ts";
import { Counting } from "../../src/telemetry/counters/counting.ts";
import { Flusher } from "../../src/telemetry/counters/flush.ts";
import {
  addCounters,
  type Counters,
  closedOf,
  type Direction,
  decodeKey,
  ENDS,
  type FlowRow,
  longAt,
  noCounters,
  readRows,
  subtractCounters,
  viewOf,
} from "../../src/telemetry/counters/rows.ts";
import { Labels } from "../../src/telemetry/labels.ts";
import { RunningClient } from "../interop/mesh-lab.ts";
import { mapIteratorsRefused } from "../lab/map-iterators.ts";
import { output, PATIENCE, placed } from "../lab/process.ts";
import { DatapathLab } from "./lab.ts";
import { addCluster, addFrontend, endpoint } from "./mesh.ts";

setDefaultTimeout(PATIENCE * 30_000);
/** Accepted connections are counted in every namespace: no other test may serve the same port. */
const PORT = 20_000 + (process.pid % 10_000);
const why = mapIteratorsRefused();
if (why !== undefined) console.warn(`traffic tests are skipped: ${why}`);

describe.skipIf(why !== undefined)("traffic", () => {
  let lab: DatapathLab;
  let counting: Counting;
  let flusher: Flusher | undefined;
  beforeAll(async () => {
    lab = await DatapathLab.create();
    await lab.namespace.addLoopback("172.31.1.1");
    // SYNs to it go out on loopback and come back to nobody.
    await output(["ip", "-n", lab.namespace.name, "route", "add", "172.31.9.0/24", "dev", "lo"]);
    await output([
      ...["nsenter", `--net=${lab.namespace.path}`, "sysctl", "-q"],
      "net.ipv4.tcp_syn_retries=1",
    ]);
    const mesh = emptyMesh();
    const endpoints = {
      open: `172.31.1.1:${PORT}`,
      closed: "172.31.1.1:9",
      silent: "172.31.9.9:80",
      away: "198.51.100.1:80",
      shut: "172.31.1.1:7",
      shut2: "172.31.1.1:6",
    };
    Object.entries(endpoints).forEach(([name, at], i) => {
      addCluster(mesh, name, [endpoint(at)]);
      addFrontend(mesh, `10.96.8.${i + 1}:80`, { kind: "cluster", cluster: name });
    });
    addFrontend(mesh, "10.96.8.9:80", { kind: "refuse", reason: "policy" }, "denied:80");
    lab.publish(mesh);
    const { maps } = lab.datapath.tables;
    counting = new Counting(maps.traffic, maps.served_ports);
    counting.count(true);
    counting.serve([PORT]);
    flusher = Flusher.open(maps, counting);
  });
  afterAll(async () => {
    flusher?.close();
    counting?.close();
    await lab?.remove();
  });

  const rows = (): FlowRow[] => [
    ...readRows(lab.datapath.tables.maps.flow_rows),
    ...readRows(lab.datapath.tables.maps.caller_rows),
  ];
  const sum = (direction: Direction): Counters => {
    const all = noCounters();
    for (const { key, counters } of rows()) if (key.direction === direction) addCounters(all, counters);
    return all;
  };
  const FRONTENDS = { open: 1, closed: 2, silent: 3, away: 4, shut: 5, denied: 9 };
  const script = (way: string, to: keyof typeof FRONTENDS) => {
    const path = join(import.meta.dirname, "flows.py");
    return placed(
      ["/usr/bin/python3", path, way, `10.96.8.${FRONTENDS[to]}`, "80", "172.31.1.1", String(PORT)],
      {
        netns: lab.namespace.path,
        cgroup: lab.cgroup,
      },
    );
  };
  const run = async (way: string, to: keyof typeof FRONTENDS) => {
    const text = await output(script(way, to));
    return JSON.parse(text) as { sent: number; received: number; retransmits?: number };
  };
  const named = (counters: Counters) =>
    Object.fromEntries(ENDS.flatMap((end, i) => (counters.ends[i] ? [[end, counters.ends[i]]] : [])));

  // The way, where to, how the client's connections end, and those that were accepted.
  test.each([
    ["normal", "open", { closed: 1 }, { closed: 1 }],
    ["server_first", "open", { closed: 1 }, { closed: 1 }],
    ["pending", "open", { closed: 1 }, { closed: 1 }],
    ["pending_reset", "open", { aborted: 1 }, { reset: 1 }],
    ["unread", "open", { closed: 1 }, { reset: 1 }],
    ["reset_by_peer", "open", { reset: 1 }, { aborted: 1 }],
    ["reset_read", "open", { reset: 1 }, { aborted: 1 }],
    ["half_close", "open", { closed: 1 }, { closed: 1 }],
    ["forked", "open", { closed: 1 }, { closed: 1 }],
    ["killed", "open", { closed: 1 }, { closed: 1 }],
    ["refused", "closed", { refused: 1 }, {}],
    ["refused_later", "closed", { refused: 1 }, {}],
    ["refused_and_read", "closed", { refused: 1 }, {}],
    ["refused_again", "closed", { refused: 2 }, {}],
    ["timed_out", "silent", { "timed-out": 1 }, {}],
    ["gave_up", "silent", { "timed-out": 1 }, {}],
    ["changed_mind", "silent", { aborted: 1 }, {}],
    ["refused", "away", { unreachable: 1 }, {}],
    ["elsewhere", "open", { reused: 1, closed: 1 }, { reset: 1, closed: 1 }],
  ] as const)("%s (%s)", async (way, to, client, server) => {
    const before = { out: sum("out"), in: sum("in") };
    const apps = await run(way, to);
    const out = subtractCounters(sum("out"), before.out);
    const accepted = subtractCounters(sum("in"), before.in);
    expect({ ...apps, ends: named(out), opened: out.opened }).toEqual({
      sent: out.sent,
      received: out.received,
      ends: client,
      opened: Object.values(client).reduce((all: number, one) => all + one, 0),
    });
    expect(named(accepted)).toEqual(server);
    if (to !== "open" || way === "elsewhere") return;
    // Both ends of a connection say the same.
    expect([accepted.received, accepted.sent]).toEqual([out.sent, way === "unread" ? 50_000 : out.received]);
  });

  test("each byte once, while others flush without pause", async () => {
    const before = sum("out");
    let busy = true;
    let flushes = 0;
    const work = run("many", "open").finally(() => {
      busy = false;
    });
    while (busy && flusher) {
      flusher.flush();
      flushes++;
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    const apps = await work;
    const out = subtractCounters(sum("out"), before);
    if (flusher) expect(flushes).toBeGreaterThan(20);
    expect({ sent: out.sent, received: out.received, opened: out.opened }).toEqual({ ...apps, opened: 300 });
    expect(named(out)).toEqual({ closed: 200, reset: 100 });
  });

  test("each connection in its own row, while sockets reconnect elsewhere and others flush without pause", async () => {
    const before = new Set(rows().map(({ key }) => JSON.stringify(key)));
    let busy = true;
    const work = run("again_and_again", "shut").finally(() => {
      busy = false;
    });
    while (busy) {
      flusher?.flush();
      await new Promise((resolve) => setImmediate(resolve));
    }
    const { sent: toOne, received: toOther } = await work;
    const fresh = rows().filter(({ key }) => key.direction === "out" && !before.has(JSON.stringify(key)));
    const found = fresh.map(({ counters }) => [
      counters.opened,
      counters.ends.reduce((all, one) => all + one, 0),
    ]);
    expect(toOne).toBeGreaterThan(1000);
    expect(found.sort()).toEqual([toOne, toOther].map((count) => [count, count]).sort());
  });

  test("segments that were sent again, and each byte once all the same", async () => {
    const nft = (...rule: string[]) =>
      output(["nsenter", `--net=${lab.namespace.path}`, "/usr/sbin/nft", ...rule]);
    await nft("add table inet loss; add chain inet loss in { type filter hook input priority 0; }");
    await nft(`add rule inet loss in tcp dport ${PORT} numgen inc mod 9 == 0 drop`);
    try {
      const before = { out: sum("out"), in: sum("in") };
      const { retransmits = 0, ...apps } = await run("lossy", "open");
      const out = subtractCounters(sum("out"), before.out);
      expect(retransmits).toBeGreaterThan(0);
      expect(out.retransmits).toBe(retransmits);
      expect([out.sent, out.received]).toEqual([apps.sent, apps.received]);
      const accepted = subtractCounters(sum("in"), before.in);
      expect([accepted.received, accepted.sent]).toEqual([apps.sent, apps.received]);
    } finally {
      await nft("delete table inet loss");
    }
  });

  /** As the agent does each few seconds in its own namespace. */
  const findAccepted = () => flusher?.findAccepted(lab.namespace.path);

  test("a live connection is in the rows of both ends after a flush", async () => {
    const before = { out: sum("out"), in: sum("in") };
    const client = new RunningClient(script("alive", "open"));
    try {
      expect(await client.line()).toBe("alive");
      flusher?.flush();
      findAccepted();
      const live = subtractCounters(sum("out"), before.out);
      expect([live.opened, closedOf(live)]).toEqual([1, 0]);
      const accepted = subtractCounters(sum("in"), before.in);
      if (flusher) {
        // A SYN and a FIN may be in what was acknowledged: two bytes at most wait for the end.
        expect([live.sent, live.received]).toEqual([6999, 2999]);
        expect([accepted.opened, closedOf(accepted)]).toEqual([1, 0]);
        expect([accepted.sent, accepted.received]).toEqual([2998, 6999]);
      }
      // What is counted goes on being counted, also when its port is served no more.
      counting.serve([]);
      client.go();
      await client.line();
      const over = subtractCounters(sum("out"), before.out);
      expect([over.sent, over.received, closedOf(over)]).toEqual([7000, 3000, 1]);
      const past = subtractCounters(sum("in"), before.in);
      if (flusher)
        expect([past.opened, past.sent, past.received, named(past)]).toEqual([1, 3000, 7000, { closed: 1 }]);
    } finally {
      client.kill();
      counting.serve([PORT]);
    }
  });

  test("a live connection is in the rows of the caller for whom the tunnel carries it, and no other one is", async () => {
    const { maps } = lab.datapath.tables;
    const own = "172.31.1.1";
    const proof = { by: "istio", principal: "spiffe://cluster.local/ns/shop/sa/web" } as const;
    const path = join(import.meta.dirname, "flows.py");
    const client = new RunningClient(
      placed(["/usr/bin/python3", path, "alive", own, String(PORT), own, String(PORT)], {
        netns: lab.namespace.path,
      }),
    );
    try {
      expect(await client.line()).toBe("alive");
      const sockets = await output(["ss", "-Htn", "state", "established", `sport = :${PORT}`], {
        netns: lab.namespace.path,
      });
      const port = Number(/:(\d+)\s*$/.exec(sockets.trim())?.[1]);
      const key = callerKey({ address: own, port }, PORT);
      const owner = { tgid: process.pid, startTicks: 1n };
      putCarried(maps, key, { address: "10.0.0.9", proof }, owner);
      findAccepted();
      const remote = formatAddress(peerKey("10.0.0.9", proof));
      const carried = () => rows().find(({ key: { remote: of } }) => of === remote)?.counters;
      const live = carried();
      if (flusher) expect([live?.opened, live?.received]).toEqual([1, 6999]);
      expect(new Labels(lab.datapath.tables, undefined, false).callerAddress(remote)).toBe("10.0.0.9");
      client.go();
      await client.line();
      expect([carried()?.opened, carried()?.received, carried()?.ends[0]]).toEqual([1, 7000, 1]);
      expect(maps.carried.entries().count).toBe(0);
    } finally {
      client.kill();
    }
  });

  test("a long connection is logged once in each interval, at both ends, and at its end", async () => {
    const INTERVAL = 100e6;
    const ring = RingReader.open(lab.datapath.tables.maps.traffic_log, layout.flow_record.size);
    const { fields } = layout.flow_record;
    const records: { direction: string; at: number; since: number; live: boolean; sent: number }[] = [];
    const read = () => {
      for (;;) {
        const { bytes, count } = ring.read();
        if (count === 0) return;
        for (let i = 0; i < count; i++) {
          const at = i * layout.flow_record.size;
          const view = viewOf(bytes);
          const key = decodeKey(view, bytes, at + fields.key.offset);
          // Accepted connections of the whole machine come by here.
          if (!key || (key.direction === "in" && key.port !== PORT)) continue;
          records.push({
            direction: key.direction,
            at: longAt(view, at + fields.at_ns.offset),
            since: longAt(view, at + fields.since_ns.offset),
            live: view.getUint8(at + fields.is_live.offset) === 1,
            sent: longAt(view, at + fields.sent.offset),
          });
        }
      }
    };
    counting.log(true);
    counting.set("interval_ns", INTERVAL);
    const client = new RunningClient(script("alive", "open"));
    try {
      expect(await client.line()).toBe("alive");
      findAccepted();
      for (let i = 0; i < 40; i++) {
        flusher?.flush();
        await new Promise((resolve) => setTimeout(resolve, 20));
        read();
      }
      client.go();
      await client.line();
      read();
      const out = records.filter(({ direction, live }) => direction === "out" && live);
      const turns = out.map(({ at, since }) => Math.floor((at - since) / INTERVAL));
      expect(new Set(turns).size).toBe(turns.length);
      if (flusher) expect(turns.length).toBeGreaterThan(4);
      const accepted = records.filter(({ direction, live }) => direction === "in" && live);
      if (flusher) expect(Math.abs(accepted.length - out.length)).toBeLessThan(3);
      expect(new Set(accepted.map(({ sent }) => sent))).toEqual(new Set(flusher ? [2998] : []));
      expect(new Set(out.map(({ sent }) => sent))).toEqual(new Set(flusher ? [6999] : []));
      const ends = records.filter(({ live }) => !live).map(({ direction, sent }) => `${direction} ${sent}`);
      expect(ends.sort()).toEqual(["in 3000", "out 7000"]);
    } finally {
      client.kill();
      counting.set("interval_ns", 0);
      counting.log(false);
      ring.close();
    }
  });

  test("each accepted connection and byte once, while agents come and go that look for them and flush without pause", async () => {
    const before = { out: sum("out"), in: sum("in") };
    let busy = true;
    let flushes = 0;
    const work = run("many", "open").finally(() => {
      busy = false;
    });
    while (busy && flusher) {
      // An agent is killed, and another one comes.
      if (flushes % 4 === 3) {
        flusher.close();
        flusher = Flusher.open(lab.datapath.tables.maps, counting);
      }
      findAccepted();
      flusher?.flush();
      flushes++;
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    const apps = await work;
    const out = subtractCounters(sum("out"), before.out);
    const accepted = subtractCounters(sum("in"), before.in);
    if (flusher) expect(flushes).toBeGreaterThan(4);
    expect({ sent: out.sent, received: out.received, opened: out.opened }).toEqual({ ...apps, opened: 300 });
    expect([accepted.received, accepted.sent, accepted.opened, closedOf(accepted)]).toEqual([
      apps.sent,
      apps.received,
      300,
      300,
    ]);
  });

  test("what waits for accept() is not counted, and what nobody ever accepts neither", async () => {
    const before = sum("in");
    const client = new RunningClient(script("unaccepted", "open"));
    try {
      expect(await client.line()).toBe("waiting");
      findAccepted();
      expect(subtractCounters(sum("in"), before).opened).toBe(0);
      client.go();
      await client.line();
      findAccepted();
      expect(subtractCounters(sum("in"), before)).toEqual(subtractCounters(before, before));
    } finally {
      client.kill();
    }
  });

  test("connections of a network namespace that is not governed are not counted", async () => {
    const { settings } = lab.datapath.tables;
    const path = join(import.meta.dirname, "flows.py");
    const direct = [
      "/usr/bin/python3",
      path,
      "normal",
      "172.31.1.1",
      String(PORT),
      "172.31.1.1",
      String(PORT),
    ];
    const accepted = async () => {
      const before = sum("in");
      await output(direct, { netns: lab.namespace.path });
      return subtractCounters(sum("in"), before).opened;
    };
    expect(await accepted()).toBe(1);
    // This process's namespace, as an agent has it; the servers are in another one.
    settings.set("netns", netnsCookie() ?? 0n);
    settings.setFlags({ everyNetns: false });
    try {
      expect(await accepted()).toBe(0);
    } finally {
      settings.setFlags({ everyNetns: true });
      settings.set("netns", 0n);
    }
  });

  test("the source is named, and its rows say when they were used", () => {
    const names = lab.datapath.tables.maps.source_names.entries();
    expect(names.count).toBeGreaterThan(0);
    const [row] = rows().filter(({ key }) => key.direction === "out");
    expect(row?.key.source).toBeGreaterThan(1);
    expect(row?.usedNs).toBeGreaterThan(0);
  });

  test("refused on purpose", async () => {
    const before = sum("refused");
    await run("refused", "denied");
    const after = subtractCounters(sum("refused"), before);
    expect(after.opened).toBe(1);
  });
});
