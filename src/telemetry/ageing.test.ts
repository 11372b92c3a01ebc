import { expect, test } from "bun:test";
import { otherPeersKey, peerKey, putPeer } from "../datapath/peers.ts";
import * as layout from "../datapath/tables/layout.gen.ts";
import type { Maps } from "../datapath/tables/tables.ts";
import { BpfMap, FLAG } from "../kernel/maps.ts";
import { Ageing } from "./ageing.ts";
import type { Reading } from "./counters/reading.ts";
import { noCounters } from "./counters/rows.ts";
import type { Retirement } from "./retirement.ts";

const ROOM = 8;
const NAMES = ["peers", "carried", "caller_rows", "source_names", "latency_rows"] as const;
const by = "istio";
const nobody = { other: { out: noCounters(), in: noCounters() }, room: { rows: ROOM, callers: ROOM } };
const reading: Reading = { atNs: 0, wall: 0, rows: [], retired: [], latency: [], ...nobody };

test.skipIf(process.getuid?.() !== 0)("callers that neither a row nor a connection has make room", () => {
  const made = NAMES.map((name) => {
    const { keySize, valueSize } = layout.maps[name];
    const spec = { type: "hash", keySize, valueSize, maxEntries: ROOM, flags: FLAG.noPrealloc } as const;
    return [name, BpfMap.create({ name, ...spec })] as const;
  });
  const { keySize, valueSize, maxEntries } = layout.maps.source_cache;
  const cache = { type: "array", keySize, valueSize, maxEntries, flags: FLAG.mmapable } as const;
  const maps = {
    ...Object.fromEntries(made),
    source_cache: BpfMap.create({ name: "source_cache", ...cache }),
  } as unknown as Maps;
  const ageing = new Ageing(maps, {} as Retirement);
  try {
    const of = (i: number) => ({ by, principal: `spiffe://m/ns/shop/sa/${i}` }) as const;
    const keys = Array.from({ length: ROOM }, (_, i) => peerKey(`10.0.0.${i}`, of(i)));
    const put = (i: number) => putPeer(maps.peers, keys[i] ?? new Uint8Array(16), `10.0.0.${i}`, of(i));
    for (let i = 0; i < 6; i++) expect(put(i)).toBe(true);
    ageing.round(reading);
    expect(maps.peers.entries().count).toBe(6);
    for (let i = 6; i < ROOM; i++) expect(put(i)).toBe(true);
    // What finds no room stands for all others; what is there already needs none.
    expect(putPeer(maps.peers, otherPeersKey(by), "10.0.9.9", of(99))).toBe(false);
    expect(put(0)).toBe(true);
    const row = new Uint8Array(layout.flow_key.size);
    row.set(keys[1] ?? [], layout.flow_key.fields.remote.offset);
    maps.caller_rows.update(row, new Uint8Array(layout.flow_row.size));
    const connection = new Uint8Array(layout.carried.size);
    connection.set(keys[2] ?? [], layout.carried.fields.remote.offset);
    maps.carried.update(new Uint8Array(layout.caller_key.size), connection);
    ageing.round(reading);
    const value = new Uint8Array(layout.peer.size);
    const left = keys.flatMap((key, i) => (maps.peers.lookup(key, value) ? [i] : []));
    expect(left).toEqual([1, 2]);
  } finally {
    ageing.close();
    for (const map of Object.values(maps)) map.close();
  }
});
